"""Which answers a report shows, and what it says of each: a matter of set and answers alone."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobs.evaluation.report.analysis import SetAnalysis
from jobs.evaluation.samples import EvalSample
from padt.metrics.analysis.refer import REFER_OUTCOMES

_SAID = {"malformed": "missed", "nothing_there": "on nothing"}


@dataclass(frozen=True)
class Example:
    """One answer to show.

    Attributes:
        sample: the question.
        said: what became of it, in a few words.
    """

    sample: EvalSample
    said: str


@dataclass
class PictureGrade:
    """How one answer about a whole picture did.

    Attributes:
        right: objects that were found.
        wrong: mistakes by kind.
        weight: of the mistakes; a detection weighs its score, a missed object 1.
    """

    right: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    weight: float = 0.0

    @property
    def f1(self) -> float:
        """Of the picture's objects; 1 where there is nothing to find and nothing was found."""
        return 2 * self.right / (2 * self.right + self.wrong.total()) if self.right or self.wrong else 1.0


class Selection:
    """Chooses examples.

    Args:
        analysis: of the answers.
    """

    def __init__(self, analysis: SetAnalysis) -> None:
        self._analysis = analysis
        self._grades = _graded(analysis)

    def worst(self, task: str, number: int) -> list[Example]:
        """The worst answers of a task, at most one of a picture; right ones are never among them.

        - detection and captions: lowest F1 of objects, then most mistakes;
        - sentences: each kind of failure in turn, the most frequent first, and of a kind the surest answers first.
        """
        samples = self._analysis.data.of_task(task)
        if task == "refer":
            return self._shown(self._failures(samples), number)
        wrong = [sample for sample in samples if self._grades[sample.id].wrong]
        wrong.sort(key=lambda one: (self._grades[one.id].f1, -self._grades[one.id].weight, one.id))
        return self._shown(wrong, number)

    def at_random(self, task: str, number: int, without: Iterable[Example] = ()) -> list[Example]:
        """Answers of a task drawn by the ids of their samples, from pictures that ``without`` does not show."""
        samples = self._analysis.data.of_task(task)
        order = sorted(samples, key=lambda one: hashlib.sha256(one.id.encode()).digest())
        return self._shown(order, number, {example.sample.row for example in without})

    def _failures(self, samples: Iterable[EvalSample]) -> list[EvalSample]:
        outcomes = self._analysis.sentences
        wrong = [one for one in samples if outcomes[one.id].kind != "right"]
        wrong.sort(key=lambda one: (-(outcomes[one.id].score or 0.0), one.id))
        numbers = Counter(outcomes[one.id].kind for one in wrong)
        kinds = sorted(numbers, key=lambda kind: (-numbers[kind], list(REFER_OUTCOMES).index(kind)))
        seen: Counter[str] = Counter()
        turns = {}
        for one in wrong:
            kind = outcomes[one.id].kind
            turns[one.id] = (seen[kind], kinds.index(kind))
            seen[kind] += 1
        return sorted(wrong, key=lambda one: turns[one.id])

    def _shown(self, samples: Iterable[EvalSample], number: int, taken: Iterable[int] = ()) -> list[Example]:
        rows = set(taken)
        chosen: list[Example] = []
        for sample in samples:
            if len(chosen) < number and sample.row not in rows:
                rows.add(sample.row)
                chosen.append(Example(sample, self._said(sample)))
        return chosen

    def _said(self, sample: EvalSample) -> str:
        if sample.task == "refer":
            outcome = self._analysis.sentences[sample.id]
            known = (("score", outcome.score), ("IoU", outcome.iou))
            numbers = ", ".join(f"{name} {value:.2f}" for name, value in known if value is not None)
            return f"{in_words(outcome.kind)} ({numbers})" if numbers else in_words(outcome.kind)
        wrong = self._grades[sample.id].wrong
        told = ", ".join(f"{count} {_SAID.get(kind, in_words(kind))}" for kind, count in wrong.items())
        told = told or "nothing wrong"
        return f"{told}; the answer is malformed" if sample.id in self._analysis.malformed else told


def in_words(kind: str) -> str:
    """A kind of mistake or outcome as people read it."""
    return kind.replace("_", " ")


def _graded(analysis: SetAnalysis) -> dict[str, PictureGrade]:
    grades = {sample.id: PictureGrade() for sample in analysis.data.samples if sample.task != "refer"}
    boxes = analysis.boxes
    for one in boxes.detections if boxes is not None else ():
        grade = grades[one.image]
        grade.right += one.right
        if one.mistake is not None:
            grade.wrong[one.mistake] += 1
            grade.weight += one.score
    for image, _, kind in boxes.missed if boxes is not None else ():
        grades[image].wrong[kind] += 1
        grades[image].weight += 1
    for name, found in analysis.captions.items():
        wrong = {"fit nothing": len(found.hallucinated), "not mentioned": len(found.missed)}
        kept = Counter({kind: count for kind, count in wrong.items() if count})
        grades[name] = PictureGrade(len(found.pairs), kept, float(kept.total()))
    return grades
