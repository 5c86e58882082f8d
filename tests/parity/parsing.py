"""Parity of answer parsing, where the released parser is right; its faults are told apart and counted."""

from collections import Counter

from padt.inference.answer_parser import parse_answer
from padt.model.modeling import PaDTForConditionalGeneration
from tests.parity.fixture import Fixture
from tests.parity.table import Report

THINKING = "thinking mode: ours has none"
CUT = "fault: an answer cut inside a group loses every group"
TORN = "fault: labels decoded token by token, characters torn"
QUOTES = "fault: a label ends at its inner quote"
UNQUOTED = "difference: released labels are empty without quotes, ours are the phrase before the group"


def compare_parsing(fixture: Fixture, model: PaDTForConditionalGeneration, report: Report) -> None:
    """Groups of every entry of ``parse.json``; labels where the released ones are right."""
    if not fixture.names("parse.json"):
        return
    report.part = "parse"
    processor = model.processor
    ends = [processor.end_token_id, processor.pad_token_id]
    left_out: Counter[str] = Counter()
    ours_steps, their_steps, ours_labels, their_labels = [], [], [], []
    kept_when_cut = True
    for entry in fixture.json("parse"):
        if entry["need_thinking"]:
            left_out[THINKING] += 1
            continue
        patches = max([token - fixture.vocabulary + 1 for token in entry["ids"]] + [0])
        answer = parse_answer(entry["ids"], fixture.vocabulary, [max(patches, 0)], processor.decode_ids, ends)
        if answer.truncated and any(not group.complete for group in answer.groups):
            left_out[CUT] += 1
            kept_when_cut &= not entry["steps"]
            continue
        ours_steps.append([list(range(*group.span)) for group in answer.groups])
        their_steps.append(entry["steps"])
        reason = _wrong_labels(entry)
        if reason:
            left_out[reason] += 1
            continue
        ours_labels.append([group.label for group in answer.groups])
        their_labels.append(entry["labels"])
    report.equal("groups", ours_steps, their_steps)
    report.equal("labels", ours_labels, their_labels)
    report.equal("answers cut inside a group: kept by ours, lost by the released parser", kept_when_cut, True)
    for reason, count in left_out.items():
        report.skip(f"{count} answers", reason)


def _wrong_labels(entry: dict) -> str | None:
    """Which fault of the released parser spoils an entry's labels, if any."""
    if any("\ufffd" in label for label in entry["labels"]):
        return TORN
    stretches = entry["text"].split("<|VRT_")
    if any(stretch.count('"') % 2 for stretch in stretches[:-1]):
        return QUOTES
    words = any(letter.isalpha() for letter in stretches[0])
    if "" in entry["labels"] and '"' not in stretches[0] and words:
        return UNQUOTED
    return None
