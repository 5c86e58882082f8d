"""Labels that may be missing reach people's tools: as COCO results, and as a folder that FiftyOne imports."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from jobs.cli.main import main
from jobs.evaluation.evaluate import answer
from jobs.evaluation.report.publish import ReportOptions
from jobs.evaluation.samples import open_eval_set
from jobs.evaluation.score import run_score
from jobs.evaluation.store import to_parquet
from padt.errors import UserError
from pipelines.toy.scenes import KINDS
from tests.jobs.evaluation.oracle import Oracle
from tests.pipelines.mini_set import scene_row, write_mini_set, write_set

mask_tools = pytest.importorskip("pycocotools.mask")
pytest.importorskip("faster_coco_eval")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A set whose truth lacks the first object of two scenes, answers that find everything, and what is lacking."""
    folder = tmp_path_factory.mktemp("case")
    whole = [scene_row(number) for number in range(12)]
    full = write_set(folder / "full", whole)
    records = answer(open_eval_set(full, ["detect"]), Oracle(full), progress=False).records
    # Objects that nothing else overlaps.
    gone = [row for row in whole if len(row["objects"]) > 1 and not _touches(row)][:2]
    lacking = [(row["image_id"], row["objects"][0]) for row in gone]
    for row in gone:
        row["objects"], row["references"], row["captions"] = row["objects"][1:], [], []
    url = write_set(folder / "set", whole)
    (folder / "answers.parquet").write_bytes(to_parquet(records))
    return url, folder / "answers.parquet", lacking


def _touches(row) -> bool:
    x0, y0, x1, y1 = row["objects"][0]["box"]
    return any(
        min(x1, x3) > max(x0, x2) and min(y1, y3) > max(y0, y2)
        for x2, y2, x3, y3 in (one["box"] for one in row["objects"][1:])
    )


def test_what_the_truth_lacks_is_listed_as_coco_results(case, tmp_path):
    from pycocotools.coco import COCO

    url, answers, lacking = case
    assert len(lacking) == 2
    run_score(answers, url, tmp_path / "out", tasks=["detect"], report=ReportOptions(pictures=0))
    results = json.loads((tmp_path / "out" / "missing_labels.json").read_text())
    assert sorted(one["image_id"] for one in results) == sorted(int(image) for image, _ in lacking)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": int(image), "height": 1, "width": 1} for image, _ in lacking],
        "annotations": [],
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(KINDS)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        assert len(truth.loadRes(results).anns) == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "All 2 are in" in page and "missing_labels.json" in page


