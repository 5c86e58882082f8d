"""ZeRO 3 on two ranks: a base model is loaded in shares, strictly, from the layout of the Hub."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from jobs.common.config_tree import build_config
from jobs.training.config import TrainConfig
from jobs.training.worker import load_for_training
from padt.checkpoints.loading import load_model
from padt.errors import UserError
from tests.jobs.tiny_model import write_hub_model
from tests.jobs.training.test_zero import free_port

DAMAGED = "visual.blocks.0.attn.qkv.weight"


def training_config(model: Path, **changes) -> TrainConfig:
    tree = {"model": str(model), "output": "unused", "steps": 1, "data": {"sets": [{"url": "unused"}]}}
    return build_config(TrainConfig, {**tree, "precision": "fp32", "zero_stage": 3, "workers": 2, **changes})


def rank_main(rank: int, port: int, folder: str) -> None:
    import deepspeed
    import torch.distributed as dist

    from jobs.training.engine.zero3 import gather_weights

    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    device, lora = torch.device("cpu"), {"lora": {"rank": 2}, "precision": "bf16"}
    whole_sizes: list[int] = []
    partition = deepspeed.zero.Init

    def watched(module, **options):
        # A block is at its largest just before it is partitioned.
        whole_sizes.append(sum(p.numel() for p in loading[0].parameters() if not p.is_meta))
        return partition(module=module, **options)

    loading: list[torch.nn.Module] = []
    import jobs.training.engine.zero3

    skeleton = jobs.training.engine.zero3.skeleton

    def remembered(*arguments):
        loading[:] = [skeleton(*arguments)]
        return loading[0]

    jobs.training.engine.zero3.skeleton = remembered
    deepspeed.zero.Init = watched
    found = {}
    for name, changes in {"tied": {}, "untied": lora}.items():
        whole_sizes.clear()
        model, _ = load_for_training(training_config(Path(folder) / name, **changes), device)
        assert not any(buffer.is_meta for buffer in model.buffers())
        total = sum(parameter.ds_numel for parameter in model.parameters())
        shares = sum(p.ds_tensor.numel() for p in model.parameters() if not p.ds_persist)
        persistent = sum(p.ds_numel for p in model.parameters() if p.ds_persist)
        assert shares < 0.55 * (total - persistent)
        inverse = model.model.language_model.rotary_emb.inv_freq
        assert inverse.dtype == torch.float32 and inverse[0] == 1
        found[name] = {
            "weights": gather_weights(model, rank),
            "largest": max(whole_sizes),
            "total": total,
            "trained": sorted(key for key, p in model.named_parameters() if p.requires_grad),
        }
    # Every rank says what is wrong: one that went on would wait for the others for ever.
    with pytest.raises(UserError, match=DAMAGED):
        load_for_training(training_config(Path(folder) / "damaged"), device)
    torch.save(found, f"{folder}/rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_hub_model_is_loaded_in_shares(tmp_path):
    for name in ("tied", "untied", "damaged"):
        write_hub_model(tmp_path / name, tied=name != "untied")
    _drop(tmp_path / "damaged", DAMAGED)
    torch.multiprocessing.spawn(rank_main, args=(free_port(), str(tmp_path)), nprocs=2, join=True)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1)]
    for name in ("tied", "untied"):
        for rank in ranks:
            # No rank ever holds more than one block: a layer, a table or the object decoder.
            assert rank[name]["largest"] < 0.5 * rank[name]["total"]
        weights = ranks[0][name]["weights"]
        expected = load_model(tmp_path / name, device="cpu").state_dict()
        assert {key.replace(".base_layer", "") for key in weights if ".lora_" not in key} == set(expected)
        for key, value in weights.items():
            plain = key.replace(".base_layer", "")
            if ".lora_" in key:
                assert bool(value.any()) == (".lora_A." in key), key
            elif plain.startswith("vl_decoder."):
                assert value.isfinite().all() and (value.any() or key.endswith("bias")), key
            elif plain.startswith(("vis_norm.", "vis_proj.0")):
                assert value.any() == plain.startswith("vis_proj."), key
            elif not plain.startswith("vis_proj."):
                assert torch.equal(value, expected[plain].to(value.dtype)), key
    assert torch.equal(*(ranks[0]["tied"]["weights"][k] for k in ("lm_head.weight", _EMBEDDING)))
    assert not any(key.startswith("model.visual") for key in ranks[0]["untied"]["trained"])


_EMBEDDING = "model.language_model.embed_tokens.weight"


def _drop(folder: Path, key: str) -> None:
    """Take one tensor out of a model folder."""
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    file = folder / listed["weight_map"].pop(key)
    weights = load_file(file)
    weights.pop(key)
    save_file(weights, file, metadata={"format": "pt"})
    index.write_text(json.dumps(listed))
