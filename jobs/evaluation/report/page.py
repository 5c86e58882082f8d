"""``report.html`` of an evaluation: scores, why they are what they are, and examples, in one file."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.evaluation.report.analysis import SetAnalysis
from jobs.evaluation.report.caption import caption_shares
from jobs.evaluation.report.detect import detect_mistakes, detect_scores, detect_shares
from jobs.evaluation.report.examples import ExampleSheet, answered_object, true_object
from jobs.evaluation.report.refer import refer_outcomes, refer_scores, refer_shares
from jobs.evaluation.report.selection import Selection
from jobs.evaluation.scoring import finite_objects
from padt.drawing.page import Content, Markup, Number, PageSection, element, figure, html_page, paragraph, table
from padt.metrics.analysis.missing import MOST_OVERLAP
from padt.metrics.table import in_order, is_headline, title, written

# Pictures are what a report costs: so many for each task, twice (truth and answer), whatever the size of the set.
_WORST = 6
_RANDOM = 4
_MISSING_PICTURES = 8
_MOST_MISSING = 50
_MADE_WITH = (
    *("model", "model_version", "model_fingerprint", "data_fingerprint", "limit", "tasks", "settings", "dtype"),
    *("names_per_prompt", "refine"),
)
# It says how fast a machine was, and the same answers shall give the same bytes.
_OF_THE_MACHINE = "boxes_per_second"
_TASK_NAMES = {"detect": "Detection", "refer": "Sentences", "caption": "Captions"}


def report_page(analysis: SetAnalysis, summary: Mapping[str, Any]) -> bytes:
    """The page; the same answers give the same bytes.

    Args:
        analysis: of the answers.
        summary: content of ``metrics.json``.
    """
    sheet, selection = ExampleSheet(analysis), Selection(analysis)
    sections = [PageSection("Scores", tuple(_scores(summary)))]
    if analysis.boxes is not None:
        sections += [
            PageSection("Detection: what goes wrong", tuple(detect_mistakes(analysis, analysis.boxes))),
            PageSection("Detection: where", tuple(detect_shares(analysis, analysis.boxes))),
            PageSection("Detection: what scores are worth", tuple(detect_scores(analysis.boxes))),
            _examples("detect", sheet, selection),
            PageSection("Labels that may be missing", tuple(_missing(analysis, sheet))),
        ]
    if analysis.sentences:
        sections += [
            PageSection("Sentences: what becomes of them", (*refer_outcomes(analysis), *_kinds(summary))),
            PageSection("Sentences: where", tuple(refer_shares(analysis))),
            PageSection("Sentences: what scores are worth", tuple(refer_scores(analysis))),
            _examples("refer", sheet, selection),
        ]
    if analysis.captions:
        sections.append(PageSection("Captions: made up and left out", tuple(caption_shares(analysis))))
        sections.append(_examples("caption", sheet, selection))
    sections.append(PageSection("How it was made", (_made(summary),)))
    questions = f"{len(analysis.data.samples):,} questions about {len(analysis.data.truth):,} images"
    model = f", answered by {summary['model']}" if summary.get("model") else ""
    lead = [
        paragraph(f"{questions}{model}", class_="quiet"),
        *(paragraph(warning, class_="alarm") for warning in summary["warnings"]),
    ]
    return html_page(f"{summary['set']} - evaluation report", lead, sections)


def _scores(summary: Mapping[str, Any]) -> list[Content]:
    metrics = {
        name.removeprefix(f"eval/{summary['set']}/"): value
        for name, value in summary["metrics"].items()
        if not name.endswith(_OF_THE_MACHINE)
    }
    whole = [name for name in in_order(metrics) if "/" not in name]
    short = [name for name in whole if is_headline(name)]
    parts: list[Content] = [_metrics(short or whole, metrics, "Headline scores")]
    if short:
        every = _metrics(in_order(metrics), metrics, "All scores")
        parts.append(element("details", element("summary", "all scores"), every))
    # Without those of nothing: a scoring counts more kinds of strange answers than an evaluation, which has none.
    counts = [[name.replace("_", " "), number] for name, number in sorted(summary["counts"].items()) if number]
    shown = table(["what", "number"], counts, "Counts")
    parts.append(element("details", element("summary", "counts that they stand on"), shown))
    return parts


def _metrics(names: Sequence[str], metrics: Mapping[str, float], label: str) -> Markup:
    rows = [[name, title(name), Number(written(name, metrics[name]))] for name in names]
    return table(["metric", "what it is", "value"], rows, label)


def _kinds(summary: Mapping[str, Any]) -> list[Content]:
    """Scores by kind of sentence, where an evaluation was asked to tell kinds apart."""
    kinds = summary.get("by_kind") or {}
    names = in_order({name for values in kinds.values() for name in values} - {"sentences"})
    rows = [
        [
            kind,
            int(values["sentences"]),
            *(Number(written(name, values[name])) if name in values else None for name in names),
        ]
        for kind, values in kinds.items()
    ]
    if not rows:
        return []
    return [element("h3", "By kind of sentence"), table(["kind", "sentences", *names], rows, "By kind of sentence")]


def _examples(task: str, sheet: ExampleSheet, selection: Selection) -> PageSection:
    worst = selection.worst(task, _WORST)
    others = selection.at_random(task, _RANDOM, worst)
    parts: list[Content] = [
        paragraph(
            "Truth beside answer: patch grid, masks and boxes; tinted cells are an object's foreground patches, dots "
            "the patches that the answer names. One colour is one object on both sides."
        )
    ]
    for heading, examples in (("Worst", worst), ("At random", others)):
        drawn = sheet.figures(examples)
        parts.append(element("h3", heading))
        parts.append(element("div", *drawn, class_="sheet pairs") if drawn else paragraph("None.", class_="quiet"))
    return PageSection(f"{_TASK_NAMES[task]}: examples", tuple(parts))


def _missing(analysis: SetAnalysis, sheet: ExampleSheet) -> list[Content]:
    said = (
        f"Detections with a score of {analysis.missing_score:g} or more that overlap no object of the truth, of any "
        f"class, by an IoU of more than {MOST_OVERLAP:g}. Some are mistakes of the model, some are gaps of the truth: "
    )
    if not analysis.missing:
        return [paragraph(said, "there are none.")]
    names = {each.id: each.name for each in analysis.data.manifest.categories}
    samples = {sample.id: sample for sample in analysis.data.of_task("detect")}
    shown = analysis.missing[:_MOST_MISSING]
    rows = []
    for one in shown:
        x0, y0, x1, y1 = analysis.found[one.image][one.place].box
        box = f"{x0:.0f}, {y0:.0f}, {x1:.0f}, {y1:.0f}"
        rows.append([samples[one.image].key, names[one.category_id], Number(f"{one.score:.3f}"), box])
    more = f", the {len(shown)} of the best scores here" if len(shown) < len(analysis.missing) else ""
    figures: list[Markup] = []
    for image in list(dict.fromkeys(one.image for one in shown))[:_MISSING_PICTURES]:
        listed = [one for one in analysis.missing if one.image == image]
        sample = samples[image]
        row = analysis.data.truth[sample.row]
        entries = finite_objects(analysis.answers[image])
        truth = [true_object(row, place) for place in range(len(row["objects"]))]
        found = [answered_object(entries[one.place], "", len(truth) + number) for number, one in enumerate(listed)]
        pair = sheet.pair(sample, truth, found)
        if pair is not None:
            figures.append(figure(pair, sample.key))
    return [
        paragraph(
            said,
            f"look at them. All {len(analysis.missing):,} are in ",
            element("code", "missing_labels.json"),
            f" as COCO results{more}; --missing-labels makes a folder of them that FiftyOne opens.",
        ),
        element("div", *figures, class_="sheet pairs"),
        table(["image", "class", "score", "box (x0, y0, x1, y1)"], rows, "Labels that may be missing"),
    ]


def _made(summary: Mapping[str, Any]) -> Markup:
    rows = [
        [name.replace("_", " "), value if isinstance(value, str | int) else json.dumps(value, sort_keys=True)]
        for name in _MADE_WITH
        if (value := summary.get(name)) is not None
    ]
    return table(["what", "value"], rows, "How it was made")
