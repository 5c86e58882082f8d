"""Stages that make models without training them: one that has learned nothing, and one in another layout."""

import posixpath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

from pydantic import Field

from jobs.recipes.stage import Stage, StageContext
from pipelines.io.storage import Folder


class ToyModelStage(Stage):
    """A plain Qwen2.5-VL of the toy's kind that has learned nothing yet: ``model/`` below the stage's folder.

    Attributes:
        seed: of the weights.
        vision, language: values of Qwen2.5-VL's configuration in place of the toy's, for a model of another size.
    """

    kind: ClassVar[str] = "toy-model"
    seed: int = Field(0, ge=0)
    vision: dict[str, Any] = Field(default_factory=dict)
    language: dict[str, Any] = Field(default_factory=dict)

    def perform(self, context: StageContext) -> dict[str, Any]:
        """See ``jobs.training.toy_base.toy_model``."""
        from jobs.training.toy_base import toy_model, toy_processor
        from padt.checkpoints.export import export
        from padt.checkpoints.loading import save_model
        from pipelines.toy.model_config import toy_config

        model = toy_model(self.seed, toy_config(vision=self.vision, language=self.language))
        target = Folder(posixpath.join(context.folder, "model"))
        with TemporaryDirectory() as scratch:
            save_model(model, toy_processor(model.config.vrt_offset), Path(scratch) / "padt")
            target.publish(lambda folder: export(Path(scratch) / "padt", folder, "hub"), "config.json")
        return {"model": target.url, "parameters": sum(parameter.numel() for parameter in model.parameters())}


class ExportStage(Stage):
    """Write a model in the layout that other code reads: ``model/`` below the stage's folder.

    Attributes:
        model: model folder or registry alias.
        to: as `padt export --to` has it; ``hub`` is plain Qwen2.5-VL, from which prototypes and decoder start fresh.
    """

    kind: ClassVar[str] = "export"
    model: str
    to: Literal["hub", "released", "padt"]

    def perform(self, context: StageContext) -> dict[str, Any]:
        """See ``jobs.registry.export.run_export``."""
        from jobs.registry.export import run_export

        target = Folder(posixpath.join(context.folder, "model"))
        results: list[Any] = []
        target.publish(lambda folder: results.append(run_export(self.model, folder, self.to)), "config.json")
        return {"model": target.url, "tensors": results[0].tensors, "dropped": len(results[0].dropped)}
