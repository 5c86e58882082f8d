"""Zero-shot detection: which classes of a set a model was never trained to find, and by which names it is asked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from padt.metrics.detect import TrueImage, fold, score_detect
from padt.metrics.records import FoundObject
from padt.pretrained.model_card import read_facts

SEEN, UNSEEN = "seen", "unseen"
_NAMED = 12


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a set, as a model knows them.

    Attributes:
        asked: the name that each class is asked by, in the set's order.
        unseen: classes that the model was not trained to find, under this name or another; None where the model's card
            does not tell what it was trained on.
    """

    asked: Mapping[str, str]
    unseen: tuple[str, ...] | None

    @property
    def renamed(self) -> dict[str, str]:
        """Classes that are asked by another name than the set's own."""
        return {name: asked for name, asked in self.asked.items() if asked != name}

    def remarks(self) -> list[str]:
        """What a reader of the scores should know, in words."""
        told = []
        if self.unseen:
            named = ", ".join(self.unseen[:_NAMED]) + (", ..." if len(self.unseen) > _NAMED else "")
            told.append(
                f"{len(self.unseen):,} of {len(self.asked):,} classes are none that the model was trained to find "
                f"({named})" + (": their scores stand apart too." if len(self.unseen) < len(self.asked) else ".")
            )
        if self.renamed:
            pairs = [f"{name} as {asked}" for name, asked in self.renamed.items()]
            named = ", ".join(pairs[:_NAMED]) + (", ..." if len(pairs) > _NAMED else "")
            told.append(f"{len(pairs):,} classes were asked by a name that the model was trained on: {named}.")
        return told


def vocabulary(model: Path, class_names: Iterable[str], synonyms: Mapping[str, str] | None = None) -> Vocabulary:
    """Compare the classes of a set with those of a model's training.

    A class is asked by its own name. Where the model was trained on one of its synonyms only, that is asked, and the
    synonyms bring the answers back.

    Args:
        model: its folder; the card tells the classes of its training.
        class_names: of the set.
        synonyms: class by other names of it, folded (``jobs.evaluation.scoring.read_synonyms``).
    """
    trained = {fold(name): name for name in read_facts(model).classes}
    others: dict[str, list[str]] = {}
    for other, name in (synonyms or {}).items():
        if other in trained:
            others.setdefault(name, []).append(trained[other])
    asked, unseen = {}, []
    for name in class_names:
        known = fold(name) in trained
        asked[name] = name if known or name not in others else others[name][0]
        if not known and name not in others:
            unseen.append(name)
    return Vocabulary(asked, tuple(unseen) if trained else None)


def score_parts(
    images: Sequence[TrueImage],
    answers: Mapping[str, Sequence[FoundObject]],
    categories: Sequence[tuple[int, str]],
    unseen: Sequence[str],
    masks: bool,
) -> dict[str, float]:
    """COCO AP and recall over the classes that a model was trained to find, and over the others.

    Args:
        images: of the set.
        answers: predicted objects by sample id, under the set's own names.
        categories: ``(id, name)`` of the set.
        unseen: names of the classes that the model was not trained to find.
        masks: score masks too.

    Returns:
        ``seen/bbox_AP``, ``unseen/bbox_AP`` and so on; nothing where all classes are of one kind.
    """
    strange = {fold(name) for name in unseen}
    parts = {
        SEEN: [(number, name) for number, name in categories if fold(name) not in strange],
        UNSEEN: [(number, name) for number, name in categories if fold(name) in strange],
    }
    if not all(parts.values()):
        return {}
    metrics: dict[str, float] = {}
    for part, own in parts.items():
        numbers, names = {number for number, _ in own}, {fold(name) for _, name in own}
        kept = [
            replace(image, objects=tuple(true for true in image.objects if true.category_id in numbers))
            for image in images
        ]
        found = {one: [thing for thing in things if fold(thing.label) in names] for one, things in answers.items()}
        scores, _ = score_detect(kept, found, own, masks)
        metrics |= {f"{part}/{name}": value for name, value in scores.metrics.items()}
    return metrics
