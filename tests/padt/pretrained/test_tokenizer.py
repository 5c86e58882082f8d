"""Tokenizers with stored VRT and filler tokens: VRTs keep their ids, and nobody's words become one."""

import json

import pytest
from tokenizers import AddedToken

from padt.data.processor import PaDTProcessor
from padt.errors import UserError
from tests.padt.tiny import ROWS, tiny_processor, tiny_tokenizer


def folder_with(tmp_path, tokens, special):
    """A processor folder whose tokenizer was grown, as the released code grows it."""
    processor = tiny_processor()
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    processor.tokenizer = tokenizer
    processor.save_pretrained(tmp_path)
    return tmp_path


FREE = ROWS - len(tiny_tokenizer())
FILLERS = [f"<|empty_token_{index}|>" for index in range(FREE)]
VRTS = [f"<|VRT_{index}|>" for index in range(12)]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    "tokens",
    [FILLERS, FILLERS + VRTS, FILLERS + VRTS[:3], VRTS, list(reversed(VRTS))],
    ids=["fillers", "released", "few", "ids of text", "ids in disorder"],
)
def test_stored_vrts_neither_move_nor_can_be_typed(tmp_path, tokens, special):
    again = PaDTProcessor.from_folder(folder_with(tmp_path, tokens, special))
    plain = tiny_processor()
    assert len(again.tokenizer) == len(plain.tokenizer)
    assert again.vrt_offset == ROWS
    text = "a <|VRT_5|> of <|empty_token_0|> and <|image_pad|><|im_end|>"
    assert again.tokenize(text) == plain.tokenize(text)
    assert again.prompt_ids(text, [4]) == plain.prompt_ids(text, [4])
    assert max(again.tokenize(text)) < 256, "bytes only: no special token, no VRT"
    ids = [*plain.tokenize("at "), ROWS + 5, ROWS + 700]
    assert again.decode_ids(ids) == "at <|VRT_5|><|VRT_700|>"
    assert again.decode_ids([ROWS - 1]) == "", "an id that no token has any more"


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(tmp_path):
    folder = folder_with(tmp_path, [f"<extra_{index}>" for index in range(FREE + 1)], special=False)
    with pytest.raises(UserError, match=f"has {ROWS + 1} tokens but the model has {ROWS} embedding rows"):
        PaDTProcessor.from_folder(folder)


def test_a_damaged_tokenizer_config_is_named(tmp_path):
    folder = folder_with(tmp_path, VRTS, special=True)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json is not JSON"):
        PaDTProcessor.from_folder(folder)


def test_slow_files_beside_the_fast_one_are_cleaned_too(reference_fixture, tmp_path):
    # Files as transformers 4 wrote them: added tokens stand in four places.
    from tests.parity.fixture import Fixture

    folder = Fixture(reference_fixture).assemble_model(tmp_path)
    plain = PaDTProcessor.from_folder(folder, vrt_offset=600)
    vocabulary = json.loads((folder / "added_tokens.json").read_text())
    grown = {token: 442 + index for index, token in enumerate(VRTS)}
    (folder / "added_tokens.json").write_text(json.dumps({**vocabulary, **grown}))
    for name, key in (("tokenizer_config.json", "added_tokens_decoder"), ("tokenizer.json", "added_tokens")):
        values = json.loads((folder / name).read_text())
        entries = [
            {
                "content": t,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": False,
            }
            for t in grown
        ]
        if isinstance(values[key], dict):
            values[key].update({str(grown[entry["content"]]): entry for entry in entries})
        else:
            values[key] += [{"id": grown[entry["content"]], **entry} for entry in entries]
        (folder / name).write_text(json.dumps(values))
    again = PaDTProcessor.from_folder(folder, vrt_offset=600)
    assert again.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    text = 'The "<|VRT_3|>" of <tool_call>'
    assert again.tokenize(text) == plain.tokenize(text)


def test_nobody_is_asked_whether_code_may_be_run(tmp_path, monkeypatch):
    # `padt train` asked at the terminal, and waited: its driver reads the tokenizer before it imports the model class.
    from transformers.dynamic_module_utils import resolve_trust_remote_code
    from transformers.models.auto import configuration_auto, tokenization_auto

    monkeypatch.delitem(configuration_auto.CONFIG_MAPPING._extra_content, "padt", raising=False)
    folder_with(tmp_path, [], True)
    code = {"AutoConfig": "stranger.Config"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "padt", "auto_map": code}))

    def asked(trust, name, has_local_code, has_remote_code, *rest, **more):
        assert has_local_code or not has_remote_code
        return resolve_trust_remote_code(trust, name, has_local_code, has_remote_code, *rest, **more)

    for module in (configuration_auto, tokenization_auto):
        monkeypatch.setattr(module, "resolve_trust_remote_code", asked)
    PaDTProcessor.from_folder(tmp_path)
