"""The model card: what a saved model is, where it comes from, what it was measured at, and how to load it.

``README.md`` beside the weights, with Hugging Face's YAML front matter. What is known of a model's making is kept there
under the key ``padt``, so that a later save, evaluation or export can go on from it.
"""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, metadata_load

from padt.pretrained.config import Layout, PaDTConfig
from padt.pretrained.hub import is_hub_id

logger = logging.getLogger(__name__)

CARD = "README.md"
_PIPELINE = "image-text-to-text"
TAGS = ("padt", "visual-grounding", "object-detection", "referring-expression-segmentation", "image-captioning")
# Licence of weights whose name says where they come from: identifier, name and address as the Hub has them.
_LICENSES = (
    (
        "Qwen/Qwen2.5-VL-3B",
        {
            "license": "other",
            "license_name": "qwen-research",
            "license_link": "https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/LICENSE",
        },
    ),
    ("Qwen/Qwen2.5-VL-7B", {"license": "apache-2.0"}),
    ("PaDT-MLLM/", {"license": "apache-2.0"}),
)
# By whether it is plain Qwen2.5-VL.
_WHAT_IT_IS = (
    "A Qwen2.5-VL model that answers with pieces of the picture: its answers hold Visual Reference Tokens, each for "
    "one 28x28-pixel patch of the image, and an object decoder turns each group of them into a box, a mask and a score "
    "(Patch-as-Decodable-Token, arXiv 2510.01954).",
    "The vision tower and the language model of a PaDT model (arXiv 2510.01954), without its prototypes and its object "
    "decoder: it answers with words.",
)
_AUTO = (
    "`AutoModelForImageTextToText` and `AutoProcessor` of transformers 5 open it with `trust_remote_code=True`: the "
    "folder's `padt_auto.py` takes the classes from the package `padt`, which has to be installed (`pip install .` in "
    "a checkout of PaDT on Ray)."
)
_LOADING: dict[str, str] = {
    "padt": '```python\nimport padt\n\nmodel = padt.load_model("THIS_FOLDER")\n'
    '(answer,) = model.predict(["photo.jpg"], ["Please describe this image."])\nprint(answer.text)\n```\n\n'
    f"{_AUTO} Code that only knows Qwen2.5-VL does not read this folder; `padt export` writes one that it does.",
    "released": f"With the released PaDT code, or with `padt.load_model`. {_AUTO} Without `trust_remote_code`, plain "
    "transformers takes it for Qwen2.5-VL and leaves the object decoder out.",
    "hub": "With `Qwen2_5_VLForConditionalGeneration` and `AutoProcessor` of transformers. `padt.load_model` takes it "
    "as a base for training.",
}
# In the released layout, but not for the released code.
_LOADING_RASTER = (
    "With `padt.load_model`. **Not with the released PaDT code**: the weights are for image features in raster order, "
    "that code does not know the field `feature_order` and takes its own order, so that its boxes and masks would be "
    f"wrong. {_AUTO} Without `trust_remote_code`, plain transformers takes the folder for Qwen2.5-VL and leaves the "
    "object decoder out."
)
_USE = (
    "Detection of named classes, boxes and masks of what a sentence refers to, and captions grounded in the picture. "
    "A score says how well box and object agree, not how certain the label is. Objects much smaller than a patch are "
    "found badly, a sentence that refers to nothing may still be answered with an object, and videos are not "
    "supported. Not for decisions about people, and not for use where a wrong box is a danger. The biases of the base "
    "model and of the training data remain."
)
_PLAIN_USE = (
    "Questions about pictures, answered in words, as far as the training for grounding has left that ability. The "
    "biases of the base model and of the training data remain."
)
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model's making.

    Attributes:
        base_model: what it was trained from: a Hub name where that is known, else the name of a folder.
        license: identifier of the weights' licence, where somebody has settled it.
        data: fingerprint of each training set by its name.
        metrics: scores by name ``eval/<set>/<metric>``.
        measured_on: fingerprint of each evaluation set by its name.
        training: settings worth knowing, such as steps and seed, by name.
        classes: names that detection was trained to find; empty where that is not recorded.
    """

    base_model: str | None = None
    license: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured_on: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def _loading(config: PaDTConfig, layout: Layout) -> str:
    if layout == "released" and config.feature_order == "raster":
        return _LOADING_RASTER
    return _LOADING[layout]


def base_name(reference: str | os.PathLike) -> str:
    """Name of a base model for a card: that of its own card, its Hub name where known, else the folder's name.

    Paths of somebody's machine do not belong in a card.
    """
    text = os.fspath(reference)
    if is_hub_id(text):
        return text
    cached = _CACHED.search(Path(text).expanduser().resolve().as_posix() + "/")
    if cached:
        return f"{cached[1]}/{cached[2]}"
    path = Path(text)
    # Training leaves its model in RUN/model.
    return read_facts(path).base_model or (path.parent.name if path.name == "model" else path.name)


def read_facts(folder: str | os.PathLike) -> ModelFacts:
    """Facts of a model folder's card; empty where it has none, or one that is not ours."""
    values = _front_matter(Path(folder) / CARD).get("padt")
    if not isinstance(values, dict):
        return ModelFacts()
    kept: dict[str, Any] = {}
    for name, usual in asdict(ModelFacts()).items():
        value = values.get(name)
        if isinstance(value, list) and isinstance(usual, tuple):
            kept[name] = tuple(map(str, value))
        elif isinstance(value, dict) and isinstance(usual, dict) or isinstance(value, str) and usual is None:
            kept[name] = value
    return ModelFacts(**kept)


