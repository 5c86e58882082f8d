"""If these break, a shipped base model no longer fits its tokenizer, or toy texts become long and slow."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from padt.data.tasks import CAPTION_PROMPT, NO_OBJECTS, detect_prompt, refer_prompt
from pipelines.toy.model_config import toy_config
from pipelines.toy.scenes import COLOURS, KINDS, SIZES, draw_scene, scene_rng
from pipelines.toy.tokenizer import SPECIAL_TOKENS, build_tokenizer

CONVERSATION = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is the circle?"}]},
    {"role": "assistant", "content": "red"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_every_build_gives_the_same_tokenizer(tokenizer):
    # Another process, with another hash seed and another number of threads.
    code = "from pipelines.toy.tokenizer import build_tokenizer as b; print(b().backend_tokenizer.to_str())"
    environment = {"PYTHONHASHSEED": "77", "RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "true"}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=".", capture_output=True, text=True, check=True
    )
    assert json.loads(other.stdout) == json.loads(tokenizer.backend_tokenizer.to_str())


@pytest.mark.parametrize(
    "text",
    [
        'naïve “quotes” and "straight" ones, (brackets) — 12,345.67!',
        "日本語 😀 👩\u200d👩\u200d👧 \U0001f1e9\U0001f1ea ß Ω",
        "  two  spaces,\ttabs\r\nand\n\nlines \u00a0\u2028",
        "".join(chr(code) for code in range(1, 128)),
        "",
    ],
)
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_words_of_the_toy_vocabulary_are_single_tokens(tokenizer):
    for word in (*KINDS, *COLOURS, *SIZES, "leftmost", "rightmost", "topmost", "bottommost", "largest", "smallest"):
        assert len(tokenizer(f" {word}").input_ids) == 1, word
    assert all(len(tokenizer(kind).input_ids) == 1 for kind in KINDS)


def test_signs_are_tokens_of_their_own(tokenizer):
    tokens = tokenizer.tokenize(detect_prompt(KINDS) + refer_prompt('a "b", (c)') + '12 "circle" (x, y), 3')
    for sign in '",()12':
        held = {token for token in tokens if sign in token}
        assert held <= {sign, f"Ġ{sign}"}, held


def test_texts_are_short(tokenizer):
    lengths = [
        len(tokenizer(text).input_ids)
        for text in (detect_prompt(KINDS), refer_prompt("the large red circle"), CAPTION_PROMPT, NO_OBJECTS)
    ]
    assert all(length <= limit for length, limit in zip(lengths, (29, 20, 5, 11), strict=True)), lengths


def test_special_tokens_and_their_roles(tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(len(tokenizer) - len(ids), len(tokenizer)))
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_chats_are_laid_out_as_qwen_lays_them_out(tokenizer, reference_fixture):
    template = json.loads((reference_fixture / "processor" / "chat_template.json").read_text())["chat_template"]
    system = [{"role": "system", "content": "Be brief."}]
    for messages in (CONVERSATION, system + CONVERSATION, CONVERSATION * 2, [{"role": "user", "content": "Hello"}]):
        for prompt in (False, True):
            ours, theirs = (
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **which)
                for which in ({}, {"chat_template": template})
            )
            assert ours == theirs


def test_a_saved_folder_loads_as_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = 'The "the large red circle" refers to 😀.'
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.eos_token_id == tokenizer.eos_token_id and len(loaded) == len(tokenizer)
    chats = [each.apply_chat_template(CONVERSATION, tokenize=False) for each in (loaded, tokenizer)]
    assert chats[0] == chats[1]


def test_the_toy_model_reads_a_scene(tokenizer):
    torch.manual_seed(0)
    config = toy_config(tokenizer)
    # Rows beyond the tokenizer, as in the released models: nothing may take its size for the number of rows.
    assert config.text_config.vocab_size > len(tokenizer) and config.text_config.vocab_size % 64 == 0
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    assert 1.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 2.5e6
    scene = draw_scene(scene_rng(5, 0, 0))
    pixels = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=10**7)(images=[scene.image], return_tensors="pt")
    patches = scene.height * scene.width // 28**2
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    inputs = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * patches), return_tensors="pt")
    is_image = (inputs.input_ids == config.image_token_id).int()
    assert is_image.sum() == patches
    loss = model(**inputs, **pixels, mm_token_type_ids=is_image, labels=inputs.input_ids).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in model.parameters())
