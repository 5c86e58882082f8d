"""A prepared set is plain Parquet: what people analyse data with must open it as it lies there."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.coco_files import annotation, options_for, prepare_here, rows_of, write_coco


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Three shards of seven images, with captions, a crowd and an object without a mask."""
    folder = write_coco(tmp_path_factory.mktemp("raw"), 7)
    notes = [annotation(10 + number, number, iscrowd=number % 2) for number in range(1, 7)]
    notes.append(annotation(30, 1, segmentation=None, category_id=7))
    write_coco(folder, 7, annotations=notes)
    (folder / "captions.json").write_text('{"annotations": [{"id": 1, "image_id": 2, "caption": "A cat."}]}')
    out = tmp_path_factory.mktemp("sets") / "set"
    prepare_here(options_for(folder, out, captions=str(folder / "captions.json")))
    return out


def test_hugging_face_datasets_shows_the_pictures(prepared, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = [str(path) for path in sorted((prepared / "shards").iterdir())]
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    rows = rows_of(prepared)
    assert isinstance(found.features["image"], datasets.Image) and len(found) == len(rows) == 7
    for ours, theirs in zip(rows, found, strict=True):
        assert isinstance(theirs["image"], Image.Image) and theirs["image"].size == (ours["width"], ours["height"])
        pixels = np.asarray(Image.open(io.BytesIO(ours["image"]["bytes"])))
        assert np.array_equal(np.asarray(theirs["image"]), pixels)
        for name in ("key", "objects", "references", "captions", "sha256", "messages"):
            assert theirs[name] == ours[name]


def test_duckdb_asks_for_objects_and_finds_repeated_images(prepared):
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(
        f"""
        select o.label, count(*), sum(o.area), bool_or(o.iscrowd), count(o.rle.counts)
        from (select unnest(objects) as o from '{prepared}/shards/*.parquet')
        group by o.label order by o.label
        """
    ).fetchall()
    objects = [item for row in rows_of(prepared) for item in row["objects"]]
    for label, count, area, crowd, masks in found:
        same = [item for item in objects if item["label"] == label]
        assert (count, area) == (len(same), sum(item["area"] for item in same))
        assert crowd == any(item["iscrowd"] for item in same)
        assert masks == sum(item["rle"] is not None for item in same)
    assert [label for label, *_ in found] == ["cat", "traffic light"]
    repeated = f"select sha256 from '{prepared}/shards/*.parquet' group by sha256 having count(*) > 1"
    assert duckdb.sql(repeated).fetchall() == []


def test_pandas_reads_it(prepared):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(prepared / "shards")
    rows = rows_of(prepared)
    assert list(table["key"]) == [row["key"] for row in rows]
    objects = table.explode("objects").dropna(subset=["objects"])
    assert len(objects) == sum(len(row["objects"]) for row in rows)
    assert Image.open(io.BytesIO(table["image"][0]["bytes"])).size == (120, 90)
