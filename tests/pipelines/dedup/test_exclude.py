"""A model measured on what it was trained on is measured on nothing: what is excluded must be gone, and counted."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli.main import main
from padt.errors import UserError
from pipelines.dataset.manifest import Manifest
from pipelines.dedup.exclude import load_exclusion, split_spec, write_exclude_list
from pipelines.dedup.hashes import content_hash, look_hash, source_id
from pipelines.dedup.overlap import compare, duplicates, load_images, near
from pipelines.inspection.inspect import inspect
from pipelines.prepare.execute import execute_here
from pipelines.prepare.run import prepare
from tests.pipelines.coco_files import (
    annotation,
    coco_options,
    content_of,
    options_for,
    prepare_here,
    rows_of,
    write_coco,
)


def _photo(seed, size=(120, 90), kind="JPEG", **options):
    """A picture with large smooth features, as photographs have them and noise has not."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((480, 360), Image.Resampling.BICUBIC).resize(size)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _set(tmp_path, name, files, split="train", **options):
    """Prepare a set of ``(image id, file name, content)`` with one object an image."""
    folder = tmp_path / f"raw-{name}"
    images = [{"id": image_id, "file_name": file} for image_id, file, _ in files]
    write_coco(folder, 0, images=images, annotations=[annotation(10 + image_id, image_id) for image_id, *_ in files])
    for _, file, content in files:
        (folder / "images" / file).write_bytes(content)
    prepare_here(options_for(folder, tmp_path / name, name=name, split=split, **options))
    return str(tmp_path / name)


@pytest.fixture
def evaluation(tmp_path):
    files = [
        (790, "COCO_train2014_000000000790.jpg", _photo(1)),
        (2, "b.jpg", _photo(2)),
        (3, "c.jpg", _photo(3)),
    ]
    return _set(tmp_path, "eval", files, split="val")


_TRAINING = [
    (790, "000000000790.jpg", _photo(7)),  # the same photograph by its number, whatever became of its pixels
    (5, "other-name.jpg", _photo(2)),  # the same file
    (6, "smaller.png", _photo(3, (90, 68), "PNG")),  # a copy in another size and format
    (3, "d.jpg", _photo(4)),  # an id that means something else here
    (2, "e.jpg", _photo(5)),
]


def test_images_go_by_id_by_bytes_and_by_look_and_the_counts_add_up(tmp_path, evaluation):
    out = _set(tmp_path, "train", _TRAINING, exclude=[f"{evaluation}:val"])
    manifest = Manifest.read(out)
    assert sorted(row["image_id"] for row in rows_of(tmp_path / "train")) == ["2", "3"]
    (excluded,) = manifest.exclusions
    assert (excluded.name, excluded.images) == ("eval/val", 3)
    assert excluded.removed == {"same_source_id": 1, "same_bytes": 1, "same_look": 1}
    assert manifest.counts.excluded == {"image": 3, "object": 3} and manifest.counts.rejects == {}
    for _, came_in, kept, rejected, left_out in manifest.counts.by_kind():
        assert came_in == kept + rejected + left_out
    assert compare(load_images(out), load_images(evaluation)).shared == dict.fromkeys(excluded.removed, 0)
    listed = [row for path in (tmp_path / "train" / "excluded").iterdir() for row in pq.read_table(path).to_pylist()]
    assert {row["key"]: row["reason"] for row in listed} == {
        "train/train/790": "same_source_id",
        "train/train/5": "same_bytes",
        "train/train/6": "same_look",
    }
    page = (tmp_path / "train" / "report.html").read_text()
    assert "eval/val" in page and "same id" in page


