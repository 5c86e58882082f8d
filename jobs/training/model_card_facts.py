"""What a training run writes into the model's card."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jobs.training.config import TrainConfig

if TYPE_CHECKING:
    from padt.pretrained.model_card import ModelFacts
    from pipelines.loader.plan import Plan


def training_facts(config: TrainConfig, plan: "Plan", steps: int) -> "ModelFacts":
    """Base model, data sets with their fingerprints, and the settings that matter, of a finished training."""
    mixture = plan.mixture
    sets = {n: index.fingerprint for n, index in zip(mixture.names, mixture.indices, strict=True)}
    detected = [
        name
        for spec, index in zip(mixture.specs, mixture.indices, strict=True)
        if spec.tasks.get("detect")
        for name in index.class_names
    ]
    return facts_of_run(config, steps, mixture=mixture.fingerprint(), sets=sets, classes=detected)


def facts_of_run(
    config: TrainConfig,
    steps: int,
    *,
    mixture: str,
    sets: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> "ModelFacts":
    """As ``training_facts``, where the data need not be there any more.

    Args:
        config: of the run.
        steps: optimiser steps done.
        mixture: fingerprint of the mixture.
        sets: fingerprints of its sets by name, as far as they are known.
        classes: that detection was trained to find; None = not known, and then the card names none, for those of the
            base alone would be taken for all.
    """
    from padt.pretrained.model_card import ModelFacts, base_name, read_facts

    before = read_facts(config.model)
    return ModelFacts(
        base_model=base_name(config.model),
        license=before.license,
        # What the base was trained on is in these weights too.
        data={**before.data, **(sets or {})},
        training={
            "steps": steps,
            "samples_per_step": config.samples_per_step,
            "learning_rate": config.optimizer.lr,
            "precision": config.precision,
            "seed": config.seed,
            "mixture": mixture,
        },
        classes=() if classes is None else tuple(dict.fromkeys([*before.classes, *classes])),
    )
