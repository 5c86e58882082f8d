"""What is lost is loud: on the console, at the top of the report, and by an error where nothing is left."""

import json
import logging
import re
from pathlib import Path

import pytest

import pipelines
from jobs.data.prepare import tell_alarms
from padt.errors import UserError
from pipelines.dataset import schema
from pipelines.dataset.losses import Notes, alarms, loss_sentences
from pipelines.dataset.manifest import Loss, Manifest
from pipelines.inspection.inspect import inspect
from pipelines.prepare.run import prepare
from pipelines.prepare.shards import write_shard
from tests.pipelines.coco_files import annotation, content_of, options_for, prepare_here, write_coco


def _prepared(tmp_path, annotations, count=4, **more):
    folder = write_coco(tmp_path / "raw", count=count, annotations=annotations)
    return prepare_here(options_for(folder, tmp_path / "set", **more))


def test_a_kind_that_is_lost_is_told_with_reason_example_and_cause(tmp_path, caplog):
    objects = [annotation(1, 1), *(annotation(number, 2, category_id="cat") for number in (2, 3))]
    manifest = _prepared(tmp_path, [*objects, annotation(4, 99)])
    (loss,) = manifest.losses
    assert (loss.kind, loss.lost, loss.of) == ("object", 3, 4)
    assert loss.reasons == {"category_unknown": 2, "image_not_listed": 1}
    (said,) = alarms(manifest)
    for part in (
        "3 of 4 objects were rejected",
        "2 category_unknown (its category is not listed)",
        "For example coco/train/2, object 2: category_id cat is the name of a category: write its id, 3.",
        f"Likely cause: {schema.LIKELY_CAUSES['category_unknown']}.",
    ):
        assert part in said
    with caplog.at_level(logging.WARNING, logger="jobs"):
        tell_alarms(str(tmp_path / "set"), manifest)
    assert said in caplog.text and "report.html" in caplog.text
    page = (tmp_path / "set" / "report.html").read_text()
    assert 0 < page.index('class="alarm">3 of 4 objects') < page.index("What came in")
    assert inspect(str(tmp_path / "set")).alarms == [said]
    assert Manifest.read(str(tmp_path / "set")).losses == (loss,)


def test_a_fifth_is_not_loud_and_neither_is_what_was_asked_for(tmp_path):
    objects = [annotation(number, 1) for number in range(1, 5)]
    assert _prepared(tmp_path / "fifth", [*objects, annotation(5, 1, (0, 0, 0, 0))]).losses == ()
    content = [annotation(number, 1, isfake=1) for number in range(1, 5)]
    wanted = _prepared(tmp_path / "fakes", content, source="objects365", drop_fakes=True)
    assert wanted.counts.rejects == {"object_fake": 4} and wanted.losses == ()


def test_causes_come_before_what_follows_from_them(tmp_path):
    folder = write_coco(tmp_path / "raw", count=4, per_image=3)
    for number in (1, 2):
        (folder / "images" / f"{number:04d}.jpg").unlink()
    manifest = prepare_here(options_for(folder, tmp_path / "set"))
    assert [loss.kind for loss in manifest.losses] == ["image", "object"]
    assert "0001.jpg" in manifest.losses[0].example
    page = (tmp_path / "set" / "report.html").read_text()
    assert page.index(">image_missing<") < page.index(">image_rejected<")


def test_a_set_without_rows_is_an_error_that_leaves_nothing_and_the_rerun_takes_what_came(tmp_path):
    folder = write_coco(tmp_path / "raw", count=3)
    good = {path: path.read_bytes() for path in (folder / "images").iterdir()}
    for path in good:
        path.write_bytes(b"no picture")
    options = options_for(folder, tmp_path / "set")
    with pytest.raises(UserError, match=r"All 3 images were rejected: 3 image_unreadable.*--allow-empty"):
        prepare_here(options)
    assert content_of(tmp_path / "set") == {}
    allowed = prepare_here(options_for(folder, tmp_path / "empty", allow_empty=True))
    assert allowed.counts.rows == 0 and [loss.kind for loss in allowed.losses] == ["image", "object"]
    for path, content in good.items():
        path.write_bytes(content)
    assert prepare_here(options).counts.rows == 3


def test_notes_are_counted_with_the_first_example_whatever_the_order_of_the_shards(tmp_path, monkeypatch):
    monkeypatch.setitem(schema.NOTES, "test_odd", "objects look odd: mend them")
    from pipelines.prepare import shards

    build = shards.build_row

    def noting(entry, *args):
        built = build(entry, *args)
        built.notes.add("test_odd", f"image {entry.image_id}", 2)
        return built

    monkeypatch.setattr(shards, "build_row", noting)
    folder = write_coco(tmp_path / "raw", count=4)

    def backwards(tasks):
        return [write_shard(task) for task in reversed(tasks)]

    one = prepare_here(options_for(folder, tmp_path / "a", rows_per_shard=1))
    two = prepare(options_for(folder, tmp_path / "b", rows_per_shard=1), execute=backwards)
    assert one.notes == two.notes and [(each.count, each.example) for each in one.notes] == [(8, "image 1")]
    assert alarms(one) == ["8 objects look odd: mend them. For example image 1."]
    assert "8 objects look odd" in (tmp_path / "a" / "report.html").read_text()


def test_a_note_without_a_sentence_is_refused():
    with pytest.raises(KeyError):
        Notes().add("nobody_knows", "here")


def test_many_reasons_are_cut_and_numbers_are_written_for_people():
    reasons = {"box_degenerate": 900, "box_outside_image": 80, "mask_damaged": 15, "annotation_malformed": 5}
    (said, *_) = loss_sentences(Loss(kind="object", lost=1000, of=4000, reasons=reasons))
    assert said.startswith("1,000 of 4,000 objects") and said.endswith("; and 1 more reasons.")


def test_every_repair_and_reason_that_the_code_names_has_a_meaning():
    text = "\n".join(path.read_text() for path in Path(pipelines.__file__).parent.rglob("*.py"))
    repairs = set(re.findall(r'repairs\["(\w+)"\]', text))
    assert repairs and repairs <= set(schema.REPAIRS)
    assert set(re.findall(r'(?:_ItemError|MaskError|ConversationError)\(\s*"(\w+)"', text)) <= set(
        schema.REJECT_REASONS
    )


def test_rejects_and_report_are_equal_byte_for_byte_between_runs(tmp_path):
    """Bad input of many kinds, in two runs and two orders of work."""
    folder = write_coco(tmp_path / "raw", count=8)
    (folder / "images" / "0001.jpg").write_bytes(b"broken")
    (folder / "images" / "0002.jpg").unlink()
    content = json.loads((folder / "instances.json").read_text())
    content["annotations"] += [
        annotation(900, 3, (0, 0, 0, 0)),
        annotation(901, 3, segmentation=[{"x": 1}, None]),
        annotation(902, 3, segmentation={"size": [90, 120], "counts": "no run lengths"}),
        annotation(903, 77),
        annotation(904, 4, bbox={"x": 1}),
        annotation(905, 4, category_id={"a": 1}),
        "nothing",
    ]
    (folder / "instances.json").write_text(json.dumps(content))
    prepare_here(options_for(folder, tmp_path / "one"))
    prepare(options_for(folder, tmp_path / "two"), execute=lambda tasks: [write_shard(each) for each in tasks[::-1]])
    first, second = content_of(tmp_path / "one"), content_of(tmp_path / "two")
    assert any(name.startswith("rejected/") for name in first)
    assert first == second
    assert not re.search(r" at 0x[0-9a-f]+", (tmp_path / "one" / "report.html").read_text())
