"""What a training run writes into the model's card."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jobs.training.config import TrainConfig

if TYPE_CHECKING:
    from padt.pretrained.model_card import ModelFacts
    from pipelines.loader.plan import Plan


def training_facts(config: TrainConfig, plan: "Plan", steps: int) -> "ModelFacts":
    """Base model, data sets with their fingerprints, and the settings that matter, of a finished training."""
    mixture = plan.mixture
    sets = {n: index.fingerprint for n, index in zip(mixture.names, mixture.indices, strict=True)}
    return facts_of_run(config, steps, mixture=mixture.fingerprint(), sets=sets)


def facts_of_run(
    config: TrainConfig, steps: int, *, mixture: str, sets: Mapping[str, str] | None = None
) -> "ModelFacts":
    """As ``training_facts``, where the data need not be there any more.

    Args:
        config: of the run.
        steps: optimiser steps done.
        mixture: fingerprint of the mixture.
        sets: fingerprints of its sets by name, as far as they are known.
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
    )