def add_scores(
    folder: str | os.PathLike, metrics: Mapping[str, float], measured_on: Mapping[str, str], config: PaDTConfig
) -> None:
    """Write scores into a model folder's card, beside what it says already."""
    facts = read_facts(folder)
    write_card(
        folder,
        replace(facts, metrics={**facts.metrics, **metrics}, measured_on={**facts.measured_on, **measured_on}),
        config,
    )


def write_card(folder: str | os.PathLike, facts: ModelFacts, config: PaDTConfig, layout: Layout = "padt") -> Path:
    """Write the model card of a folder; it appears only when whole."""
    target = Path(folder) / CARD
    partial = target.with_name(f".{CARD}.part")
    partial.write_text(model_card(facts, config, layout), encoding="utf-8")
    partial.replace(target)
    return target


def model_card(facts: ModelFacts, config: PaDTConfig, layout: Layout = "padt") -> str:
    """Text of a model card: front matter, then what a person wants to know."""
    text = config.text_config
    origin = f"Trained from `{facts.base_model}`." if facts.base_model else "What it was trained from is not recorded."
    size = f"{text.num_hidden_layers} layers of width {text.hidden_size}, {config.vrt_offset:,} text tokens"
    parts = [
        "# Qwen2.5-VL taken out of a PaDT model" if layout == "hub" else "# PaDT model",
        f"{_WHAT_IT_IS[layout == 'hub']} {origin} Language model: {size}."
        + ("" if layout == "hub" else f" Image features in {config.feature_order} order."),
        "## How to load it",
        _loading(config, layout),
        "## Intended use and limits",
        _PLAIN_USE if layout == "hub" else _USE,
        "## Licence",
        _license_note(facts),
        "## Training data",
        _table(("set", "fingerprint"), facts.data.items()) or "Not recorded.",
    ]
    if facts.classes:
        parts.append(f"Detection was trained to find {len(facts.classes):,} classes: {', '.join(facts.classes)}.")
    if facts.training:
        parts += ["## Training", _table(("setting", "value"), facts.training.items())]
    parts += ["## Scores", _scores(facts)]
    return f"---\n{_metadata(facts, layout).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(facts: ModelFacts, layout: Layout) -> ModelCardData:
    plain = layout == "hub"
    hub_name = (facts.base_model or "").split(" ")[0]
    results = _results(facts.metrics)
    return ModelCardData(
        library_name="transformers" if plain else "padt",
        pipeline_tag=_PIPELINE,
        tags=list(TAGS[:1] if plain else TAGS),
        base_model=hub_name if re.fullmatch(r"[\w.-]+/[\w.-]+", hub_name) else None,
        datasets=sorted(facts.data) or None,
        model_name="PaDT" if results else None,
        eval_results=results or None,
        padt={key: _plain(value) for key, value in asdict(facts).items()},
        **_license(facts),
    )


def _plain(value: Any) -> Any:
    """As YAML has it."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _license(facts: ModelFacts) -> dict[str, Any]:
    if facts.license:
        return {"license": facts.license}
    for prefix, values in _LICENSES:
        if facts.base_model and facts.base_model.startswith(prefix):
            return dict(values)
    return {"license": "other", "license_name": "as-the-base-model"}


def _license_note(facts: ModelFacts) -> str:
    known = _license(facts)
    name = known.get("license_name") or known["license"]
    if name == "as-the-base-model":
        name = "the licence of the base model"
    return (
        f"The weights are under {name}, as far as their origin tells; training data may add conditions of their own. "
        "The code of PaDT on Ray is under Apache-2.0."
    )


def _results(metrics: Mapping[str, float]) -> list[EvalResult]:
    results = []
    for key, value in sorted(metrics.items()):
        data, _, metric = key.rpartition("eval/")[2].rpartition("/")
        data = data or "unknown"
        results.append(EvalResult(_PIPELINE, data, data, metric, float(value)))
    return results


def _scores(facts: ModelFacts) -> str:
    if not facts.metrics:
        return "Not measured yet: `padt evaluate MODEL DATA`, then `padt register MODEL --evaluation FOLDER`."
    table = _table(("metric", "value"), [(key, f"{value:.4f}") for key, value in sorted(facts.metrics.items())])
    if not facts.measured_on:
        return table
    return f"{table}\n\nMeasured on\n\n" + _table(("set", "fingerprint"), facts.measured_on.items())


def _table(columns: tuple[str, str], rows: Any) -> str:
    lines = [f"| {key} | {value} |" for key, value in ((_cell(a), _cell(b)) for a, b in rows)]
    return "\n".join([f"| {columns[0]} | {columns[1]} |", "| --- | --- |", *lines]) if lines else ""


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _front_matter(card: Path) -> dict[str, Any]:
    import yaml

    if not card.is_file():
        return {}
    try:
        return metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        # A training must not fail at its end over the card of its base.
        logger.warning("%s cannot be read and is passed over (%s)", card, error)
        return {}