def test_a_list_leaves_out_what_its_sets_leave_out(tmp_path, evaluation):
    (tmp_path / "lists").mkdir()
    path = str(tmp_path / "lists" / "eval.json")
    (listed,) = write_exclude_list([evaluation], path)
    assert listed.images == 3
    by_list = Manifest.read(_set(tmp_path, "train", _TRAINING, exclude=[path]))
    by_set = Manifest.read(_set(tmp_path, "again", _TRAINING, exclude=[evaluation]))
    assert by_list.exclusions == by_set.exclusions and by_list.counts == by_set.counts
    with pytest.raises(UserError, match="exists"):
        write_exclude_list([evaluation], path)
    assert main(["exclude-list", evaluation, "--out", str(tmp_path / "cli.json")]) == 0
    assert (tmp_path / "cli.json").read_bytes() == (tmp_path / "lists" / "eval.json").read_bytes()
    assert main(["export-data", str(tmp_path / "train"), "--out", str(tmp_path / "coco"), "--no-images"]) == 0
    assert main(["export-data", str(tmp_path / "train"), "--out", str(tmp_path / "coco")]) == 2


def test_what_was_excluded_is_part_of_what_a_set_is(tmp_path, evaluation):
    _set(tmp_path, "train", _TRAINING, exclude=[evaluation])
    folder = tmp_path / "raw-train"
    again = options_for(folder, tmp_path / "train", name="train", exclude=[evaluation])
    assert prepare_here(again) == Manifest.read(str(tmp_path / "train"))
    with pytest.raises(UserError, match="--overwrite"):
        prepare_here(options_for(folder, tmp_path / "train", name="train"))


def test_a_killed_preparation_leaves_out_the_same_images_when_it_goes_on(tmp_path, evaluation):
    _set(tmp_path, "train", _TRAINING, exclude=[evaluation], rows_per_shard=1)
    before = content_of(tmp_path / "train")
    options = options_for(
        tmp_path / "raw-train", tmp_path / "train", name="train", exclude=[evaluation], rows_per_shard=1, overwrite=True
    )

    def killed(tasks):
        for number, result in enumerate(execute_here(tasks)):
            if number == 2:
                raise KeyboardInterrupt
            yield result

    with pytest.raises(KeyboardInterrupt):
        prepare(options, execute=killed)
    prepare_here(options)
    assert content_of(tmp_path / "train") == before


def test_what_a_set_shares_with_another_is_said_but_kept(tmp_path, evaluation):
    manifest = Manifest.read(_set(tmp_path, "train", _TRAINING, against=[evaluation]))
    assert manifest.counts.rows == 5 and manifest.counts.excluded == {}
    (compared,) = manifest.compared
    assert compared.shared == {"same_source_id": 1, "same_bytes": 1, "same_look": 1}
    assert ("train/train/790", "eval/val/790") in compared.examples
    assert "train/train/790" in (tmp_path / "train" / "report.html").read_text()


def test_images_that_a_set_holds_twice_are_counted(tmp_path):
    files = [
        (1, "a.jpg", _photo(1)),
        (2, "b.jpg", _photo(1)),
        (3, "c.png", _photo(1, kind="PNG")),
        (4, "d.jpg", _photo(4)),
    ]
    out = _set(tmp_path, "twice", files)
    found = duplicates(load_images(out))
    assert (found.same_bytes, found.examples[0]) == (1, ("twice/train/1", "twice/train/2"))
    assert Manifest.read(out).statistics["duplicates"]["same_bytes"] == 1


