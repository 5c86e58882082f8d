"""What a training run writes into the model's card."""

from typing import TYPE_CHECKING

from jobs.training.config import TrainConfig

if TYPE_CHECKING:
    from padt.pretrained.model_card import ModelFacts
    from pipelines.loader.plan import Plan


def training_facts(config: TrainConfig, plan: "Plan", steps: int) -> "ModelFacts":
    """Base model, data sets with their fingerprints, and the settings that matter, of a finished training."""
    from padt.pretrained.model_card import ModelFacts, base_name, read_facts

    mixture = plan.mixture
    before = read_facts(config.model)
    return ModelFacts(
        base_model=base_name(config.model),
        license=before.license,
        # What the base was trained on is in these weights too.
        data={**before.data, **{n: index.fingerprint for n, index in zip(mixture.names, mixture.indices, strict=True)}},
        training={
            "steps": steps,
            "samples_per_step": config.batch_size * config.workers * config.gradient_accumulation_steps,
            "learning_rate": config.optimizer.lr,
            "precision": config.precision,
            "seed": config.seed,
            "mixture": mixture.fingerprint(),
        },
    )
