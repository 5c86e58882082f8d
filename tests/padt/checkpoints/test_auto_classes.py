"""transformers' own doors open our saves, in whichever way a stranger writes the imports."""

import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import padt
from padt.errors import UserError
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
    with pytest.raises(ValueError, match="does not recognize this architecture"):
        AutoConfig.from_pretrained(folder)
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
