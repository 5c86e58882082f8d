"""Answers are read by token ids: every group is found, named and placed, whatever stands around it."""

import random

import pytest

from padt.inference.answer_parser import AnswerParser, label_of, parse_answer
from tests.padt.tiny import ROWS


def ids_of(processor, *pieces):
    ids = []
    for piece in pieces:
        ids += processor.tokenize(piece) if isinstance(piece, str) else [piece if piece < 0 else ROWS + piece]
    return [processor.end_token_id if token == -1 else token for token in ids]


END = -1


@pytest.fixture
def parse(processor):
    def read(*pieces, patches=(100,)):
        ends = [processor.end_token_id, processor.pad_token_id]
        return parse_answer(ids_of(processor, *pieces), ROWS, list(patches), processor.decode_ids, ends)

    return read


def facts(answer):
    return [(group.label, group.vrts) for group in answer.groups]


def test_several_groups_of_several_labels(parse):
    answer = parse('In this image, there are 2 "person" (', 3, 4, ", ", 7, '), 1 "traffic light" (', 9, ").", END)
    assert facts(answer) == [("person", (3, 4)), ("person", (7,)), ("traffic light", (9,))]
    assert not answer.truncated and answer.warnings == ()
    assert all(group.complete for group in answer.groups)


def test_spans_are_token_positions(parse, processor):
    pieces = ('a "cat" (', 1, 2, ").", END)
    (group,) = parse(*pieces).groups
    assert [token - ROWS for token in ids_of(processor, *pieces)[slice(*group.span)]] == [1, 2]


def test_labels_with_quotes_signs_and_any_script(parse):
    for label in ('5" tv', "café 猫 🐱", "a, b; (c). d", "<|VRT_5|>", ""):
        assert facts(parse(f'The "{label}" refers to ', 4, " in this image.", END)) == [(label, (4,))]


def test_of_several_quoted_words_the_last_name_the_group(parse):
    assert facts(parse('1 "cat" and 1 "dog" (', 4, ").", END)) == [("dog", (4,))]
    assert facts(parse('no "cat", 2 "12" ruler" (', 4, ").", END)) == [('12" ruler', (4,))]
    assert facts(parse('A sign that reads "the "old" mill" and "open" (', 4, ").", END)) == [("open", (4,))]
    assert facts(parse('There is 1 "the "old" mill" (', 4, ").", END)) == [('the "old" mill', (4,))]


@pytest.mark.parametrize("label", ['sign "STOP"', '"STOP" sign', 'the "a" and the "b"', '6" or 5 "cats"', 'a " b', '"'])
def test_a_sentence_comes_back_whatever_quotes_it_holds(parse, label):
    assert facts(parse(f'The "{label}" refers to ', 4, " in this image.", END)) == [(label, (4,))]


def test_unquoted_words_name_a_group_and_an_answer_may_start_with_a_vrt(parse):
    assert facts(parse(2, 3, " is a dog. A man (", 5, ").", END)) == [("", (2, 3)), ("man", (5,))]


def test_what_follows_the_end_token_is_padding(parse):
    answer = parse('"a" (', 1, ").", END, '"b" (', 2, ")", END)
    assert facts(answer) == [("a", (1,))] and not answer.truncated


def test_an_answer_cut_inside_a_group_keeps_what_is_there_and_says_so(parse):
    answer = parse('2 "car" (', 1, 2, ", ", 3, 4)
    assert facts(answer) == [("car", (1, 2)), ("car", (3, 4))]
    assert [group.complete for group in answer.groups] == [True, False]
    assert answer.truncated and "cut off" in answer.warnings[0]


def test_an_answer_cut_in_its_text_has_whole_groups(parse):
    answer = parse('"car" (', 1, '), 2 "do')
    assert facts(answer) == [("car", (1,))]
    assert answer.truncated and answer.groups[0].complete and answer.warnings == ()


def test_groups_are_split_where_they_cross_into_another_image(parse):
    answer = parse('"cat" (', 8, 9, 10, 11, ")", END, patches=(10, 6))
    assert [(group.vrts, group.image, group.complete) for group in answer.groups] == [
        ((8, 9), 0, False),
        ((10, 11), 1, False),
    ]
    assert "crosses" in answer.warnings[0]
    spans = [group.span for group in answer.groups]
    assert spans[0][1] == spans[1][0]