def test_the_folder_is_what_fiftyone_imports_field_by_field(case, tmp_path):
    """docs.voxel51.com, COCODetectionDataset: data/ and labels.json; ``score`` and ``segmentation`` are optional keys.

    Its importer finds pictures by ``file_name`` and cuts a mask to the rounded corners of its ``bbox``.
    """
    url, answers, lacking = case
    review = tmp_path / "review"
    # Without --out it works too.
    run_score(answers, url, report=ReportOptions(missing_labels=str(review)), tasks=["detect"])
    assert sorted(path.name for path in review.iterdir()) == ["data", "labels.json", "truth.json"]
    labels, truth = (json.loads((review / name).read_text()) for name in ("labels.json", "truth.json"))
    for content in (labels, truth):
        assert set(content) == {"info", "licenses", "categories", "images", "annotations"}
        assert content["categories"] == [{"id": number + 1, "name": name} for number, name in enumerate(KINDS)]
        assert [one["id"] for one in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    assert labels["images"] == truth["images"] and len(labels["images"]) == 2
    rows = {int(row["image_id"]): row for row in open_eval_set(url).truth.values()}
    sizes = {}
    for image in labels["images"]:
        assert set(image) == {"id", "file_name", "width", "height"}
        opened = Image.open(review / "data" / image["file_name"])
        assert opened.size == (image["width"], image["height"]) and opened.format == "PNG"
        assert (review / "data" / image["file_name"]).read_bytes() == scene_row(image["id"])["image"]["bytes"]
        sizes[image["id"]] = opened.size
    expected = {int(image): entry for image, entry in lacking}
    for one in labels["annotations"]:
        assert set(one) == {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "score", "segmentation"}
        assert one["score"] == 0.9 and one["iscrowd"] == 0
        entry, (width, height) = expected[one["image_id"]], sizes[one["image_id"]]
        assert one["category_id"] == entry["category_id"]
        x, y, w, h = one["bbox"]
        corners = np.array(entry["box"]) * [width, height, width, height]
        assert [x, y, x + w, y + h] == pytest.approx(corners, abs=1e-3) and one["area"] == pytest.approx(w * h)
        mask = mask_tools.decode(one["segmentation"]).astype(bool)
        cut = mask[round(y) : round(y + h), round(x) : round(x + w)]
        assert mask.shape == (height, width) and cut.sum() == mask.sum() > 0
    known = [(one["image_id"], one["category_id"]) for one in truth["annotations"]]
    assert sorted(known) == sorted((k, each["category_id"]) for k in sizes for each in rows[k]["objects"])
    assert all("score" not in one for one in truth["annotations"])


def test_boxes_beyond_the_picture_are_cut_and_what_is_nothing_has_no_mask(case, tmp_path):
    url, answers, lacking = case
    row = next(iter(open_eval_set(url).truth.values()))
    width, height = row["width"], row["height"]
    results = [
        {"image_id": int(row["image_id"]), "category_id": 1, "score": 0.9, "bbox": box}
        for box in ([-50, -50, 60, 60], [width + 5, 0, 9, 9], [width - 9, height - 9, 0.2, 0.2])
    ]
    for one in results:
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[:5, :5] = 1
        code = mask_tools.encode(mask)
        one["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
    (tmp_path / "results.json").write_text(json.dumps(results))
    run_score(tmp_path / "results.json", url, report=ReportOptions(missing_labels=str(tmp_path / "review")))
    labels = {
        tuple(one["bbox"]): one for one in json.loads((tmp_path / "review" / "labels.json").read_text())["annotations"]
    }
    assert "segmentation" in labels[0, 0, 10, 10] and "segmentation" not in labels[width, 0, 0, 9]
    for x, y, w, h in labels:
        assert 0 <= x <= x + w <= width and 0 <= y <= y + h <= height


def test_a_folder_of_other_things_is_left_alone_and_an_older_review_replaced(case, tmp_path):
    url, answers, _ = case
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt.*--missing-labels"):
        run_score(answers, url, report=ReportOptions(missing_labels=str(tmp_path / "mine")))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    for score, number in ((0.5, 2), (0.95, 0)):
        run_score(answers, url, report=ReportOptions(missing_labels=str(tmp_path / "review"), missing_score=score))
        assert len(json.loads((tmp_path / "review" / "labels.json").read_text())["annotations"]) == number
        assert len(list((tmp_path / "review" / "data").iterdir())) == number


def test_missing_labels_of_a_set_without_detection_are_refused_before_anything(tmp_path):
    url = write_mini_set(tmp_path / "set", scenes=2)
    records = answer(open_eval_set(url, ["refer"]), Oracle(url), progress=False).records
    (tmp_path / "some.parquet").write_bytes(to_parquet(records))
    with pytest.raises(UserError, match="--missing-labels is about detection"):
        run_score(tmp_path / "some.parquet", url, report=ReportOptions(missing_labels=str(tmp_path / "review")))
    assert not (tmp_path / "review").exists()


def test_the_command_line_makes_both(case, tmp_path, capsys):
    url, answers, _ = case
    out, review = str(tmp_path / "out"), str(tmp_path / "review")
    command = ["score", str(answers), "--data", url, "--task", "detect", "--out", out, "--no-mlflow", "--limit", "2"]
    assert main([*command, "--missing-labels", review, "--missing-score", "0.3"]) == 0
    assert (tmp_path / "out" / "report.html").exists() and (tmp_path / "review" / "labels.json").exists()
    assert main([*command, "--no-report"]) == 0
    assert not (tmp_path / "out" / "report.html").exists()
    capsys.readouterr()