def test_sets_without_hashes_are_compared_by_ids(tmp_path, evaluation, caplog):
    """Sets of earlier versions have no hash columns."""
    for path in (tmp_path / "eval" / "shards").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["sha256", "look"]), path)
    manifest = Manifest.read(_set(tmp_path, "train", _TRAINING, exclude=[evaluation]))
    assert manifest.exclusions[0].removed == {"same_source_id": 1, "same_bytes": 0, "same_look": 0}
    assert "compared by ids only" in caplog.text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{0}:test", r"eval:test: .* has no split 'test': it holds val"),
        ("{1}/raw-eval", r"no manifest\.json"),
        ("{1}/nowhere", "does not exist"),
        ("{1}/train", "the set that is being prepared"),
        ("{1}/other.json", "not an exclude list"),
        ("{1}/broken.json", "not JSON"),
        ("{1}/damaged.json", "damaged"),
        ("{1}/missing.json", "is not a file"),
    ],
)
def test_what_cannot_be_excluded_is_a_clear_error(tmp_path, evaluation, spec, message):
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    damaged = {"format": "padt exclude list", "version": 1, "sets": [], "images": [{"set": 3}]}
    (tmp_path / "damaged.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=message):
        _set(tmp_path, "train", _TRAINING, exclude=[spec.format(evaluation, tmp_path)])
    assert not (tmp_path / "train").exists()


def test_a_list_of_training_images_is_refused_unless_it_is_meant(tmp_path):
    url = _set(tmp_path, "train", _TRAINING)
    with pytest.raises(UserError, match="train split"):
        write_exclude_list([url], str(tmp_path / "list.json"))
    assert write_exclude_list([f"{url}:train"], str(tmp_path / "list.json"))[0].images == 5
    with pytest.raises(UserError, match=r"NAME\.json"):
        write_exclude_list([url], str(tmp_path / "list.txt"))


def test_real_photographs_are_told_apart_and_found_again(samples, tmp_path):
    """Copies with other quality and size look the same; of 80 different photographs no two do."""
    contents = [path.read_bytes() for path in sorted((samples / "coco").glob("*2017/*.jpg"))]
    looks = [look_hash(Image.open(io.BytesIO(content))) or "" for content in contents]
    words = np.frombuffer(bytes.fromhex("".join(looks)), np.uint64).reshape(-1, 2)
    assert list(near(words, words)) == list(range(80))
    found = 0
    for content, look in zip(contents[::4], looks[::4], strict=True):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(content)).resize((400, 300)).save(buffer, "JPEG", quality=70)
        copy = look_hash(Image.open(buffer)) or ""
        found += bin(int(look, 16) ^ int(copy, 16)).count("1") <= 6
        assert content_hash(content) != content_hash(buffer.getvalue())
    assert found >= 18


def test_the_photographs_of_refcoco_leave_coco(samples, tmp_path):
    folder = samples / "refcoco" / "refcoco"
    options = {
        "annotations": str(folder / "instances.json"),
        "references": str(folder / "refs(unc).p"),
        "source": "refcoco",
    }
    val = coco_options(samples, "val", tmp_path / "refcoco-val")
    fields = {**vars(val), **options, "captions": None, "images": str(samples / "coco"), "out": str(tmp_path / "rc")}
    refcoco = prepare_here(type(val)(**fields))
    manifest = prepare_here(coco_options(samples, "val", tmp_path / "coco", exclude=[str(tmp_path / "rc")]))
    assert manifest.exclusions[0].removed["same_source_id"] == refcoco.counts.rows > 10
    assert manifest.counts.rows == 40 - refcoco.counts.rows
    report = inspect(str(tmp_path / "coco"))
    assert report.kept[0] == ("images", 40, 40 - refcoco.counts.rows, 0, refcoco.counts.rows)


def test_names_of_sets_and_images_are_read_as_people_write_them():
    assert split_spec("s3://bucket/set") == ("s3://bucket/set", None)
    assert split_spec("s3://bucket/set:val") == ("s3://bucket/set", "val")
    assert split_spec("runs/refcoco:testA") == ("runs/refcoco", "testA")
    assert source_id("x", "s3://b/train2017/000000000790.jpg") == source_id("y", "COCO_val2014_000000000790.jpg")
    assert source_id("x", "images/v2/objects365_v2_00900001.jpg") == "objects365:v2_00900001"
    assert source_id("mine/train/7", "7.jpg") == "mine/train/7" == source_id("mine/train/7", None)


def test_looks_are_found_within_their_distance_whatever_bits_differ():
    rng = np.random.default_rng(0)
    theirs = rng.integers(0, 2**63, (3000, 2), dtype=np.uint64)
    ours = theirs[rng.permutation(3000)[:200]].copy()
    for row in ours:
        for bit in rng.permutation(128)[:6]:
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    found = near(ours, theirs)
    assert (np.bitwise_count(ours ^ theirs[found]).sum(axis=1) == 6).all()
    ours[:, 0] ^= np.uint64(0xFFFF)
    assert (near(ours, theirs) == -1).all()


def test_nothing_is_excluded_where_nothing_is_named(tmp_path):
    assert load_exclusion([], str(tmp_path)) is None