def test_groups_of_each_image_stay_whole(parse):
    answer = parse('"cat" (', 9, ", ", 10, ")", END, patches=(10, 6))
    assert [(group.image, group.complete) for group in answer.groups] == [(0, True), (1, True)]
    assert answer.warnings == ()


def test_vrts_beyond_the_patches_are_dropped_and_said(parse):
    answer = parse('"cat" (', 2, 50, 3, ")", END, patches=(10,))
    assert [group.vrts for group in answer.groups] == [(2,), (3,)]
    assert "VRT 50" in answer.warnings[0] and "10 patches" in answer.warnings[0]


@pytest.mark.parametrize("pieces", [(), (END,), ("No objects from the list are present in the image.", END)])
def test_answers_without_objects(parse, pieces):
    assert parse(*pieces).groups == ()
    assert parse(*pieces).truncated == (END not in pieces)


def test_signs_alone_keep_the_label_in_force():
    assert label_of(", ", "cat") == "cat"
    assert label_of(' and "x"', "cat") == "x"
    assert label_of("; a small dog (", "cat") == "small dog"


def test_a_group_with_a_dropped_vrt_is_not_complete(parse):
    (group,) = parse('"cat" (', 2, 50, ")", END, patches=(10,)).groups
    assert group.vrts == (2,) and not group.complete


def test_labels_whose_characters_are_spread_over_tokens(parse, processor):
    label = "猫 — “chat” 🐈‍⬛"
    assert len(processor.tokenize(label)) > len(label)
    assert facts(parse(f'The "{label}" refers to ', 4, ", ", 5, END)) == [(label, (4,)), (label, (5,))]


def test_a_torn_character_before_a_group_breaks_nothing(processor):
    ids = [*processor.tokenize("a "), *processor.tokenize("🐈")[:2], ROWS + 7, processor.end_token_id]
    (group,) = parse_answer(ids, ROWS, [10], processor.decode_ids, [processor.end_token_id]).groups
    assert group.vrts == (7,) and "\ufffd" in group.label


def test_any_answer_is_read_whole_and_the_same_token_by_token(processor):
    """Random answers: nothing is lost, nothing is made up, and a reader of the stream sees the same groups."""
    rng = random.Random(0)
    words = [*processor.tokenize('a "b" (c), . 猫🐈'), processor.image_token_id]
    for _ in range(300):
        counts = [rng.randrange(1, 6) for _ in range(rng.randrange(3))]
        beyond = sum(counts) + 3
        ids = [
            ROWS + rng.randrange(beyond) if rng.random() < 0.5 else rng.choice(words) for _ in range(rng.randrange(12))
        ]
        ended = rng.random() < 0.5
        padding = [processor.end_token_id, processor.pad_token_id, ROWS] if ended else []
        ends = [processor.end_token_id, processor.pad_token_id]
        whole = parse_answer(ids + padding, ROWS, counts, processor.decode_ids, ends)

        parser = AnswerParser(ROWS, counts, processor.decode_ids, ends)
        seen = [group for token in ids + padding for group in parser.feed(token)] + parser.finish()
        assert tuple(seen) == whole.groups and parser.ids == ids and parser.result() == whole
        assert whole.truncated is not ended

        known = {place for place, token in enumerate(ids) if ROWS <= token < ROWS + sum(counts)}
        placed = [place for group in whole.groups for place in range(*group.span)]
        assert placed == sorted(known), "each VRT of a patch is in exactly one group, in order"
        for group in whole.groups:
            assert [ids[place] - ROWS for place in range(*group.span)] == list(group.vrts)
            first = sum(counts[: group.image])
            assert all(first <= vrt < first + counts[group.image] for vrt in group.vrts)
            before, after = group.span[0] - 1, group.span[1]
            touches = [place for place in (before, after) if 0 <= place < len(ids) and ids[place] >= ROWS]
            cut = not ended and after == len(ids)
            assert group.complete == (not touches and not cut)
        dropped = sum(token >= ROWS + sum(counts) for token in ids)
        assert sum("beyond" in warning for warning in whole.warnings) == dropped
