"""What makes two runs the same: the options that shape the weights, and the content of model and data."""

import json
import posixpath
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.common.config_tree import differences, flatten
from jobs.common.model_reference import fetched, listing
from jobs.training.config import TrainConfig
from padt.checkpoints.fingerprint import fingerprint
from padt.errors import UserError
from padt.pretrained.hub import is_hub_id
from pipelines.dataset.manifest import open_set
from pipelines.io.storage import Folder

RUN = "run.json"
"""File of a training's folder with its identity and its MLflow run."""


@dataclass(frozen=True)
class RunIdentity:
    """Everything that shapes a run's weights.

    Attributes:
        options: plain values by dotted key; ``model`` and the sets' ``url`` stand for what lies there.
        model_files: names, sizes and times of the model's files: where they are as before, nobody reads the weights
            to see that they are the same.
    """

    options: dict[str, Any]
    model_files: str = ""

    @classmethod
    def of(cls, config: TrainConfig, saved: "RunIdentity | None" = None) -> "RunIdentity":
        """The identity of a configuration.

        Args:
            config: with absolute paths.
            saved: of an earlier run: what is gone (a finished run may outlive its model and data) is taken from there.
        """
        before: Mapping[str, Any] = saved.options if saved else {}
        options = flatten(config.shaping_options())
        files = ""
        if is_hub_id(config.model) or Folder(config.model).exists("config.json"):
            model = Path(fetched(config.model))
            files = listing(model)
            same = saved is not None and saved.model_files == files
            options["model"] = before["model"] if same else f"content {model_content(model)}"
        elif "model" in before:
            options["model"] = before["model"]
        for number, each in enumerate(config.data.sets):
            key = f"data.sets.{number}.url"
            if Folder(each.url).exists():
                manifest = open_set(each.url)
                options[key] = f"{manifest.name}, content {manifest.fingerprint[:16]}"
            elif key in before:
                options[key] = before[key]
        return cls(json.loads(json.dumps(options)), files)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RunIdentity":
        """From what ``to_json`` gave."""
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def check_same(self, saved: "RunIdentity", what: str, fix: str) -> None:
        """Refuse to mix two runs.

        Args:
            saved: the run that lies there.
            what: names it, as the error begins: ``OUTPUT holds a finished run``.
            fix: what the user can do.

        Raises:
            UserError: names the keys that differ, with both values.
        """
        found = differences(saved.options, self.options)
        if found:
            more = f"; and {len(found) - 6} more" if len(found) > 6 else ""
            raise UserError(f"{what} of another configuration ({'; '.join(found[:6])}{more}): {fix}")


def training_run_id(model: str) -> str | None:
    """MLflow run of the training that left a model in its folder's ``model/``; None where nobody knows of one."""
    text = Folder(posixpath.dirname(model.rstrip("/")) or ".").read_text(RUN)
    return json.loads(text).get("run_id") if text is not None else None


def model_content(folder: Path) -> str:
    """Hash of a model's files; of an adapter's and those of its base."""
    from padt.checkpoints.lora import base_of, is_adapter_folder

    own = fingerprint(folder)[:16]
    return f"{own} on {fingerprint(base_of(folder))[:16]}" if is_adapter_folder(folder) else own
