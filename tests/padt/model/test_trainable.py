"""What is trained: parts by name, patterns, adapters; a wrong name is never passed over."""

import copy

import pytest

from padt.checkpoints.lora import attach
from padt.errors import UserError
from padt.model.trainable import PARTS, LoraSettings, freeze
from tests.padt.tiny import tiny_model


def trained_parts(model):
    return {
        part
        for part, prefixes in PARTS.items()
        for name, parameter in model.named_parameters()
        if name.startswith(prefixes) and parameter.requires_grad
    }


def test_parts_and_patterns_are_frozen_and_thawed():
    model = copy.deepcopy(tiny_model())
    freeze(model, ["vision", "bbox_prediction"])
    assert trained_parts(model) == {"language", "prototypes", "decoder"}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name for name in frozen if "bbox_prediction" in name} == {
        name for name, _ in model.named_parameters() if "bbox_prediction" in name
    }
    freeze(model, [])
    assert trained_parts(model) == set(PARTS)


def test_adapters_stand_in_for_the_language_model():
    pytest.importorskip("peft")
    model = copy.deepcopy(tiny_model())
    attach(model, LoraSettings(rank=2))
    freeze(model, ["vision"])
    language = {n for n, p in model.named_parameters() if n.startswith(PARTS["language"]) and p.requires_grad}
    assert language and all(".lora_" in name for name in language)
    assert trained_parts(model) == {"language", "prototypes", "decoder"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["vison"], "'vison' is no part and fits no parameter of the model: did you mean vision"),
        (["box_predictions"], "did you mean bbox_prediction"),
        (["zzz"], "parts are vision, language, prototypes, decoder"),
        (["("], "not a regular expression"),
        (["."], "Nothing is left to train"),
    ],
)
def test_wrong_names_are_refused(names, message):
    # A part that is silently trained, because its name was mistyped, is found too late.
    with pytest.raises(UserError, match=message):
        freeze(copy.deepcopy(tiny_model()), names)
