"""Sizes of a model without its weights: its configuration from where it lies, its parameters on the meta device."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.model_reference import find_model, is_remote
from jobs.training.config import TrainConfig
from padt.errors import UserError
from padt.pretrained.config import PaDTConfig, load_config
from padt.pretrained.hub import is_hub_id
from pipelines.io.storage import Folder

if TYPE_CHECKING:
    from padt.model.modeling import PaDTForConditionalGeneration

# Configurations of published models, for machines without their files and without a network.
PUBLISHED = Path(__file__).parent / "published"


@dataclass(frozen=True)
class ModelSizes:
    """Parameters of a model by part (``padt.model.trainable.PARTS``; adapters are apart), shared ones counted once.

    Attributes:
        parameters: all.
        trained: those that are trained.
    """

    parameters: dict[str, int]
    trained: dict[str, int]

    @property
    def total(self) -> int:
        """Parameters of all parts."""
        return sum(self.parameters.values())

    @property
    def total_trained(self) -> int:
        """Trained parameters of all parts."""
        return sum(self.trained.values())

    @classmethod
    def of(cls, model: Any) -> "ModelSizes":
        """Sizes of a model as it is prepared for training."""
        from padt.model.trainable import PARTS, is_adapter

        parameters, trained = Counter[str](), Counter[str]()
        for name, parameter in model.named_parameters():
            prefixes = (part for part, known in PARTS.items() if name.startswith(known))
            part = "adapters" if is_adapter(name) else next(prefixes, "language")
            parameters[part] += parameter.numel()
            trained[part] += parameter.numel() * parameter.requires_grad
        return cls(dict(parameters), dict(trained))


def configuration_of(reference: str) -> PaDTConfig:
    """Configuration of a model, without its weights.

    A Hub repository is asked last: its copy in the cache comes first, then what is known of published models.

    Args:
        reference: folder, URL, ``models:/padt@champion`` or ``OWNER/NAME`` on the Hub.

    Raises:
        UserError: it is nowhere, and why.
    """
    if not is_hub_id(reference):
        if is_remote(reference):
            text = Folder(reference).read_text("config.json")
            if text is None:
                raise UserError(f"There is no model at {reference}: it has no config.json.")
            return PaDTConfig.from_dict(json.loads(text))
        return load_config(find_model(reference).path)[0]
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(reference, "config.json")
    if isinstance(cached, str):
        return load_config(Path(cached).parent)[0]
    known = PUBLISHED / f"{reference.rpartition('/')[2]}.json"
    if known.is_file():
        return PaDTConfig.from_dict(json.loads(known.read_text(encoding="utf-8")))
    try:
        return load_config(Path(hf_hub_download(reference, "config.json")).parent)[0]
    except UserError:
        raise
    except Exception as error:
        # The Hub's client raises errors of many libraries.
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"The configuration of {reference} is not on this machine, and the Hub cannot be asked ({reason}): fetch "
            f"it where there is a network with `hf download {reference} config.json --local-dir FOLDER`, and plan with "
            "model=FOLDER."
        ) from error


def planned_model(config: TrainConfig, model_config: PaDTConfig) -> "PaDTForConditionalGeneration":
    """The model on the meta device, prepared for training: no weights are read or made."""
    import torch

    from jobs.training.trainable import skeleton

    return skeleton(config, torch.device("meta"), model_config)
