"""What a training run and an evaluation write into the model's card."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.training.config import TrainConfig
from padt.errors import UserError

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
            "samples_per_step": config.batch_size * config.workers * config.accumulation,
            "learning_rate": config.optimizer.lr,
            "precision": config.precision,
            "seed": config.seed,
            "mixture": mixture.fingerprint(),
        },
    )


def note_scores(folder: Path, scores: Mapping[str, float], data: Mapping[str, str]) -> bool:
    """Write an evaluation's scores into the card of a model folder; False where the folder cannot be written to."""
    from padt.checkpoints.loading import load_config
    from padt.pretrained.model_card import add_scores

    if not scores:
        return False
    try:
        config, layout = load_config(folder)
        if layout == "padt":
            add_scores(folder, scores, data, config)
        return layout == "padt"
    except (OSError, UserError):
        # A model in a place of others, or one that only looks like a model: registration does not hang on its card.
        return False
