"""Interleaved timing: on a shared machine only ratios of neighbouring runs mean anything."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ratio:
    """How the second of two functions compares with the first.

    Attributes:
        first_ms, second_ms: median times in milliseconds.
        median: median over the rounds of second / first.
        low, high: quartiles of the same.
        cpu: median ratio of processor times, which other processes hardly disturb; no measure of a GPU's work.
    """

    first_ms: float
    second_ms: float
    median: float
    low: float
    high: float
    cpu: float

    @property
    def judged(self) -> float:
        """The ratio that limits hold: of processor time, which a busy machine leaves alone; of the clock on a GPU."""
        return self.median if torch.cuda.is_available() else self.cpu

    def __str__(self) -> str:
        return (
            f"{self.first_ms:8.1f} ms  {self.second_ms:8.1f} ms  ratio {self.median:.3f} "
            f"(quartiles {self.low:.3f} to {self.high:.3f}), of processor time {self.cpu:.3f}"
        )


def interleaved(first: Callable[[], object], second: Callable[[], object], rounds: int, warm_up: int = 3) -> Ratio:
    """Run two functions in turn, changing who goes first, and compare them round by round."""
    for _ in range(warm_up):
        first()
        second()
    times: Mapping[int, list[float]] = {0: [], 1: []}
    processor: Mapping[int, list[float]] = {0: [], 1: []}
    functions = (first, second)
    for index in range(rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            start, start_processor = time.perf_counter(), time.process_time()
            functions[which]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[which].append((time.perf_counter() - start) * 1000)
            processor[which].append(time.process_time() - start_processor)
    low, median, high = statistics.quantiles(_ratios(times), n=4)
    cpu = statistics.median(_ratios(processor))
    return Ratio(statistics.median(times[0]), statistics.median(times[1]), median, low, high, cpu)


def _ratios(times: Mapping[int, list[float]]) -> list[float]:
    return [second / first for first, second in zip(times[0], times[1], strict=True)]
