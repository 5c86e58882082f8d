"""Sentences in a report: what became of them, of which kind they fail, and what scores are worth."""

from collections import Counter

import numpy as np

from jobs.evaluation.report.analysis import SetAnalysis, single_objects
from jobs.evaluation.report.blocks import Group, by_object, score_worth, side_by_side
from jobs.evaluation.report.selection import in_words
from padt.drawing.charts import bar
from padt.drawing.page import Content, Number, paragraph, table
from padt.metrics.analysis.refer import REFER_OUTCOMES
from padt.metrics.analysis.shares import in_powers, shares
from padt.metrics.f1 import THRESHOLDS


def refer_outcomes(analysis: SetAnalysis) -> list[Content]:
    """What became of the sentences."""
    kinds = Counter(outcome.kind for outcome in analysis.sentences.values())
    total = sum(kinds.values())
    rows: list[list[Content]] = [
        [
            in_words(kind),
            kinds[kind],
            Number(f"{kinds[kind] / total:.1%}"),
            bar(kinds[kind] / total, second=kind != "right"),
            meaning,
        ]
        for kind, meaning in REFER_OUTCOMES.items()
        if kinds[kind]
    ]
    return [table(["outcome", "sentences", "share", "", "what it is"], rows, "What became of the sentences")]


def refer_shares(analysis: SetAnalysis) -> list[Content]:
    """How many sentences are answered rightly, by what they mean and how they are worded."""
    single, same, several, words = [], [], [], []
    for sample in analysis.data.of_task("refer"):
        row, hit = analysis.data.truth[sample.row], analysis.sentences[sample.id].hit
        targets = row["references"][sample.item or 0]["objects"]
        several.append((str(len(targets)), hit))
        words.append((in_powers(len((sample.sentence or "").split())), hit))
        if len(targets) == 1:
            entry = row["objects"][targets[0]]
            single.append((entry, row, hit))
            alike = sum(row["objects"][place]["label"] == entry["label"] for place in single_objects(row))
            same.append((in_powers(alike), hit))
    groups = [
        *by_object(single, "Right"),
        Group("Right, by objects of the target's class", "objects", shares(same)),
        Group("Right, by words", "words", shares(words)),
        Group("Right, by number of targets", "targets", shares(several)),
    ]
    return [
        paragraph("Share of sentences that are right at a box IoU of .5; thin lines: 95 % interval."),
        side_by_side([group for group in groups if len(group.shares) > 1]),
    ]


def refer_scores(analysis: SetAnalysis) -> list[Content]:
    """What the scores of answers to sentences are worth."""
    scored = [one for one in analysis.sentences.values() if one.score is not None and one.iou is not None]
    scores = np.array([one.score or 0.0 for one in scored])
    quality = np.array([float(((one.iou or 0.0) >= THRESHOLDS).mean()) for one in scored])
    return score_worth(scores, np.array([float(one.hit) for one in scored]), quality, "answers")
