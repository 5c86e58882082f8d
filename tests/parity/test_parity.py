"""The released checkpoints' answers are ours: a table of every number, on the fixture and on an untied variant."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.run import run_parity
from tests.parity.table import Report


def test_everything_in_the_fixture_is_within_tolerance(reference_fixture: Path) -> None:
    report = run_parity(reference_fixture)
    assert len(report.rows) > 100
    assert report.ok, [row for row in report.rows if not row.ok]


def test_an_untied_head_is_read_from_its_own_key(reference_fixture: Path, tmp_path: Path) -> None:
    # A larger model has an untied head: the same numbers must come out when the head is a copy of the embedding.
    variant = untied_variant(reference_fixture, tmp_path / "fixture")
    report = run_parity(variant)
    assert report.ok, [row for row in report.rows if not row.ok]


def test_a_wrong_weight_is_seen(reference_fixture: Path, tmp_path: Path) -> None:
    variant = tmp_path / "fixture"
    shutil.copytree(reference_fixture, variant)
    weights = load_file(variant / "model.safetensors")
    weights["vl_decoder.score_prediction.bias"] += 0.01
    _replace(weights, variant / "model.safetensors")
    report = run_parity(variant)
    wrong = {row.name for row in report.rows if not row.ok}
    assert "scores" in wrong and "last hidden state" not in wrong


@pytest.mark.parametrize("ours", [torch.tensor([float("nan")]), torch.zeros(2)])
def test_nan_and_other_shapes_are_above_every_tolerance(ours: torch.Tensor) -> None:
    report = Report()
    report.close("value", ours, torch.zeros(1))
    assert not report.ok


def untied_variant(fixture: Path, target: Path) -> Path:
    """A copy of a fixture whose head has weights of its own, equal to the embedding's.

    Gradients of the embedding are split between the two there, and so are left out.
    """
    shutil.copytree(fixture, target)
    config = json.loads((target / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(config))
    weights = load_file(target / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    _replace(weights, target / "model.safetensors")
    gradients = load_file(target / "gradsA.safetensors")
    del gradients["model.embed_tokens.weight"]
    _replace(gradients, target / "gradsA.safetensors")
    for name in ("lossA.json", "lossB.json"):
        loss = json.loads((target / name).read_text())
        for run in loss["runs"]:
            (run.get("grad_norms") or {}).pop("model.embed_tokens.weight", None)
        (target / name).unlink()
        (target / name).write_text(json.dumps(loss))
    return target


def _replace(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
