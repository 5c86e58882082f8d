"""REC and RES by kind of sentence: a good mean over all sentences may hide a kind that is at chance.

What a sentence is about is told by its words: kinds are names with a regular expression each, such as ``place:
left|right|top|bottom``. A sentence is of the first kind whose expression is found in it as whole words, in capitals or
not, else of the kind ``other``.
"""

import re
from collections.abc import Mapping, Sequence

from padt.errors import UserError
from padt.metrics.records import ObjectLike
from padt.metrics.refer import ReferTarget, score_refer

OTHER = "other"
SHOWN = ("precision_at_0.5", "gIoU")
"""What is told of each kind, beside the number of its sentences."""


def compile_kinds(patterns: Mapping[str, str], where: str = "sentence_kinds") -> dict[str, re.Pattern[str]]:
    """Expressions by kind, in the order in which they are tried.

    Raises:
        UserError: an expression is none, or a kind is called ``other``; the message begins with ``where``.
    """
    kinds = {}
    for name, pattern in patterns.items():
        if name == OTHER:
            raise UserError(
                f"{where}: {OTHER!r} is what sentences of no kind are called: give {pattern!r} another name."
            )
        try:
            kinds[str(name)] = re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE)
        except re.error as error:
            raise UserError(
                f"{where}.{name}: {pattern!r} is no regular expression ({error}): write words such as 'left|right|top'."
            ) from error
    return kinds


def score_by_kind(
    targets: Sequence[ReferTarget],
    answers: Mapping[str, Sequence[ObjectLike]],
    kinds: Mapping[str, re.Pattern[str]],
    masks: bool = True,
) -> dict[str, dict[str, float]]:
    """The number of ``sentences`` of each kind, and their metrics of ``SHOWN`` where :func:`score_refer` finds any.

    Every sentence is of exactly one kind: the numbers add up to all. Kinds without a sentence are left out.

    Args:
        targets: every sentence of the set.
        answers: predicted objects by sample id.
        kinds: see :func:`compile_kinds`.
        masks: compare masks too.
    """
    parts: dict[str, list[ReferTarget]] = {name: [] for name in (*kinds, OTHER)}
    for target in targets:
        parts[next((name for name, found in kinds.items() if found.search(target.sentence)), OTHER)].append(target)
    scores: dict[str, dict[str, float]] = {}
    for name, part in parts.items():
        if part:
            own = {target.id: answers[target.id] for target in part if target.id in answers}
            metrics = score_refer(part, own, masks).metrics
            scores[name] = {"sentences": len(part)} | {shown: metrics[shown] for shown in SHOWN if shown in metrics}
    return scores
