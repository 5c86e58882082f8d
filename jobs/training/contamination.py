"""The warning before a training: images that the model will also be measured on."""

import logging
from collections.abc import Sequence

from padt.errors import UserError
from pipelines.dedup.exclude import split_spec
from pipelines.dedup.overlap import Overlap, compare, load_images

logger = logging.getLogger(__name__)


def warn_of_overlap(training: Sequence[str], evaluation: Sequence[str]) -> list[Overlap]:
    """Compare the sets of a training with those that its model will be measured on, and warn of shared images.

    Images that are the same by id or bytes are a leak; those that merely look the same may be one, and are mentioned.

    Args:
        training: folders of prepared sets.
        evaluation: prepared sets, ``SET`` or ``SET:split``; those that do not exist yet are skipped.

    Returns:
        Every pair of sets that shares images.
    """
    theirs = []
    for spec in dict.fromkeys(evaluation):
        try:
            theirs.append(load_images(*split_spec(spec)))
        except UserError as error:
            logger.info("not compared with the training data: %s", error)
    if not theirs:
        return []
    found = []
    for url in dict.fromkeys(training):
        ours = load_images(url)
        found += [overlap for each in theirs if any((overlap := compare(ours, each)).shared.values())]
    for overlap in found:
        if overlap.certain:
            examples = "; ".join(" = ".join(pair) for pair in overlap.examples[:3])
            logger.warning(
                "LEAK: the training set %s (for example %s). Scores on %s will say more of memory than of skill: "
                "prepare the training set again with --exclude.",
                overlap,
                examples,
                overlap.other,
            )
        else:
            logger.info("%s: pictures that look the same; padt inspect SET --against SET shows some", overlap)
    return found


def overlap_tags(overlaps: Sequence[Overlap]) -> dict[str, str]:
    """What a tracked run remembers of the overlap."""
    return {
        "padt.leaked_images": str(sum(each.certain for each in overlaps)),
        "padt.overlap": "; ".join(str(each) for each in overlaps) or "none",
    }
