"""A tokenizer for the toy texts: Qwen2's kind (byte-level BPE, its special tokens and chat layout) with few rows.

It is trained on texts made from seeds, through the same templates that the tasks use, so that each word of the toy
vocabulary is one token; any other UTF-8 text still encodes, byte by byte where need be.
"""

from collections.abc import Iterator

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from padt.data.patches import pack_patches
from padt.data.tasks import GROUNDED_TASKS, NO_OBJECTS, TASKS, Sample, TaskOptions, render
from pipelines.toy.language import NUMBER_WORDS, grounded_captions, plain_turns, referring_expressions
from pipelines.toy.scenes import CATEGORY_NAMES, COLOURS, KINDS, SIZES, Scene, draw_scene, scene_rng

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SYSTEM_PROMPT = "You are a helpful assistant."

# One turn a message; the default system turn comes first unless the conversation brings its own. Same text as Qwen's.
CHAT_TEMPLATE = (
    "{%- if not messages or messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\\n" + SYSTEM_PROMPT + "<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part -%}{{ part.text }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# While training, every sign stands alone, so that no token joins a quote or a comma to a word or to each other:
# a label between quotes is then the same token wherever it stands.
_TRAINING_PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s*[\r\n]+|\s+(?!\S)|\s+"
_MAX_ROWS = 768
_CORPUS_SCENES = 400
_CORPUS_SEED = 20_240_917


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the toy tokenizer; the result is the same on every call and machine.

    ``save_pretrained`` writes the folder format of Hugging Face tokenizers, chat template included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _byte_level(_TRAINING_PATTERN)
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_ROWS,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer=trainer)
    tokenizer.pre_tokenizer = _byte_level(_QWEN_PATTERN)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def corpus() -> Iterator[str]:
    """Texts that the tokenizer is trained on: every template, on scenes of their own seed."""
    words = [*KINDS, *COLOURS, *SIZES, *NUMBER_WORDS]
    yield from [*words, " ".join(["", *words]), f"system\n{SYSTEM_PROMPT}\n", "user\n", "assistant\n", NO_OBJECTS]
    options = TaskOptions(class_names=CATEGORY_NAMES)
    for number in range(_CORPUS_SCENES):
        rng = scene_rng(_CORPUS_SEED, 0, number)
        scene = draw_scene(rng)
        row = _row(scene, rng)
        for task in GROUNDED_TASKS:
            column = TASKS[task].column
            for item in range(len(row[column]) if column else 1):
                yield from _texts(render(row, task, item, rng, options))
        for question, answer in plain_turns(scene, rng):
            yield from (question, answer)


def _texts(sample: Sample) -> Iterator[str]:
    yield sample.prompt
    yield from (piece for piece in sample.answer if isinstance(piece, str))


def _row(scene: Scene, rng: np.random.Generator) -> dict:
    """What a shard would store of the scene, as far as texts depend on it: every object lies in one patch."""
    patches = pack_patches(np.array([[True]]))
    captions = []
    for text in grounded_captions(scene, range(len(scene.shapes)), rng, count=8):
        for index in range(len(scene.shapes)):
            text = text.replace(f"<box_id: {index}/>", f"<|Obj_{index}|>")
        captions.append({"text": text, "objects": list(range(len(scene.shapes)))})
    return {
        "key": "toy/corpus",
        "image": {"bytes": b"", "path": None},
        "grid_h": 1,
        "grid_w": 1,
        "objects": [
            {"label": shape.category, "box": (0.0, 0.0, 1.0, 1.0), "iscrowd": False, "patches": patches, "rle": None}
            for shape in scene.shapes
        ],
        "references": [{"text": each.text, "objects": [each.shape]} for each in referring_expressions(scene)],
        "captions": captions,
    }


def _byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
