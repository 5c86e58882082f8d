"""The model as a whole: a fresh one is Qwen2.5-VL, and every training step calls the same modules whatever its data."""

import copy

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from padt.data.collate import EncodedSample, collate
from padt.errors import UserError
from padt.model.losses import LOSS_TERMS, LossSettings
from tests.padt.data.test_collate import sample, square
from tests.padt.tiny import ROWS, tiny_model


@pytest.fixture
def inputs(processor):
    from tests.padt.data.test_collate import picture

    return processor.prompt_inputs([[picture(84, 56)], [picture(140, 112, 1)]], ["what?", "and this one here?"])[0]


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_fresh_padt_answers_as_plain_qwen(inputs, tied):
    model = tiny_model(tied)
    torch.nn.init.zeros_(model.vis_norm.weight)
    plain = Qwen2_5_VLForConditionalGeneration(model.config).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    ours, theirs = model(**inputs), plain(**inputs)
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours.logits[..., :ROWS][seen], theirs.logits[seen], atol=1e-5, rtol=1e-5)
    vrts = ours.logits[..., ROWS:][seen]
    assert vrts[vrts.isfinite()].abs().max() == 0, "prototypes start at zero"


@torch.no_grad()
def test_plain_text_has_no_vrts(random_model):
    ids = torch.tensor([[1, 2, 3]])
    assert random_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 3, ROWS)


@torch.no_grad()
def test_each_sample_sees_its_own_patches_only(random_model, inputs):
    output = random_model(**inputs)
    finite = output.logits.isfinite().sum(-1)
    assert finite[0].eq(ROWS + 6).all() and finite[1].eq(ROWS + 20).all()


@torch.no_grad()
def test_prefill_and_steps_give_the_logits_of_one_pass(random_model, inputs):
    single = {name: value[:1] for name, value in inputs.items() if name != "pixel_values"}
    single["pixel_values"] = inputs["pixel_values"][:24]
    start = int((single["attention_mask"][0] == 0).sum())
    single |= {name: single[name][:, start:] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    answer = torch.tensor([[5, ROWS + 3, ROWS + 1, 9]])
    whole = {name: value.clone() for name, value in single.items()}
    whole["input_ids"] = torch.cat([single["input_ids"], answer], 1)
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    whole["mm_token_type_ids"] = torch.cat([single["mm_token_type_ids"], torch.zeros_like(answer)], 1)
    expected = random_model(**whole).logits[:, -5:]
    output = random_model.prefill(**single)
    torch.testing.assert_close(output.logits[:, 0], expected[:, 0], atol=1e-4, rtol=1e-4)
    positions, _ = random_model.model.get_rope_index(
        whole["input_ids"],
        whole["mm_token_type_ids"],
        image_grid_thw=whole["image_grid_thw"],
        attention_mask=whole["attention_mask"],
    )
    length = single["input_ids"].shape[1]
    for index in range(4):
        place = length + index
        output = random_model.step(
            answer[:, index : index + 1],
            output,
            position_ids=positions[..., place : place + 1],
            attention_mask=torch.ones(1, place + 1, dtype=torch.long),
        )
        torch.testing.assert_close(output.logits[:, 0], expected[:, index + 1], atol=1e-4, rtol=1e-4)


def test_inputs_that_contradict_each_other_are_refused(random_model, inputs):
    fewer = {**inputs, "pixel_values": inputs["pixel_values"][:24], "image_grid_thw": inputs["image_grid_thw"][:1]}
    with pytest.raises(UserError, match="26 image placeholders but the images have 6 patches"):
        random_model(**fewer)


def text_sample(processor, words="hello"):
    prompt, answer = processor.prompt_ids(words), processor.tokenize("yes")
    ids = torch.tensor([*prompt, *answer, processor.end_token_id]).numpy()
    supervised = torch.arange(len(ids)).numpy() >= len(prompt)
    nothing = torch.zeros(len(ids), dtype=torch.bool).numpy()
    empty = torch.zeros(0, 3, 14, 14, dtype=torch.uint8).numpy()
    return EncodedSample("t", "text", ids, supervised, nothing, empty, (), ())


def batches(processor):
    rle = square(56, 84, 0, 0, 28)
    objects = [((0, 5), (0, 1, 5), rle), ((2,), (2,), None)]
    encode = processor.encode
    kinds = {
        "objects": [encode(sample("a", objects)), encode(sample("b", objects[:1]))],
        "no masks": [encode(sample("a", objects[1:]))],
        "one sample without objects": [encode(sample("a", objects)), encode(sample("b", []))],
        "no objects": [encode(sample("a", [])), encode(sample("b", [], size=(56, 56)))],
        "text beside images": [text_sample(processor), encode(sample("a", objects))],
        "text only": [text_sample(processor), text_sample(processor, "longer words")],
    }
    return {name: collate(samples, processor.pad_token_id) for name, samples in kinds.items()}


def calls_of(model, batch, **arguments):
    calls = []
    watched = ("model.visual", "vis_norm", "vis_proj", "model.language_model", "lm_head", "vl_decoder")
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name)) for name in watched
    ]
    output = model(batch=batch, **arguments)
    for hook in hooks:
        hook.remove()
    return calls, output


