"""The table of metrics: names lead to their rows, directions are kept, nothing is scored that nobody can compare."""

import pytest

from padt.errors import UserError
from padt.metrics.records import Scores
from padt.metrics.table import (
    METRICS,
    Metric,
    find_metric,
    in_order,
    is_headline,
    is_watched,
    label,
    require_metric,
    title,
    written,
)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gIoU", "gIoU"),
        ("eval/my/set/gIoU", "gIoU"),
        ("eval/toy/precision_at_0.5", "precision_at_0.5"),
        ("eval/toy/precision_at_0.9", "precision_at_{}"),
        ("mask_precision_at_0.7", "mask_precision_at_{}"),
        ("eval/coco/released_bbox_AP_small", "bbox_AP_small"),
        ("eval/toy/precision_at_", None),
        ("precision_at_half", None),
        ("eval/gIoU/other", None),
    ],
)
def test_names_lead_to_their_rows(name, row):
    found = find_metric(name)
    assert (found.name if found else None) == row


def test_each_name_has_one_row():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)


def test_the_gate_watches_five_and_never_released_figures():
    names = [metric.name for metric in METRICS if is_watched(f"eval/toy/{metric.name}")]
    assert names == ["precision_at_0.5", "gIoU", "bbox_AP", "segm_AP", "caption_grounded"]
    assert not is_watched("eval/toy/released_bbox_AP") and not is_headline("released_bbox_AP")
    assert not is_watched("eval/toy/somebody_elses")


def test_directions():
    higher, lower, neither = Metric("a", "A"), Metric("b", "B", better="lower"), Metric("c", "C", better=None)
    assert [metric.best([None, 3.0, 1.0, 3.0]) for metric in (higher, lower, neither)] == [1, 2, None]
    assert higher.best([None, 1.0]) is None
    assert (higher.reaches(0.7, 0.7), higher.reaches(0.69, 0.7), higher.reaches(0.69, 0.7, 0.02)) == (True, False, True)
    assert (lower.reaches(0.7, 0.7), lower.reaches(0.71, 0.7), lower.reaches(0.71, 0.7, 0.02)) == (True, False, True)
    assert not higher.reaches(float("nan"), 0.0) and not lower.reaches(float("nan"), 1.0)


def test_tables_keep_the_order_of_rows_within_a_set():
    names = ["eval/b/gIoU", "eval/a/released_bbox_AP", "eval/a/ours", "eval/a/precision_at_0.9", "eval/a/caption_GP"]
    names += ["eval/a/precision_at_0.5", "eval/a/mask_precision_at_0.9", "eval/a/mask_precision_at_0.7"]
    assert in_order(names) == [
        "eval/a/precision_at_0.5",
        "eval/a/precision_at_0.9",
        "eval/a/mask_precision_at_0.7",
        "eval/a/mask_precision_at_0.9",
        "eval/a/caption_GP",
        "eval/a/ours",
        "eval/a/released_bbox_AP",
        "eval/b/gIoU",
    ]


def test_words_for_people():
    assert title("eval/toy/precision_at_0.9") == "toy: REC Acc@0.9"
    assert title("released_bbox_AP") == "detection bbox AP (released scorer)"
    assert title("ours") == "ours"
    assert label("calibration_error") == "calibration_error (lower is better)" and label("gIoU") == "gIoU"
    assert written("eval/toy/caption_tokens", 41.25) == "41.2" and written("gIoU", 0.5) == "0.500"


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"^recipe: metric 'eval/toy/bbox_ap' is unknown: did you mean bbox_AP\?$"):
        require_metric("eval/toy/bbox_ap", "recipe")
    assert require_metric("eval/toy/bbox_AP", "recipe").name == "bbox_AP"
    with pytest.raises(ValueError, match="without a row in padt/metrics/table.py: made_up"):
        Scores({"gIoU": 0.5, "made_up": 1.0})
