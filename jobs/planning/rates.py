"""Measured rates of training and reading, of a file or of a run's metrics: a plan's times stand on nothing else.

The file is JSON, ``{"rates": [...]}``; each entry has the fields of ``Rate``. ``python -m tests.gpu`` and other
measurements may write such files.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml

from jobs.common.config_tree import build_config
from padt.errors import UserError
from pipelines.io.storage import Folder

RUN_CONFIG, RUN_METRICS = "config.yaml", "metrics.jsonl"
# Records of a run's first steps hold what is warmed up once.
_WARM_RECORDS = 1
_SAME_SIZE = 0.02


@dataclass(frozen=True)
class Rate:
    """What was measured.

    Attributes:
        parameters: of the model that was trained.
        samples_per_s: trained in a second by one worker.
        source: where it was measured.
        gpu: whether the worker had a GPU.
        device: its name, where it is known.
        read_samples_per_s: encoded in a second by one reading process, where it was measured.
    """

    parameters: int
    samples_per_s: float
    source: str
    gpu: bool = False
    device: str = ""
    read_samples_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.samples_per_s <= 0 or self.parameters <= 0:
            raise UserError(f"The rate of {self.source} is not above 0: leave it out of the file.")


def load_rates(place: str) -> list[Rate]:
    """Rates of a JSON file, or of a run's folder.

    Raises:
        UserError: there is neither, or it holds no rate.
    """
    if place.endswith(".json"):
        folder, _, name = place.rpartition("/")
        text = Folder(folder or ".").read_text(name)
        if text is None:
            raise UserError(f"There is no file of rates {place}: give one, or the folder of a run that was trained.")
        try:
            return [Rate(**{"source": place, **entry}) for entry in json.loads(text)["rates"]]
        except (ValueError, KeyError, TypeError) as error:
            known = ", ".join(each.name for each in fields(Rate))
            raise UserError(
                f"{place} is no file of rates ({error!r}): a mapping with the key rates, a list of {known}."
            ) from error
    return [rate_of_run(place)]


def rate_of_run(output: str) -> Rate:
    """The rate that a run's metrics tell.

    Raises:
        UserError: the folder holds no run, or one that has told nothing yet.
    """
    from jobs.planning.sizes import ModelSizes, configuration_of, planned_model
    from jobs.training.config import TrainConfig

    folder = Folder(output)
    configuration, lines = folder.read_text(RUN_CONFIG), folder.read_text(RUN_METRICS)
    records: list[dict[str, Any]] = [json.loads(line) for line in (lines or "").splitlines()]
    told = [each["perf/samples_per_s"] for each in records if "perf/samples_per_s" in each]
    if configuration is None or not told:
        raise UserError(f"{output} holds no run with metrics: give a folder that `padt train` has filled, or JSON.")
    config = build_config(TrainConfig, yaml.safe_load(configuration), source=f"{output}/{RUN_CONFIG}")
    sizes = ModelSizes.of(planned_model(config, configuration_of(config.model)))
    rate = statistics.median(told[_WARM_RECORDS:] or told) / config.workers
    return Rate(sizes.total, rate, output, config.gpu)


def fitting_rate(rates: Sequence[Rate], parameters: int, gpu: bool) -> Rate | None:
    """The rate of a model of this size on this kind of device; None where nobody has measured one."""
    near = [each for each in rates if each.gpu == gpu and abs(each.parameters / parameters - 1) < _SAME_SIZE]
    return min(near, key=lambda each: abs(each.parameters - parameters), default=None)
