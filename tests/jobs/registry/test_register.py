"""The registry: the champion must be the model that earned it, and an alias must lead to the very files registered."""

import json
from pathlib import Path

import pytest

from jobs.common.model_reference import find_model, parse_reference, resolve_model
from jobs.registry.register import Gate, RegisteredVersion, run_register
from padt.errors import UserError
from padt.metrics.table import METRICS, Metric

pytest.importorskip("mlflow")

GOOD = {"eval/toy/precision_at_0.5": 0.85, "eval/toy/gIoU": 0.75, "eval/toy/caption_tokens": 40.0}


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """An MLflow store with its tables, copied for each test: making the tables takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("registry") / "empty.db"
    MlflowClient(f"sqlite:///{file}").search_registered_models()
    return str(file)


@pytest.fixture
def uri(database, tmp_path) -> str:
    file = tmp_path / "mlflow.db"
    file.write_bytes(Path(database).read_bytes())
    return f"sqlite:///{file}"


def model_folder(path: Path, weights: bytes = b"weights") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "padt"}))
    (path / "model.safetensors").write_bytes(weights)
    return path


def register(path, uri, metrics=GOOD, **options) -> RegisteredVersion:
    return run_register(path, metrics, tracking_uri=uri, **options)


def test_first_version_becomes_champion_and_its_alias_leads_to_the_folder(uri, tmp_path):
    folder = model_folder(tmp_path / "model")
    version = register(folder, uri, tags={"base_model": "toy"}, run_id=None)
    assert version == RegisteredVersion("padt", "1", str(folder), ("candidate", "champion"), True)
    assert resolve_model("models:/padt@champion", uri) == str(folder)
    assert resolve_model(version.uri, uri) == str(folder)
    assert find_model("models:/padt@champion", uri).version == "1"
    assert resolve_model(folder) == str(folder)  # a path asks no registry


def test_scores_and_facts_are_tags_of_the_version(uri, tmp_path):
    from mlflow import MlflowClient

    register(model_folder(tmp_path / "model"), uri, tags={"base_model": "toy"})
    tags = MlflowClient(uri).get_model_version("padt", "1").tags
    assert float(tags["eval/toy/gIoU"]) == 0.75
    assert tags["base_model"] == "toy"
    assert tags["padt.model_type"] == "padt"
    assert len(tags["padt.fingerprint"]) == 64


def test_registering_the_same_folder_again_adds_no_version(uri, tmp_path):
    folder = model_folder(tmp_path / "model")
    register(folder, uri, {})
    again = register(folder, uri)
    assert (again.version, again.promoted) == ("1", True)
    model_folder(folder, b"other weights")
    assert register(folder, uri).version == "2"


def test_gate_keeps_a_worse_model_from_the_alias(uri, tmp_path):
    register(model_folder(tmp_path / "a", b"a"), uri)
    worse = {**GOOD, "eval/toy/gIoU": 0.73}
    refused = register(model_folder(tmp_path / "b", b"b"), uri, worse)
    assert not refused.promoted
    assert refused.aliases == ("candidate",)
    assert refused.objections == ("eval/toy/gIoU is 0.7300; the champion has 0.7500 (tolerance 0.01).",)
    assert resolve_model("models:/padt@champion", uri).endswith("/a")
    # Within the tolerance; and more tokens a caption are no fault.
    close = register(model_folder(tmp_path / "c", b"c"), uri, {**GOOD, "eval/toy/gIoU": 0.745})
    assert (close.promoted, close.replaced) == (True, "1")
    # Force wins, and is remembered; then a version can be brought back by its number.
    assert register("models:/padt/2", uri, None, force=True).aliases == ("candidate", "champion")[1:]
    back = register("models:/padt/3", uri, None)
    assert (back.version, back.promoted, back.replaced) == ("3", True, "2")


def test_gate_rules():
    gate = Gate(thresholds={"eval/toy/gIoU": 0.7, "eval/toy/bbox_AP": 0.3})
    assert gate.objections({"eval/toy/gIoU": 0.7, "eval/toy/bbox_AP": 0.3}, {}) == []
    low = gate.objections({"eval/toy/gIoU": 0.69}, {"eval/toy/segm_AP": 0.5, "eval/toy/caption_tokens": 9.0})
    assert [reason.split(" ")[0] for reason in low] == ["eval/toy/gIoU", "eval/toy/bbox_AP", "eval/toy/segm_AP"]
    assert gate.objections({"eval/toy/gIoU": float("nan"), "eval/toy/bbox_AP": 1.0}, {})
    assert "no scores" in Gate().objections({}, {})[0]


def test_where_lower_is_better_the_gate_asks_for_at_most(monkeypatch):
    wrong = Metric("hallucinated", "sentences without target, answered", better="lower", watched=True)
    monkeypatch.setattr("padt.metrics.table.METRICS", (*METRICS, wrong))
    gate, name = Gate(thresholds={"eval/toy/hallucinated": 0.2}), "eval/toy/hallucinated"
    assert gate.objections({name: 0.2}, {name: 0.195}) == []
    assert gate.objections({name: 0.1}, {name: 0.9}) == []
    assert gate.objections({name: 0.3}, {name: 0.28}) == [
        f"{name} is 0.3000; the gate asks for at most 0.2.",
        f"{name} is 0.3000; the champion has 0.2800 (tolerance 0.01).",
    ]
    assert gate.objections({"eval/toy/gIoU": 1.0}, {}) == [f"{name} was not measured; the gate asks for at most 0.2."]
    assert len(gate.objections({name: float("nan")}, {name: 0.1})) == 2


def test_a_threshold_for_no_metric_is_refused():
    with pytest.raises(UserError, match=r"'eval/toy/giou' is unknown: did you mean gIoU\?"):
        Gate(thresholds={"eval/toy/giou": 0.7})
    with pytest.raises(UserError, match="'eval/toy/caption_tokens' has no better or worse values"):
        Gate(thresholds={"eval/toy/caption_tokens": 7})


def test_a_model_without_scores_is_registered_but_not_promoted(uri, tmp_path):
    version = register(model_folder(tmp_path / "model"), uri, None)
    assert (version.promoted, version.aliases) == (False, ("candidate",))


def write_evaluation(folder: Path, **values) -> Path:
    folder.mkdir(exist_ok=True)
    content = {"metrics": GOOD, "set": "toy", "data_fingerprint": "d1", "model": "somewhere", **values}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_scores_of_evaluations_count_only_for_the_same_model_and_data(uri, tmp_path):
    first = model_folder(tmp_path / "a", b"a")
    assert register(first, uri, None, evaluations=[write_evaluation(tmp_path / "e")]).promoted
    other_data = write_evaluation(tmp_path / "e", data_fingerprint="d2")
    refused = register(model_folder(tmp_path / "b", b"b"), uri, None, evaluations=[other_data])
    assert "other data named 'toy'" in refused.objections[0]
    with pytest.raises(UserError, match="another model"):
        register(first, uri, None, evaluations=[write_evaluation(tmp_path / "e", model_fingerprint="0" * 64)])


def test_a_folder_changed_after_registration_is_not_taken_for_the_version(uri, tmp_path):
    folder = model_folder(tmp_path / "model")
    register(folder, uri)
    (folder / "model.safetensors").touch()  # same content, other time
    assert resolve_model("models:/padt@champion", uri)
    (folder / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(UserError, match="was changed after it was registered as version 1"):
        resolve_model("models:/padt@champion", uri)


def test_a_model_at_a_url_is_fetched_once(uri, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("PADT_CACHE", str(tmp_path / "cache"))
    remote = fsspec.filesystem("memory")
    for file in model_folder(tmp_path / "model").iterdir():
        remote.pipe(f"/models/one/{file.name}", file.read_bytes())
    version = register("memory://models/one", uri)
    path = Path(resolve_model(version.uri, uri))
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"]
    remote.rm("/models", recursive=True)
    assert resolve_model(version.uri, uri) == str(path)
    with pytest.raises(UserError, match="cannot be read as a model folder"):
        register("memory://models/two", uri)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/padt", "write models:/padt@champion"),
        ("models:/padt/Production", "write models:/padt@champion"),
        ("models:/padt@nobody", "versions 1 and aliases candidate = version 1"),
        ("models:/padt/7", "versions 1 and aliases"),
        ("models:/other@champion", "no model of that name"),
        ("nowhere/model", "is no local folder"),
    ],
)
def test_wrong_references_say_what_there_is(uri, tmp_path, reference, message):
    register(model_folder(tmp_path / "model"), uri, None)
    with pytest.raises(UserError, match=message):
        resolve_model(reference, uri)


def test_wrong_folders_and_registries_are_named(uri, tmp_path):
    with pytest.raises(UserError, match="There is no model registry at sqlite"):
        resolve_model("models:/padt@champion", f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()
    run = tmp_path / "run"
    model_folder(run / "model")
    with pytest.raises(UserError, match=r"did you mean .*run/model"):
        resolve_model(run)
    (run / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights to register"):
        register(run / "model", uri)
    with pytest.raises(UserError, match=r"has no metrics\.json"):
        register(model_folder(run / "model"), uri, evaluations=[tmp_path / "nothing"])
    with pytest.raises(UserError, match="does not name a registered model"):
        parse_reference("models:/a/b/c")
