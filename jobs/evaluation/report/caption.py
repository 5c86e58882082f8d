"""Captions in a report: what they make up, and what they leave out."""

from jobs.evaluation.report.analysis import SetAnalysis, single_objects
from jobs.evaluation.report.blocks import Group, by_object, side_by_side
from padt.drawing.page import Content, paragraph
from padt.metrics.analysis.shares import in_powers, shares


def caption_shares(analysis: SetAnalysis) -> list[Content]:
    """What captions make up and what they leave out."""
    groups, objects = [], []
    for sample in analysis.data.of_task("caption"):
        row, found = analysis.data.truth[sample.row], analysis.captions[sample.id]
        single = single_objects(row)
        fitting = {group for group, _ in found.pairs}
        groups += [(in_powers(place + 1), place in fitting) for place in sorted(fitting | set(found.hallucinated))]
        mentioned = {place for caption in row["captions"] for place in caption["objects"]}
        missed = {single[place] for place in found.missed}
        objects += [(row["objects"][place], row, place not in missed) for place in single if place in mentioned]
    wrong, lost = sum(not hit for _, hit in groups), sum(not hit for *_, hit in objects)
    return [
        paragraph(
            f"{wrong:,} of {len(groups):,} groups fit no object of their picture at an IoU of .5 (hallucinated); "
            f"{lost:,} of {len(objects):,} objects that the references mention are missed."
        ),
        side_by_side(
            [
                *by_object(objects, "Mentioned objects found"),
                Group("Groups that fit, by place in the caption", "group", shares(groups)),
            ]
        ),
    ]
