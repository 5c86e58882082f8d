"""What must not go unnoticed in a finished preparation: kinds that were largely lost, and things that look wrong."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.dataset.manifest import Counts, Loss, Manifest, Note
from pipelines.dataset.rejects import LeftOut, by_cause, first_rejects
from pipelines.dataset.schema import LIKELY_CAUSES, NOTES, REJECT_KINDS, REJECT_REASONS, WANTED_REASONS

LOUD_SHARE = 0.2
"""A kind of which more than this was lost is told of."""

_MOST_REASONS = 3


@dataclass
class Notes:
    """Notes gathered on the way: how often each code of ``NOTES`` came up, and the first example.

    Gathered image by image and merged in the order of the shards, they are the same in every run.
    """

    found: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, code: str, example: str, count: int = 1) -> None:
        """Count a thing that looks wrong.

        Args:
            code: one of ``pipelines.dataset.schema.NOTES``.
            example: image id, annotation and values, such as ``image 17, annotation 3: bbox [1, 2, 300, 400]``.
            count: how many things.

        Raises:
            KeyError: the code has no sentence.
        """
        NOTES[code]
        self.found.setdefault(code, [0, example])[0] += count

    def merge(self, found: Mapping[str, Iterable[Any]]) -> None:
        """Add what another place found; its examples count where there is none yet."""
        for code, (count, example) in found.items():
            self.add(code, example, count)

    def notes(self) -> tuple[Note, ...]:
        """The notes for the manifest, most frequent first."""
        ordered = sorted(self.found.items(), key=lambda item: (-item[1][0], item[0]))
        return tuple(Note(code=code, count=count, example=example) for code, (count, example) in ordered)


def find_losses(url: str, counts: Counts, reasons: Mapping[str, Mapping[str, int]]) -> tuple[Loss, ...]:
    """Kinds of which all, or more than ``LOUD_SHARE``, was rejected.

    Args:
        url: folder of the set, whose ``rejected/`` is complete.
        counts: of the set.
        reasons: rejects by kind and reason.
    """
    lossy = []
    for kind in REJECT_KINDS:
        unwanted = by_cause({reason: n for reason, n in reasons.get(kind, {}).items() if reason not in WANTED_REASONS})
        lost, came_in = sum(unwanted.values()), counts.input.get(kind, 0)
        if lost > LOUD_SHARE * came_in:
            lossy.append((kind, lost, came_in, unwanted))
    first = first_rejects(url, [(kind, next(iter(unwanted))) for kind, _, _, unwanted in lossy])
    return tuple(
        Loss(kind=kind, lost=lost, of=came_in, reasons=unwanted, example=_example(first.get(kind)))
        for kind, lost, came_in, unwanted in lossy
    )


def _example(reject: LeftOut | None) -> str:
    if reject is None:
        return ""
    what = "" if reject.what == "image" else f", {reject.what}"
    return f"{reject.key}{what}: {reject.detail.rstrip('.')}" if reject.detail else f"{reject.key}{what}"


def loss_sentences(loss: Loss) -> list[str]:
    """A loss for people: how much, the top reasons, an example, and the likely cause."""
    all_lost = loss.lost == loss.of
    number = f"All {loss.of:,} {loss.kind}s" if all_lost else f"{loss.lost:,} of {loss.of:,} {loss.kind}s"
    shown = list(loss.reasons.items())[:_MOST_REASONS]
    why = "; ".join(f"{count:,} {reason} ({REJECT_REASONS[reason]})" for reason, count in shown)
    more = len(loss.reasons) - len(shown)
    said = [f"{number} were rejected: {why}{f'; and {more} more reasons' if more else ''}."]
    if loss.example:
        said.append(f"For example {loss.example.rstrip('.')}.")
    cause = next((LIKELY_CAUSES[reason] for reason, _ in shown if reason in LIKELY_CAUSES), None)
    if cause is not None:
        said.append(f"Likely cause: {cause}.")
    return said


def note_sentences(note: Note) -> list[str]:
    """A note for people."""
    return [f"{note.count:,} {NOTES[note.code]}.", f"For example {note.example}."]


def alarms(manifest: Manifest) -> list[str]:
    """All that must not go unnoticed about a set, each in a few sentences; empty for most sets."""
    return [
        *(" ".join(loss_sentences(loss)) for loss in manifest.losses),
        *(" ".join(note_sentences(note)) for note in manifest.notes),
    ]
