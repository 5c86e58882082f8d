"""REC and RES of resampled images: sums of graded sentences."""

from collections.abc import Sequence

import numpy as np

from padt.metrics.paired.resampling import Array, Measure, ratio, summed
from padt.metrics.refer import BOX_THRESHOLDS, MASK_THRESHOLDS, SentenceGrade


def refer_measure(grades: Sequence[SentenceGrade], places: Sequence[int], images: int) -> Measure:
    """The metrics of ``padt.metrics.refer.summarise_grades``.

    Args:
        grades: of all sentences.
        places: the image of each.
        images: how many there are.
    """
    sums = summed([_row(grade) for grade in grades], places, images)

    def scores(weights: Array) -> dict[str, Array]:
        total = {name: weights @ own for name, own in sums.items()}
        found = {f"precision_at_{t}": ratio(total[f"hit_{t}"], total["aimed"]) for t in BOX_THRESHOLDS}
        found |= {
            "vlm_r1_accuracy": ratio(total["vlm_r1"], total["single"]),
            "box_mIoU": ratio(total["box_iou"], total["single"]),
            "cIoU": ratio(total["intersection"], total["union"]),
            "gIoU": ratio(total["mask_iou"], total["masked"]),
        }
        found |= {
            f"mask_precision_at_{t}": ratio(total[f"mask_hit_{t}"], total["masked_aimed"]) for t in MASK_THRESHOLDS
        }
        empty, aimed = total["empty"], total["aimed"]
        found["N_acc"] = ratio(total["refused"], empty)
        both = np.where(empty > 0, aimed, 0.0)
        found["T_acc"] = ratio(total["answered"], both)
        found["presence_MCC"] = _matthews(total["answered"], aimed, total["refused"], empty)
        return found

    return Measure(scores)


def sentence_value(grade: SentenceGrade) -> float:
    """How good an answer is: its box IoU; 1 or 0 where that is not one number."""
    return grade.box_iou if grade.box_iou is not None else float(sentence_right(grade))


def sentence_right(grade: SentenceGrade) -> bool:
    """Whether an answer is right at IoU 0.5; without a target, whether it is empty."""
    return grade.hits[0] if grade.hits else not grade.answered


def _row(grade: SentenceGrade) -> dict[str, float]:
    masked, aimed = grade.union is not None, bool(grade.hits)
    iou = grade.mask_iou or 0.0
    row: dict[str, float] = {
        "aimed": aimed,
        "empty": not aimed,
        "answered": aimed and grade.answered,
        "refused": not aimed and not grade.answered,
        "single": grade.box_iou is not None,
        "box_iou": grade.box_iou or 0.0,
        "vlm_r1": bool(grade.vlm_r1),
        "intersection": grade.intersection or 0,
        "union": grade.union or 0,
        "masked": masked,
        "masked_aimed": masked and aimed,
        "mask_iou": iou if masked else 0.0,
    }
    row |= {f"hit_{t}": aimed and grade.hits[place] for place, t in enumerate(BOX_THRESHOLDS)}
    return row | {f"mask_hit_{t}": masked and aimed and iou >= t for t in MASK_THRESHOLDS}


def _matthews(right: Array, aimed: Array, refused: Array, empty: Array) -> Array:
    missed, wrong = aimed - right, empty - refused
    product = (right + wrong) * aimed * empty * (refused + missed)
    value = np.divide(
        right * refused - wrong * missed, np.sqrt(product), out=np.zeros(product.shape), where=product > 0
    )
    return np.where((aimed > 0) & (empty > 0), value, np.nan)
