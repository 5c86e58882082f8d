"""A tiny random Qwen2.5-VL and PaDT with a byte-level tokenizer, for tests that need no trained model."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from padt.data.image import ResizePolicy
from padt.data.processor import PaDTProcessor, image_processor
from padt.model.modeling import PaDTForConditionalGeneration
from padt.pretrained.config import PaDTConfig
from pipelines.toy.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS

ROWS = 320


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and Qwen's special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_processor(policy: ResizePolicy | None = None) -> PaDTProcessor:
    """The tiny models' processor."""
    return PaDTProcessor(
        image_processor(policy=policy or ResizePolicy()), tiny_tokenizer(), CHAT_TEMPLATE, vrt_offset=ROWS
    )


def tiny_config(tied: bool = True, window: int = 112, **values) -> PaDTConfig:
    """About a hundred thousand parameters; windows of ``window`` pixels."""
    ids = tiny_tokenizer().get_added_vocab()
    text = {
        "vocab_size": ROWS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]},
        "tie_word_embeddings": tied,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 48,
        "num_heads": 4,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "window_size": window,
        "fullatt_block_indexes": [1],
    }
    return PaDTConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
        **values,
    )


def tiny_model(tied: bool = True, window: int = 112, seed: int = 1, **values) -> PaDTForConditionalGeneration:
    """A random model whose answers mix bytes and VRTs, with its processor."""
    torch.manual_seed(seed)
    model = PaDTForConditionalGeneration(tiny_config(tied, window, **values)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and not name.startswith("vl_decoder."):
                gain = 2.5 if "language_model" in name else 0.7
                torch.nn.init.normal_(parameter, std=gain * parameter.shape[-1] ** -0.5)
        # Small embeddings, or each token only repeats itself; prototypes somewhat longer than text rows.
        for table in (model.get_input_embeddings(), model.lm_head):
            torch.nn.init.normal_(table.weight, std=0.1)
        torch.nn.init.constant_(model.vis_norm.weight, 0.3)
    model.processor = tiny_processor()
    return model


def released_model(fixture: Path, folder: Path) -> PaDTForConditionalGeneration:
    """The reference fixture's trained model, as a released folder."""
    from padt.checkpoints.loading import load_model
    from tests.parity.fixture import Fixture

    return load_model(Fixture(fixture).assemble_model(folder), dtype=torch.float32, device="cpu")
