"""A registered version answers through MLflow's own door, and its weights are stored nowhere but where they lie."""

import base64
import http.server
import io
import json
import shutil
import threading
from pathlib import Path

import pytest

mlflow = pytest.importorskip("mlflow")

import pandas as pd  # noqa: E402
from PIL import Image  # noqa: E402

from jobs.registry.pyfunc import picture_of, request_of  # noqa: E402
from jobs.registry.register import run_register  # noqa: E402
from padt.checkpoints.loading import load_model  # noqa: E402
from padt.errors import ImageError, UserError  # noqa: E402
from padt.inference.predict import GenerationSettings, predict  # noqa: E402
from padt.inference.requests import caption_request, detect_request, refer_request, text_request  # noqa: E402
from tests.jobs.registry.test_register import GOOD, database, uri  # noqa: E402, F401
from tests.jobs.tiny_model import write_tiny_model  # noqa: E402
from tests.padt.inference.test_predict import picture  # noqa: E402

SHORT = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def registry(uri, monkeypatch) -> str:  # noqa: F811
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def png(size=(112, 84)) -> bytes:
    buffer = io.BytesIO()
    picture(*size).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_version_answers_a_dataframe_of_pictures_and_questions(registry, folder, tmp_path):
    version = run_register(folder, GOOD)
    assert version.promoted and version.source == str(folder)
    loaded = mlflow.pyfunc.load_model("models:/padt@champion", model_config={"device": "cpu", "batch_size": 2})
    (tmp_path / "one.png").write_bytes(png())
    rows = pd.DataFrame(
        [
            {"image": str(tmp_path / "one.png")},
            {"image": png((60, 120)), "sentence": "the red thing"},
            {"image": str(tmp_path / "gone.png"), "sentence": "the red thing"},
            {"image": base64.b64encode(png()).decode(), "labels": ["circle", "square"]},
            {"image": png(), "prompt": "How many?", "sentence": "the red thing"},
            {"image": png(), "task": "chat", "prompt": "How many?", "sentence": "not asked"},
        ],
        index=list("abcdef"),
    )
    told = loaded.predict(rows, params=SHORT)
    assert list(told.index) == list("abcdef")
    assert told["error"].notna().tolist() == [False, False, True, False, True, False]
    assert "gone.png cannot be opened" in told["error"]["c"] and "sentence and prompt" in told["error"]["e"]
    assert told["text"]["c"] is None and told["objects"]["e"] is None
    model, settings = load_model(folder, device="cpu"), GenerationSettings(**SHORT)
    for name, image, request in (
        ("a", png(), caption_request()),
        ("b", png((60, 120)), refer_request("the red thing")),
        ("d", png(), detect_request(["circle", "square"])),
        ("f", png(), text_request("How many?")),
    ):
        (alone,) = predict(model, image, [request], settings)
        assert told["text"][name] == alone.text
        assert (told["width"][name], told["height"][name]) == (alone.width, alone.height)
    # The random model calls what it sees by no name that was asked for.
    assert told["objects"]["a"] and not told["objects"]["d"] and "not asked for" in told["warnings"]["d"][-1]
    assert told["objects"]["a"][0]["mask"]["size"] == [84, 112]
    json.dumps(told.to_dict("records"))
    without = loaded.predict(rows[:1], params={**SHORT, "masks": False})
    assert without["objects"]["a"][0]["mask"] is None


def test_what_is_stored_is_code_and_addresses(registry, folder, tmp_path):
    version = run_register(folder, GOOD)
    entry = mlflow.MlflowClient().get_model_version("padt", version.version)
    stored = Path(entry.source.removeprefix("file://"))
    files = {file.name: file.stat().st_size for file in stored.iterdir()}
    assert {"MLmodel", "padt_pyfunc.py", "input_example.json"} <= set(files) and sum(files.values()) < 20_000
    described = mlflow.models.get_model_info(version.uri)
    assert described.signature.inputs.input_names()[0] == "image"
    assert "padt" not in {line.split(">")[0] for line in (stored / "requirements.txt").read_text().splitlines()}
    # Again the same: nothing more is stored.
    before = sorted(tmp_path.rglob("MLmodel"))
    assert run_register(folder, GOOD).version == version.version and sorted(tmp_path.rglob("MLmodel")) == before
    example = mlflow.pyfunc.load_model(version.uri).input_example
    assert request_of(example.to_dict("records")[0]).task == "refer"
    assert picture_of(example["image"][0]).size == (84, 56)


def test_weights_that_are_gone_or_others_are_one_sentence(registry, folder, tmp_path):
    version = run_register(folder, GOOD)
    moved = shutil.move(folder, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"folder .*/model is not there any more: put it back, or register"):
        mlflow.pyfunc.load_model(version.uri)
    shutil.move(moved, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "prototype_rank": 3}))
    with pytest.raises(UserError, match="was changed after it was registered as a version of padt"):
        mlflow.pyfunc.load_model(version.uri)


def test_weights_at_a_url_are_fetched_and_not_uploaded(registry, folder, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("PADT_CACHE", str(tmp_path / "cache"))
    remote = fsspec.filesystem("memory")
    for file in folder.iterdir():
        remote.pipe(f"/weights/{file.name}", file.read_bytes())
    try:
        version = run_register("memory://weights", GOOD)
        assert version.source == "memory://weights"
        loaded = mlflow.pyfunc.load_model(version.uri)
    finally:
        remote.rm("/weights", recursive=True)
    assert loaded.predict(pd.DataFrame([{"image": png()}]), params=SHORT)["error"].isna().all()
    assert not list((tmp_path / "mlruns").rglob("*.safetensors"))


def test_pictures_come_in_any_way(tmp_path):
    content = png()
    (tmp_path / "a.png").write_bytes(content)
    encoded = base64.b64encode(content).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/a.png"
        ways = [content, encoded, f"data:image/png;base64,{encoded}", str(tmp_path / "a.png"), address]
        ways += [f"file://{tmp_path / 'a.png'}", Image.open(tmp_path / "a.png")]
        assert {picture_of(way).tobytes() for way in ways} == {picture(112, 84).tobytes()}
        server.shutdown()
    for wrong in ("data:image/png;base64,!!", b"no picture", 7, float("nan"), "A" * 64):
        with pytest.raises(UserError):
            picture_of(wrong)
    with pytest.raises(ImageError, match="cannot be opened"):
        picture_of(str(tmp_path / "b.png"))


def test_questions_are_what_the_columns_say():
    assert request_of({}) == caption_request()
    assert request_of({"labels": "red cup, dog", "sentence": None, "prompt": float("nan")}).prompt == (
        detect_request(["red cup", "dog"]).prompt
    )
    assert request_of({"task": "refer", "sentence": "it"}) == refer_request("it")
    for row, said in (
        ({"task": "refer"}, "needs the column 'sentence'"),
        ({"task": "segment"}, "task 'segment' is unknown"),
        ({"labels": ["a"], "sentence": "b"}, "A row has labels and sentence"),
        ({"labels": ["a", " "]}, "blank name"),
    ):
        with pytest.raises(UserError, match=said):
            request_of(row)
