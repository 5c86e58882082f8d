"""Annotation files come from strangers: large, damaged, cut off, and now and then malicious."""

import json
import os
import pickle
import pickletools
import tracemalloc

import pytest

from padt.errors import UserError
from pipelines.dataset.caption_tags import ground, is_finished
from pipelines.sources import json_stream as jsonstream
from pipelines.sources.base import Piece, Reject, identifier, plain_text, whole_number
from pipelines.sources.coco import CocoSource
from pipelines.sources.json_stream import stream_json
from pipelines.sources.refcoco import load_plain_pickle, load_refs, reference_pieces


def _rebuilt(path):
    content = {}
    for element in stream_json(str(path), "File"):
        if element.index is None:
            content[element.section] = element.value
        else:
            assert element.index == len(content.setdefault(element.section, []))
            content[element.section].append(element.value)
        assert json.loads(element.text) == element.value
    return content


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_streaming_reads_what_json_reads(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(jsonstream, "_CHUNK", chunk)
    content = {
        "info": {"year": 2017, "text": 'quotes " and \\ and é 猫 \U0001f408'},
        "number": -12.5e3,
        "none": None,
        "images": [{"id": 1, "name": "a"}, {}, [], [[1, 2], [3]], "text", 123456789, True, 1e-5],
        "nothing": [],
        "last": 98765,
    }
    path = tmp_path / "file.json"
    for indent in (None, 2):
        path.write_text(json.dumps(content, indent=indent, ensure_ascii=indent is None))
        assert _rebuilt(path) == content


def test_streaming_reads_the_real_files(samples, monkeypatch):
    monkeypatch.setattr(jsonstream, "_CHUNK", 1000)
    path = samples / "coco" / "annotations" / "instances_val2017.json"
    assert _rebuilt(path) == json.loads(path.read_text())


def test_a_file_cut_off_anywhere_is_an_error_and_never_a_smaller_file(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonstream, "_CHUNK", 16)
    whole = json.dumps({"a": {"b": [1, 22]}, "images": [{"id": 1, "text": "x \\u00e9 y"}, {"id": 23}], "n": 7})
    path = tmp_path / "file.json"
    for end in range(len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(UserError, match=r"file\.json is (cut off|empty)"):
            list(stream_json(str(path), "File"))


@pytest.mark.parametrize(
    "text", ["[1, 2]", '{"a": [1 2]}', '{"a" 1}', "{1: 2}", '{"a": [1,]}', '{"a": tru}' + " " * 99]
)
def test_what_is_not_a_json_object_is_an_error(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"file\.json is not"):
        list(stream_json(str(path), "File"))


def test_a_file_that_is_not_text_is_an_error(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(UserError, match="UTF-8"):
        list(stream_json(str(path), "File"))
    with pytest.raises(UserError, match="File .*missing"):
        list(stream_json(str(tmp_path / "missing.json"), "File"))


@pytest.mark.parametrize(
    ("value", "number", "text"),
    [(7, 7, "7"), (7.0, 7, "7"), ("7", None, "7"), (True, None, None), (1.5, None, None), (None, None, None)]
    + [(float("nan"), None, None), (float("inf"), None, None), (2**70, None, None), ("a\nb", None, None)],
)
def test_ids_are_whole_numbers_or_text(value, number, text):
    assert whole_number(value) == number
    assert identifier(value) == text


def test_half_a_surrogate_pair_does_not_reach_the_shards():
    assert plain_text(" a\n\tb \ud83d ") == "a b ?"


class _Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path, protocol):
    marker, path = tmp_path / "ran", tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([{"sentences": [], "x": _Evil(marker)}], protocol=protocol))
    with pytest.raises(UserError, match="refused"):
        load_refs(str(path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "builtins getattr", "builtins __import__", "os system", "_codecs lookup", "codecs encode"]
    + ["builtins set.__class__", "collections OrderedDict", "numpy ndarray"],
)
def test_no_name_but_plain_containers_can_be_loaded_from_a_pickle(tmp_path, name):
    path = tmp_path / "refs.p"
    path.write_bytes(b"c" + name.replace(" ", "\n").encode() + b"\n.")
    pickletools.dis(path.read_bytes(), out=open(os.devnull, "w"))  # noqa: SIM115
    with pytest.raises(UserError, match="refused"):
        load_plain_pickle(str(path))


def test_plain_values_of_every_protocol_are_read(tmp_path):
    content = [{"b": b"bytes \xff", "t": ("é", 1, 2.5, None, True), "s": {1, 2}, "f": frozenset("a"), "big": 2**80}]
    path = tmp_path / "plain.p"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        assert load_plain_pickle(str(path)) == content


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps([{"sentences": []}])[:-9], b"\x80\x02]q\x00", b"0."]
)
def test_a_damaged_pickle_is_a_clear_error(tmp_path, content):
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"refs\.p"):
        load_refs(str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r\xff\xff\xff\x7f.",  # Remembers an empty list as number 2,147,483,647: 32 GB of room.
        b"(lp99999999999\n.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00abc.",  # Text that claims a terabyte.
        b"I" + b"9" * 100_000 + b"\n.",
        b"\x80\x02" + b"(" * 1_000_000 + b".",
    ],
)
def test_a_pickle_that_asks_for_memory_is_refused_before_it_gets_it(tmp_path, content):
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"refs\.p is (refused|damaged)"):
            load_plain_pickle(str(path))
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