@pytest.mark.parametrize(
    "settings", [LossSettings(), LossSettings({"mask": 0, "score": 0}), LossSettings(robust=False)]
)
@pytest.mark.parametrize("warm_up", [False, True])
def test_every_batch_makes_the_same_calls_and_a_gradient_for_every_parameter(processor, settings, warm_up):
    model = copy.deepcopy(tiny_model()).train()
    sequences = set()
    for name, batch in batches(processor).items():
        model.zero_grad()
        calls, output = calls_of(model, batch, loss=settings, prototypes_to_decoder=warm_up)
        sequences.add(tuple(calls))
        assert output.total.isfinite() and output.total.requires_grad, name
        assert {key for row, term in LOSS_TERMS.items() for key in (row, *term.details)} == set(output.parts), name
        assert all(value.isfinite() and not value.requires_grad for value in output.parts.values()), name
        output.total.backward()
        without = [key for key, value in model.named_parameters() if value.grad is None]
        assert without == [], name
        assert all(value.grad.isfinite().all() for value in model.parameters()), name
    assert len(sequences) == 1, "ranks with different data must make the same collectives"


def test_a_batch_without_objects_leaves_the_decoder_where_it_is(processor):
    model = copy.deepcopy(tiny_model()).train()
    model(batch=batches(processor)["no objects"]).total.backward()
    assert all(not value.grad.any() for value in model.vl_decoder.parameters())
    assert model.get_input_embeddings().weight.grad.any()


def test_a_switched_off_part_gives_no_gradient_but_is_still_reported(processor):
    model = copy.deepcopy(tiny_model()).train()
    output = model(batch=batches(processor)["objects"], loss=LossSettings({"mask": 0}))
    assert output.parts["mask"] > 0
    output.total.backward()
    assert not model.vl_decoder.mask_output_mlp[4].weight.grad.any()
    assert model.vl_decoder.bbox_prediction[4].weight.grad.any()


def test_total_is_the_weighted_sum(processor):
    model = tiny_model()
    settings = LossSettings({"token": 2.0, "box": 3.0, "mask": 0.5, "score": 0.25})
    output = model(batch=batches(processor)["objects"], loss=settings)
    parts = output.parts
    expected = 2 * parts["token"] + 3 * parts["box"] + 0.5 * parts["mask"] + 0.25 * parts["score"]
    torch.testing.assert_close(output.total.detach(), expected)


def test_robust_cross_entropy_never_punishes_the_object_s_other_patches(processor):
    model = tiny_model()
    batch = batches(processor)["objects"]
    robust, plain = (model(batch=batch, loss=LossSettings(robust=flag)).parts["token"] for flag in (True, False))
    assert robust < plain


def test_without_prototype_projection_every_batch_still_trains(processor):
    # The paper's ablation: VRTs are the raw patch features.
    model = copy.deepcopy(tiny_model(use_visual_prototype_projection=False)).train()
    for name, batch in batches(processor).items():
        model.zero_grad()
        output = model(batch=batch)
        output.total.backward()
        without = {key.split(".")[0] for key, value in model.named_parameters() if value.grad is None}
        assert output.total.isfinite() and without == {"vis_norm", "vis_proj"}, name
