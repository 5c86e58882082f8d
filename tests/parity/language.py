"""Parity of the language side: positions, embeddings, states, logits."""

import torch

from padt.model.modeling import PaDTForConditionalGeneration
from tests.parity.fixture import Fixture
from tests.parity.table import Report


@torch.no_grad()
def compare_language(fixture: Fixture, model: PaDTForConditionalGeneration, report: Report) -> None:
    """One forward over each batch, padded as the released code pads; positions whose attention mask is 1."""
    for name in fixture.names("batch*.safetensors"):
        report.part = name
        tag = name.removeprefix("batch")
        tensors = fixture.tensors(name)
        ids, mask, grid = tensors["input_ids"], tensors["attention_mask"], tensors["image_grid_thw"]
        counts, seen = fixture.patch_counts(ids), mask.bool()
        local = fixture.to_local(ids)
        image_tokens = (local == fixture.config["image_token_id"]).long()
        pixels = torch.cat([fixture.pixel_values(tag, index) for index in range(len(grid))])

        positions, deltas = model.model.get_rope_index(local, image_tokens, image_grid_thw=grid, attention_mask=mask)
        report.equal("position ids", positions[-3:][:, seen], tensors["position_ids"][:, seen])
        # transformers 5 counts a row's own tokens, the released code its padding too.
        padding = (~seen).sum(dim=1, keepdim=True)
        report.equal("rope deltas", deltas, tensors["rope_deltas"] + padding)
        output = model(
            input_ids=local,
            attention_mask=mask,
            mm_token_type_ids=image_tokens,
            pixel_values=pixels,
            image_grid_thw=grid,
        )
        merged = model.image_features(pixels, grid).merged
        embeddings = model.embed(local, merged, output.prototypes)
        report.close("input embeddings", embeddings[seen], tensors["inputs_embeds"][seen])
        report.close("last hidden state", output.last_hidden_state[seen], tensors["hidden_last"][seen])

        theirs = tensors["logits"] if "logits" in tensors else tensors["logits_completion"]
        kept = seen[:, -theirs.shape[1] :]
        ours = output.logits[:, -theirs.shape[1] :]
        report.close(
            "logits",
            [row[kept[i], : fixture.vocabulary + counts[i]] for i, row in enumerate(ours)],
            [row[kept[i]] for i, row in enumerate(fixture.to_local_logits(theirs, counts))],
        )
        finite = output.logits[:, -1].isfinite().sum(-1)
        report.equal("finite logits of each sample", finite, tensors["logit_mask"].sum(-1))
        report.close("logsumexp of logits", output.logits.logsumexp(-1)[seen], tensors["logits_logsumexp"][seen])