def test_a_pickle_that_unfolds_without_end_is_reported_in_a_line(tmp_path):
    """Lists of the same lists, thirty deep: a few hundred bytes that would be a gigabyte of text."""
    bomb: list = ["x"]
    for _ in range(30):
        bomb = [bomb, bomb]
    sentence = {"sent_id": 1, "sent": "a cat"}
    refs = [bomb, {"ref_id": bomb, "split": bomb, "sentences": [sentence]}]
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(refs, protocol=2))
    rejects = list(reference_pieces(load_refs(str(path)), None))
    assert len(rejects) == 2
    assert all(isinstance(reject, Reject) and len(reject.detail) < 1000 for reject in rejects)


@pytest.mark.parametrize("name", ["refcoco/refs(unc).p", "refcoco+/refs(unc).p", "refcocog/refs(umd).p"])
def test_published_references_are_read(samples, name):
    refs = load_refs(str(samples / "refcoco" / name))
    pieces = list(reference_pieces(refs, "val"))
    wanted = [sentence for ref in refs if ref["split"] == "val" for sentence in ref["sentences"]]
    assert [json.loads(piece.text)["text"] for piece in pieces] == [sentence["sent"] for sentence in wanted]
    with pytest.raises(UserError, match=r"split 'testC'.*train"):
        list(reference_pieces(refs, "testC"))


def test_references_to_several_objects_to_none_and_broken_ones():
    sentence = {"sent_id": 5, "sent": "both of them", "raw": "Both"}
    refs = [
        {"ref_id": 1, "image_id": 2, "ann_id": [3, 4], "split": "val", "sentences": [sentence]},
        {"ref_id": 2, "image_id": 2, "ann_id": [-1], "split": "val", "sentences": [sentence]},
        {"ref_id": 3, "image_id": 2, "ann_id": "x", "split": "val", "sentences": [sentence, sentence]},
        {"ref_id": 4, "image_id": 2, "ann_id": 3, "split": "val", "sentences": [{"sent_id": 9}]},
        "nothing",
    ]
    pieces = list(reference_pieces(refs, None))
    assert [json.loads(piece.text)["ann_ids"] for piece in pieces if isinstance(piece, Piece)] == [[3, 4], []]
    assert [piece.reason for piece in pieces if isinstance(piece, Reject)] == ["reference_malformed"] * 4


@pytest.mark.parametrize(
    ("text", "expected", "ann_ids"),
    [
        ("A dog (<box_id: 4/>) runs.", "A dog (<|Obj_0|>) runs.", (4,)),
        ("Dogs (<box_id: 5/>, <box_id: 4/>).", "Dogs (<|Obj_0|>, <|Obj_1|>).", (5, 4)),
        ("A (<box_id: 4/>) and a (<box_id: 4/>).", "A (<|Obj_0|>) and a (<|Obj_1|>).", (4, 4)),
        ("No parentheses <box_id: 4/> here.", "No parentheses (<|Obj_0|>) here.", (4,)),
        ("Two <box_id: 4/>, <box_id: 5/> bare.", "Two (<|Obj_0|>, <|Obj_1|>) bare.", (4, 5)),
        ("The pair (left <box_id: 4/>).", "The pair (left (<|Obj_0|>)).", (4,)),
        ("Slash <box_id: ann/4/> and no slash <box_id:5>.", "Slash (<|Obj_0|>) and no slash (<|Obj_1|>).", (4, 5)),
        ("An id alone (4) and two (4, 5).", "An id alone (<|Obj_0|>) and two (<|Obj_1|>, <|Obj_2|>).", (4, 4, 5)),
        ("A year (2017) stays.", "A year (2017) stays.", ()),
        ("Unknown (<box_id: 9/>) thing.", "Unknown thing.", ()),
        ("Half (<box_id: 9/>, <box_id: 5/>) known.", "Half (<|Obj_0|>) known.", (5,)),
        ("Broken (<box_id: none/>) tag.", "Broken tag.", ()),
        ("Open <box_id: tag.", "Open", ()),
    ],
)
def test_caption_tags_become_placeholders(text, expected, ann_ids):
    caption = ground(text, {4, 5})
    assert caption.text == expected
    assert caption.ann_ids == ann_ids


def test_counts_of_repaired_and_dropped_tags():
    caption = ground("A (<box_id: ann/4/>), (5), <box_id: 9/>, (<box_id: 4/>) and <box_id: x/>.", {4, 5})
    assert (caption.repaired, caption.dropped) == (2, 2)


def test_captions_that_end_as_sentences():
    assert is_finished('He says "yes"') and is_finished("Yes. ") and is_finished("Really?")
    assert not is_finished("A caption that does not end")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": [], "categories": []}, "no usable image"),
        ({"annotations": [], "categories": []}, "no section 'images'"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}, "no section 'categories'"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1}]},
            "without a 'name'",
        ),
        (
            {
                "images": [{"id": 1, "file_name": "a.jpg"}],
                "annotations": [1],
                "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}],
            },
            "two categories with id 1",
        ),
    ],
)
def test_a_file_that_is_not_coco_is_an_error_before_work_starts(tmp_path, content, message):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        CocoSource(str(path)).header()
