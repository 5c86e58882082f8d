"""transformers' own doors open our saves, in whichever way a stranger writes the imports."""

import json
import os
import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import padt
from padt.errors import UserError
from padt.pretrained.auto_code import AUTO_MAPS
from tests.conftest import REPOSITORY
from tests.padt.folders import edit_weights, same_tensors
from tests.padt.tiny import tiny_model
from tests.parity.fixture import Fixture


@pytest.fixture
def folder(tmp_path):
    model = tiny_model()
    return padt.save_model(model, model.processor, tmp_path / "own")


def test_registration_serves_all_three_auto_classes(folder, monkeypatch):
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "padt", raising=False)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    padt.register()
    assert isinstance(AutoConfig.from_pretrained(folder), padt.PaDTConfig)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    expected = padt.load_model(folder, device="cpu")
    assert type(model) is padt.PaDTForConditionalGeneration
    assert same_tensors(model.state_dict(), expected.state_dict())
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, padt.PaDTProcessor)
    text = "a <|VRT_3|> or <|im_end|>"
    assert processor.prompt_ids(text, [6]) == expected.processor.prompt_ids(text, [6])
    assert processor.vrt_offset == expected.config.vrt_offset
    assert AutoProcessor.from_pretrained(folder, max_pixels=28 * 28 * 64).policy.max_pixels == 28 * 28 * 64


def test_auto_model_is_strict_too(folder):
    padt.register()
    edit_weights(folder, lambda weights: weights.pop("vis_proj.0.weight"))
    with pytest.raises(UserError, match=r"missing vis_proj\.0\.weight"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_import_after_transformers_registers_at_once(folder):
    code = (
        "from transformers import AutoConfig, AutoModelForImageTextToText\n"
        "import padt\n"
        f"print(type(AutoConfig.from_pretrained({str(folder)!r})).__name__)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert run.stdout.split() == ["PaDTConfig"]


STRANGER = """
import json, sys
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

def opened(auto, folder, **options):
    try:
        return type(auto.from_pretrained(folder, **options)).__name__
    except Exception as error:
        return f"{type(error).__name__}: {error}"

own, released = sys.argv[1:]
trusting = {"trust_remote_code": True}
told = {"plain": {auto.__name__: opened(auto, own, trust_remote_code=False)
                  for auto in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor)}}
told["words"] = opened(AutoTokenizer, own)
sys.modules["padt"] = None  # as where it is not installed
told["lacking"] = {auto.__name__: opened(auto, own, **trusting) for auto in (AutoConfig, AutoProcessor)}
del sys.modules["padt"]
for name, folder in (("own", own), ("released", released)):
    told[name] = {auto.__name__: opened(auto, folder, **trusting)
                  for auto in (AutoProcessor, AutoConfig, AutoModel, AutoModelForImageTextToText)}
again = AutoModelForImageTextToText.from_pretrained(own, **trusting)
again.processor = AutoProcessor.from_pretrained(own, **trusting)
again.save_pretrained(own + "-again")
print(json.dumps(told))
"""


def test_a_process_that_has_not_imported_padt_opens_a_folder_it_trusts(folder, tmp_path):
    padt.export(folder, tmp_path / "released", "released")
    places = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder), str(tmp_path / "released")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **places},
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    # Never something that only looks like it: a bare tokenizer, or a model without its decoder.
    assert all("trust_remote_code=True" in said for said in told["plain"].values()), told["plain"]
    assert "Tokenizer" in told["words"]
    assert all("run `pip install .` in a checkout of PaDT on Ray" in said for said in told["lacking"].values()), told
    classes = {"AutoConfig": "PaDTConfig", "AutoProcessor": "PaDTProcessor"}
    classes |= dict.fromkeys(("AutoModel", "AutoModelForImageTextToText"), "PaDTForConditionalGeneration")
    assert told["own"] == classes and told["released"] == classes
    # A save of what was opened so is like any other: no copies of modules, the same maps.
    assert {file.name for file in (tmp_path / "own-again").glob("*.py")} == {"padt_auto.py"}
    for name in ("config.json", "processor_config.json"):
        first, again = (json.loads((tmp_path / place / name).read_text())["auto_map"] for place in ("own", "own-again"))
        assert first == again == AUTO_MAPS[name]


def test_processor_class_reads_every_layout(folder, reference_fixture, tmp_path):
    # A released folder has no vrt_offset: without its config.json the VRT of patch 0 would be the id 0.
    (tmp_path / "released").mkdir()
    released = Fixture(reference_fixture).assemble_model(tmp_path / "released")
    assert padt.PaDTProcessor.from_pretrained(released).vrt_offset == 600
    padt.load_processor(folder).save_pretrained(tmp_path / "alone")
    assert padt.PaDTProcessor.from_pretrained(tmp_path / "alone").vrt_offset == padt.load_processor(folder).vrt_offset


def test_what_save_pretrained_leaves_is_a_whole_model_folder(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "plain")
    again = padt.load_model(tmp_path / "plain", device="cpu")
    assert same_tensors(again.state_dict(), model.state_dict())
    names = {file.name for file in (tmp_path / "plain").iterdir()}
    assert {
        *("README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    } <= names
    (tmp_path / "plain" / "README.md").write_text("written by hand")
    model.save_pretrained(tmp_path / "plain")
    assert (tmp_path / "plain" / "README.md").read_text() == "written by hand"
