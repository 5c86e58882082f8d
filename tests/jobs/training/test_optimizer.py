"""Learning rate and parameter groups."""

import copy

import pytest
from torch import nn

from jobs.training.optimizer import OptimizerConfig, learning_rate, make_adamw, parameter_groups, set_learning_rate
from padt.errors import UserError
from padt.model.trainable import freeze


def test_paper_schedule_falls_linearly_from_the_first_step():
    config = OptimizerConfig(lr=2e-5)
    assert learning_rate(0, 100, config) == 2e-5
    assert learning_rate(50, 100, config) == pytest.approx(1e-5)
    assert learning_rate(99, 100, config) == pytest.approx(2e-7)


def test_warmup_then_cosine_to_the_floor():
    config = OptimizerConfig(lr=1.0, warmup_fraction=0.1, schedule="cosine", min_lr_ratio=0.02)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert max(rates) == 1.0 and rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(100, 100, config) == pytest.approx(0.02)


def test_constant_schedule():
    config = OptimizerConfig(lr=1.0, schedule="constant", warmup_steps=2)
    assert [learning_rate(step, 10, config) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]


def test_groups_follow_patterns():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    config = OptimizerConfig(lr=1.0, weight_decay=0.1, lr_scale={"^2": 0.3})
    freeze(model, ["^1.weight"])
    groups, scales = parameter_groups(model, config)
    optimizer = make_adamw(groups, config)
    set_learning_rate(optimizer, 0.5, scales)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found[id(model[0].weight)] == (0.5, 0.1)
    assert found[id(model[0].bias)] == (0.5, 0.0)
    assert found[id(model[2].weight)] == (0.15, 0.1)
    assert id(model[1].weight) not in found and not model[1].weight.requires_grad
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters())) - 1


def test_patterns_that_fit_nothing_are_errors():
    # A rate for a part whose name changed, or that was mistyped, is missed too late.
    with pytest.raises(UserError, match="'visual' is no part and fits no parameter"):
        parameter_groups(nn.Linear(1, 1), OptimizerConfig(lr_scale={"visual": 0.1}))
    with pytest.raises(UserError, match="not a regular expression"):
        parameter_groups(nn.Linear(1, 1), OptimizerConfig(lr_scale={"(": 0.1}))


def test_parts_of_the_model_have_rates_of_their_own():
    from tests.padt.tiny import tiny_model

    model = copy.deepcopy(tiny_model())
    config = OptimizerConfig(lr=1.0, lr_scale={"vision": 0.1, "prototypes": 2.0, "bbox": 3.0})
    freeze(model, ["language"])
    groups, scales = parameter_groups(model, config)
    rates = {id(p): scale for group, scale in zip(groups, scales, strict=True) for p in group["params"]}
    found = {}
    for name, parameter in model.named_parameters():
        found.setdefault(".".join(name.split(".")[:2]), set()).add(rates.get(id(parameter)))
    assert found["model.visual"] == {0.1} and found["vis_norm.weight"] == {2.0}
    assert found["vl_decoder.bbox_prediction"] == {3.0} and found["vl_decoder.score_prediction"] == {1.0}
    assert found["model.language_model"] == {None}
