"""Detection in a report: mistakes and the AP that they cost, where they happen, and what scores are worth."""

from collections import Counter

import numpy as np

from jobs.evaluation.report.analysis import SetAnalysis, single_objects
from jobs.evaluation.report.blocks import Group, by_object, score_worth, side_by_side
from jobs.evaluation.report.selection import in_words
from padt.drawing.charts import Line, bar, line_chart
from padt.drawing.page import Content, Markup, Number, element, paragraph, table
from padt.metrics.analysis.detect import DETECT_MISTAKES, DetectAnalysis
from padt.metrics.analysis.shares import Share, shares
from padt.metrics.f1 import THRESHOLDS

_MOST_CLASSES = 20
_MOST_CONFUSIONS = 12
_MOST_PLACES = 30


def detect_mistakes(analysis: SetAnalysis, boxes: DetectAnalysis) -> list[Content]:
    """Kinds of mistakes with the AP that each costs, and which classes are taken for which."""
    masks = analysis.masks
    if boxes.ap is None:
        return [paragraph("The truth has no objects: there is no AP to lose.")]
    judged = [("boxes", boxes)] + ([("masks", masks)] if masks is not None else [])
    columns = ["mistake"]
    for name, _ in judged:
        columns += [name, f"dAP, {name}", ""]
    rows: list[list[Content]] = []
    peak = max(max(each.costs.values()) for _, each in judged) or 1.0
    for kind, meaning in DETECT_MISTAKES.items():
        row: list[Content] = [in_words(kind)]
        for _, each in judged:
            cost = each.costs.get(kind)
            row += [each.counts.get(kind), None if cost is None else Number(f"{cost:.3f}")]
            row.append(Markup() if cost is None else bar(cost / peak, second=True))
        if any(each.counts.get(kind) for _, each in judged) or kind != "poor_mask":
            rows.append([*row, meaning])
    said = "; ".join(f"AP at IoU .5 of {name}: {each.ap:.3f}" for name, each in judged)
    return [
        paragraph(
            f"{said}. dAP is the AP that would be gained if the mistakes of one kind were mended and all others "
            "stayed, as TIDE counts it. The figures do not add up: one mistake may hide another."
        ),
        table([*columns, "what it is"], rows, "Mistakes of detection"),
        *_confusions(analysis, boxes),
    ]


def detect_shares(analysis: SetAnalysis, boxes: DetectAnalysis) -> list[Content]:
    """How much is found, by size, patches, company and class; and what is right, by the order of writing."""
    things = []
    for sample in analysis.data.of_task("detect"):
        row = analysis.data.truth[sample.row]
        things += [(row["objects"][k], row, (sample.id, k) in boxes.found) for k in single_objects(row)]
    classes = shares([(entry["label"], hit) for entry, _, hit in things])
    worst = sorted(classes, key=lambda one: (one.value, -one.total, one.name))[:_MOST_CLASSES]
    note = f"The worst {_MOST_CLASSES} of {len(classes)} classes." if len(classes) > _MOST_CLASSES else None
    return [
        paragraph(
            "Share of true objects that are found with the right class at an IoU of .5; thin lines: 95 % interval."
        ),
        side_by_side([*by_object(things, "Found"), Group("Found, by class", "class", worst, note)]),
        *_order(boxes, len(things)),
    ]


def detect_scores(boxes: DetectAnalysis) -> list[Content]:
    """What the scores of detections are worth."""
    counted = [one for one in boxes.detections if not one.ignored and one.category_id is not None]
    scores = np.array([one.score for one in counted])
    right = np.array([float(one.right) for one in counted])
    # What calibration aims at: the share of COCO's thresholds at which an object is right.
    quality = np.array([float(one.right) * float((one.iou >= THRESHOLDS).mean()) for one in counted])
    return score_worth(scores, right, quality, "detections")


def _confusions(analysis: SetAnalysis, boxes: DetectAnalysis) -> list[Content]:
    rows = {sample.id: analysis.data.truth[sample.row] for sample in analysis.data.of_task("detect")}
    pairs = Counter(
        (rows[one.image]["objects"][one.target]["label"], analysis.found[one.image][one.place].label)
        for one in boxes.detections
        if one.mistake == "wrong_label" and one.target is not None
    )
    if not pairs:
        return []
    most = sorted(pairs.items(), key=lambda each: (-each[1], each[0]))[:_MOST_CONFUSIONS]
    body: list[list[Content]] = [
        [truth, called, number, bar(number / most[0][1], second=True)] for (truth, called), number in most
    ]
    return [
        element("h3", "Taken for another class"),
        table(["truth", "called", "objects", ""], body, "Taken for another class"),
    ]


def _order(boxes: DetectAnalysis, total: int) -> list[Content]:
    """By the order of writing: what the k-th objects are worth, and what is found by then."""
    counted = [one for one in boxes.detections if not one.ignored]
    if not counted or not total:
        return []
    last = min(_MOST_PLACES, 1 + max(one.place for one in counted))
    rows = []
    found = 0
    for place in range(last):
        here = [one for one in counted if one.place == place]
        right = sum(one.right for one in here)
        found += right
        rows.append((place + 1, len(here), Share("", right, len(here)) if here else None, found / total))
    chart = line_chart(
        [
            Line("right among the k-th objects", tuple((float(k), part.value) for k, _, part, _ in rows if part)),
            Line("found by the k-th object", tuple((float(k), recall) for k, _, _, recall in rows)),
        ],
        "k, in the order of writing",
        "share",
        "Right objects by their place in the answer",
        (0.0, 1.0),
    )
    body: list[list[Content]] = [
        [k, number, None if part is None else Number(f"{part.value:.3f}"), Number(f"{recall:.3f}")]
        for k, number, part, recall in rows
    ]
    figures = table(["place", "objects", "right", "found so far"], body, "Objects by their place in the answer")
    return [
        element("h3", "By place in the answer"),
        chart,
        element("details", element("summary", "the figures"), figures),
    ]
