"""MLflow side of a recipe: one parent run, a child for each stage (training stages make their own)."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jobs.common.mlflow_run import TrackedRun, start_run, tracking_uri
from jobs.evaluation.store import REPORT_FILES
from pipelines.inspection.report import REPORT_NAME
from pipelines.io.storage import Folder

MEMORY = "recipe.json"


class RecipeTracker:
    """Holds the parent run. The run is opened by the first stage that works, so that skipping all touches nothing.

    Args:
        name: name of the recipe and of the run.
        experiment: MLflow experiment.
        folder: run folder; ``recipe.json`` in it remembers the run, so that a rerun goes on with it.
        parameters: options of all stages, by stage. MLflow never changes a parameter: other ones are another run.
    """

    def __init__(self, name: str, experiment: str, folder: str, parameters: Mapping[str, Any]) -> None:
        self._name = name
        self._experiment = experiment
        self._folder = Folder(folder)
        self._run: TrackedRun | None = None
        remembered = json.loads(self._folder.read_text(MEMORY) or "{}")
        self._parameters = parameters
        self._digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]
        self.run_id: str | None = remembered.get("run_id") if remembered.get("parameters") == self._digest else None
        self.uri: str = remembered.get("tracking_uri") or tracking_uri()

    def open(self) -> str:
        """Start the parent run, or go on with the remembered one; returns its id."""
        if self._run is None:
            self._run = start_run(self._experiment, self._name, run_id=self.run_id, tags={"padt.recipe": self._name})
            self._run.log_params(self._parameters)
            self.run_id, self.uri = self._run.run_id, tracking_uri()
            memory = {"run_id": self.run_id, "tracking_uri": self.uri, "parameters": self._digest}
            self._folder.write(MEMORY, json.dumps(memory) + "\n")
        return self._run.run_id

    def evaluated(self, stage: str, folder: str, metrics: Mapping[str, float]) -> None:
        """Enter an evaluation as a child run, with what it left in its folder: scores, answers and pictures."""
        child = start_run(self._experiment, stage, parent_run_id=self.open(), tags={"padt.stage": "evaluate"})
        child.log_params(self._parameters[stage])
        child.log_summary(0, metrics)
        left = Folder(folder)
        for name in REPORT_FILES:
            if left.exists(name):
                child.log_file(name, left.read(name))
        child.finish()

    def performed(self, stage: str, kind: str, folder: str, result: Mapping[str, Any]) -> None:
        """Enter a stage that has no run of its own as a child run: prepared sets as inputs, with their reports."""
        child = start_run(self._experiment, stage, parent_run_id=self.open(), tags={"padt.stage": kind})
        child.log_params(self._parameters[stage])
        sets = result.get("sets") or {}
        if sets:
            child.log_sets(sets)
        for name, facts in sets.items():
            report = Folder(facts["url"])
            if report.exists(REPORT_NAME):
                child.log_file(f"{name}-{REPORT_NAME}", report.read(REPORT_NAME))
        child.finish()

    def close(self, status: str, metrics: Mapping[str, float]) -> None:
        """End the parent run with the final metrics; nothing where no stage worked."""
        if self._run is None:
            return
        if metrics:
            self._run.log_summary(0, metrics)
        self._run.finish(status)
        self._run = None
