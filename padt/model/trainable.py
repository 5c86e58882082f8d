"""Which parameters of a model are trained: its parts by name, patterns of names, and adapters in place of a part."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from padt.errors import UserError, check_range, look_up, suggestion

# Prefixes of the parameters of each part of the model.
PARTS = {
    "vision": ("model.visual.",),
    "language": ("model.language_model.", "lm_head."),
    "prototypes": ("vis_norm.", "vis_proj."),
    "decoder": ("vl_decoder.",),
}
# The linear maps of a layer of the language model.
LINEAR_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank updates ``W + alpha / rank * B A`` of the language model's linear maps (``padt.checkpoints.lora``).

    Attributes:
        rank: inner width.
        alpha: scale.
        dropout: share of an adapter's inputs that are dropped in training.
        targets: linear maps of each layer of the language model, of ``LINEAR_TARGETS``.

    Raises:
        UserError: a target is unknown (names the nearest), there is none, or a value is out of its bounds.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = LINEAR_TARGETS

    def __post_init__(self) -> None:
        check_range("lora.rank", self.rank, 1)
        check_range("lora.alpha", self.alpha, 1)
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout is {self.dropout}: give a share from 0 to below 1.")
        if not self.targets:
            raise UserError(f"lora.targets is empty: name at least one of {', '.join(LINEAR_TARGETS)}.")
        for target in self.targets:
            look_up("lora.targets: linear map", target, dict.fromkeys(LINEAR_TARGETS))


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to a LoRA adapter."""
    return ".lora_" in name


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Train everything but what is named; where adapters are attached, they stand in for the language model.

    Args:
        model: with or without adapters.
        names: parts (``PARTS``) or regular expressions that are searched for in the names of parameters.

    Raises:
        UserError: a name fits no parameter, or nothing is left to train.
    """
    found = [name for name, _ in model.named_parameters()]
    check_names(names, found)
    adapted = any(is_adapter(name) for name in found)
    frozen = [expression(name) for name in names]
    for name, parameter in model.named_parameters():
        replaced = adapted and name.startswith(PARTS["language"]) and not is_adapter(name)
        parameter.requires_grad_(not replaced and not any(re.search(pattern, name) for pattern in frozen))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("Nothing is left to train: take a name out of freeze.")


def expression(name: str) -> str:
    """The regular expression of a name: a part of the model stands for all of its parameters."""
    return f"^({'|'.join(re.escape(prefix) for prefix in PARTS[name])})" if name in PARTS else name


def check_names(names: Iterable[str], parameters: Sequence[str]) -> None:
    """Make sure that each part or pattern fits a parameter.

    Raises:
        UserError: one fits none (names the nearest part or module), or is no regular expression.
    """
    modules = {word for parameter in parameters for word in parameter.split(".") if not word.isdigit()}
    for name in names:
        try:
            fits = any(re.search(expression(name), parameter) for parameter in parameters)
        except re.error as error:
            raise UserError(f"The pattern {name!r} is not a regular expression: {error}.") from error
        if not fits:
            near = suggestion(name, [*PARTS, *sorted(modules)])
            hint = near if near.startswith("did") else f"parts are {', '.join(PARTS)}."
            raise UserError(f"{name!r} is no part and fits no parameter of the model: {hint}")
