"""Configuration of PaDT: Qwen2.5-VL's, plus the prototypes, the object decoder and the order of image features."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, Qwen2_5_VLConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig

from padt.errors import UserError
from padt.pretrained.hub import model_folder, read_json

FeatureOrder = Literal["raster", "reference"]
Layout = Literal["hub", "released", "padt"]
# What the released section says about its own code, not about the decoder.
_RELEASED_NOTES = ("attn_implementation", "name")


def layout_of(values: Mapping[str, Any]) -> Layout:
    """Layout of a model folder, by the values of its ``config.json``."""
    if values.get("model_type") == "padt":
        return "padt"
    return "released" if values.get("vl_decoder") is not None else "hub"


class VLDecoderConfig(PreTrainedConfig):
    """The object decoder: groups of VRTs in, box, score and mask out.

    Attributes:
        hidden_size: width; equals the vision tower's, whose pre-merger features it adds to its image map.
        intermediate_size: width of the MLP on the query side.
        num_heads: attention heads; equals the vision tower's, whose rotary tables it shares.
        llm_hidden_state: width of the language model's states and of the prototypes.
        spatial_merge_size: ViT patches along one side of a patch.
        memory_budget_mb: MiB that decoding one chunk of objects may take, beside what is computed once for an image;
            an object that alone takes more is decoded alone. Autograd keeps the intermediates of all chunks.
        use_mask_loss: whether the released training computed masks; kept for round trips.
    """

    model_type = "padt_vl_decoder"
    base_config_key = "vl_decoder"

    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    llm_hidden_state: int = 2048
    spatial_merge_size: int = 2
    memory_budget_mb: int = 128
    use_mask_loss: bool = True


class PaDTConfig(Qwen2_5_VLConfig):
    """Configuration of :class:`padt.PaDTForConditionalGeneration`.

    Attributes:
        vl_decoder: the object decoder; sizes that are not given follow the vision and language configurations.
        feature_order: ``raster`` keeps pre-merger features, rotary tables, prototypes and the mask grid in one order;
            ``reference`` reproduces the released weights' mixed orders (``padt.model.vision``).
        use_visual_prototype_projection: prototypes are ``f_vp(patch feature)``; off = the raw merged features.
        score_calibration: coefficients that turn what is known of an object into its score (see
            ``padt.inference.calibration``); None = the decoder's score, as released.
        score_thresholds: scores above which mistakes are as rare as promised (``padt.inference.thresholds``), or None.
        prototype_rank: inner width of the low-rank map in ``f_vp``.
    """

    model_type = "padt"
    sub_configs_defaults = {
        "vision_config": Qwen2_5_VLVisionConfig,
        "text_config": Qwen2_5_VLTextConfig,
        "vl_decoder": SubConfigSpec(VLDecoderConfig, optional=True),
    }

    vl_decoder: dict | PreTrainedConfig | None = None
    feature_order: FeatureOrder = "raster"
    use_visual_prototype_projection: bool = True
    prototype_rank: int = 64
    score_calibration: dict[str, float] | None = None
    score_thresholds: dict[str, Any] | None = None

    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        if self.vl_decoder is None:
            self.vl_decoder = VLDecoderConfig(
                hidden_size=self.vision_config.hidden_size,
                intermediate_size=self.vision_config.intermediate_size,
                num_heads=self.vision_config.num_heads,
                llm_hidden_state=self.text_config.hidden_size,
                spatial_merge_size=self.vision_config.spatial_merge_size,
            )
        if self.feature_order not in ("raster", "reference"):
            raise ValueError(
                f"feature_order is {self.feature_order!r}; use 'raster', or 'reference' for released weights."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "PaDTConfig":
        """Make a configuration from the values of a ``config.json`` of any layout.

        A released one knows nothing of ``feature_order``: its weights need the mixed orders they were trained with.
        """
        values = dict(config_dict)
        # Says where a process that lacks this class finds it; each save names its own code file.
        values.pop("auto_map", None)
        layout = layout_of(values)
        if layout != "padt":
            values.pop("model_type", None)
            values.setdefault("feature_order", "reference" if layout == "released" else "raster")
        # Fields of the decoder that the released code would stumble over (``padt.checkpoints.layouts``).
        extra = values.pop("vl_decoder_extra", None) or {}
        if isinstance(values.get("vl_decoder"), dict):
            values["vl_decoder"] = extra | {k: v for k, v in values["vl_decoder"].items() if k not in _RELEASED_NOTES}
        return super().from_dict(values, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Nothing: a save has its own code file (``padt.pretrained.auto_code``) and needs no copy of this module."""

    @property
    def vrt_offset(self) -> int:
        """Token id of the VRT of patch 0: the number of embedding rows."""
        return self.text_config.vocab_size


def load_config(path: str | os.PathLike, feature_order: FeatureOrder | None = None) -> tuple[PaDTConfig, Layout]:
    """Read a model folder's configuration in any layout.

    Returns:
        The configuration, and the layout: ``hub``, ``released`` or ``padt``.

    Raises:
        UserError: no such folder, no configuration, a model of another family, or sizes that do not fit together.
    """
    folder = model_folder(path)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} has no config.json: it is not a model folder, or its saving did not finish.")
    values = read_json(file)
    family = values.get("model_type")
    if family not in ("padt", "qwen2_5_vl"):
        raise UserError(f"{folder} holds a model of type {family!r}: PaDT takes 'padt' and 'qwen2_5_vl' folders.")
    layout = layout_of(values)
    try:
        config = PaDTConfig.from_dict(values)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{file} cannot be used ({error}): put the value right, or copy the file again.") from error
    _check_sizes(file, config)
    if feature_order is not None:
        config.feature_order = feature_order
    return config, layout


def _check_sizes(file: Path, config: PaDTConfig) -> None:
    decoder, vision, text = config.vl_decoder, config.vision_config, config.text_config
    assert isinstance(decoder, VLDecoderConfig)  # the configuration fills it in
    pairs = (
        ("vl_decoder.hidden_size", decoder.hidden_size, "vision_config.hidden_size", vision.hidden_size),
        ("vl_decoder.num_heads", decoder.num_heads, "vision_config.num_heads", vision.num_heads),
        ("vl_decoder.llm_hidden_state", decoder.llm_hidden_state, "hidden_size", text.hidden_size),
        ("vision_config.out_hidden_size", vision.out_hidden_size, "hidden_size", text.hidden_size),
    )
    for name, value, other, wanted in pairs:
        if value != wanted:
            raise UserError(f"{file}: {name} is {value} but {other} is {wanted}; the two must be equal.")
