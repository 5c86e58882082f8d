"""``padt score``: stored answers again, other systems' COCO results, and what does not fit the data, counted."""

import contextlib
import io
import json
import math

import numpy as np
import pytest

from jobs.evaluation.answers import windows
from jobs.evaluation.evaluate import answer
from jobs.evaluation.report.publish import ReportOptions
from jobs.evaluation.samples import open_eval_set
from jobs.evaluation.score import run_score
from jobs.evaluation.scoring import read_synonyms, score_records
from jobs.evaluation.store import REPORT_FILES, AnswerStore, to_parquet
from padt.errors import UserError
from tests.jobs.evaluation.oracle import Oracle
from tests.jobs.evaluation.test_restart import PLAN
from tests.pipelines.mini_set import scene_row, write_mini_set, write_set

pytest.importorskip("faster_coco_eval")

NOTHING = ReportOptions(page=False, pictures=0)


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> str:
    return write_mini_set(tmp_path_factory.mktemp("mini") / "set", scenes=11)


@pytest.fixture(scope="module")
def truth(mini):
    return open_eval_set(mini)


@pytest.fixture(scope="module")
def records(mini, truth):
    return answer(truth, Oracle(mini), progress=False).records


@pytest.fixture(scope="module")
def results(records, truth) -> list[dict]:
    """Perfect COCO results, boxes and masks."""
    return score_records(truth, records, masks=True).results


def written(folder, entries) -> str:
    (folder / "results.json").write_text(json.dumps(entries))
    return str(folder / "results.json")


def test_unknown_double_and_missing_answers_are_counted(mini, records, tmp_path):
    unknown = {**records[0], "id": "other/1:detect"}
    (tmp_path / "some.parquet").write_bytes(to_parquet([*records[3:], records[5], unknown]))
    result = run_score(tmp_path / "some.parquet", mini, tmp_path / "out", report=NOTHING)
    assert [result.counts[f"answers_{name}"] for name in ("unknown", "double", "missing")] == [1, 1, 3]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["counts"] == result.counts
    assert sum(line.startswith(("1 answers", "3 samples")) for line in result.warnings) == 3


def test_an_evaluation_is_scored_again_as_it_was_asked(mini, tmp_path):
    data = open_eval_set(mini, ["detect"], limit=4)
    store = AnswerStore(str(tmp_path / "out"))
    about = {"set": "few", "data": mini, "data_fingerprint": data.fingerprint, "limit": 4, "tasks": ["detect"]}
    known = store.begin(PLAN, about, windows(data.samples), False)
    expected = answer(data, Oracle(mini), progress=False, store=store, known=known).records
    result = run_score(tmp_path / "out", mini)
    assert result.metrics["eval/few/bbox_AP"] == pytest.approx(1.0) and result.counts["images"] == 4
    assert result.counts["answers_missing"] == 0 and result.warnings == ()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*REPORT_FILES, "plan.json"}
    assert store.records() == expected
    all_of_it = run_score(tmp_path / "out", mini, tmp_path / "else", limit=11, tasks=["detect", "refer"])
    assert all_of_it.counts["answers_missing"] == len(open_eval_set(mini, ["detect", "refer"]).samples) - 4
    assert any("another set, or has changed since" in line for line in all_of_it.warnings)


def test_sentences_are_told_apart_by_kind_and_scored_again_so(mini, truth, tmp_path):
    sentences = [sample.sentence for sample in truth.of_task("refer")]
    word = sentences[0].split()[-1]
    (tmp_path / "kinds.yaml").write_text(f"named: {word}\n")
    store = AnswerStore(str(tmp_path / "out"))
    about = {"set": "few", "data": mini, "data_fingerprint": truth.fingerprint, "limit": None, "tasks": ["refer"]}
    known = store.begin(PLAN, about, windows(truth.samples), False)
    answer(truth, Oracle(mini), progress=False, store=store, known=known)
    result = run_score(tmp_path / "out", mini, sentence_kinds=tmp_path / "kinds.yaml", report=NOTHING)
    assert sum(kind["sentences"] for kind in result.kinds.values()) == len(sentences)
    assert result.kinds["named"]["sentences"] == sum(word in sentence.split() for sentence in sentences)
    assert result.kinds["named"]["precision_at_0.5"] == pytest.approx(1.0)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["by_kind"] == result.kinds
    with pytest.raises(UserError, match="kinds.yaml.*regular expression"):
        (tmp_path / "kinds.yaml").write_text("named: '('\n")
        run_score(tmp_path / "out", mini, sentence_kinds=tmp_path / "kinds.yaml", report=NOTHING)


def test_coco_results_of_others_score_as_the_same_answers_do(mini, truth, results, tmp_path):
    result = run_score(written(tmp_path, results), mini)
    assert result.metrics["eval/mini/bbox_AP"] == pytest.approx(1.0)
    assert result.metrics["eval/mini/segm_AP"] == pytest.approx(1.0)
    assert result.metrics["eval/mini/bbox_F1"] == pytest.approx(1.0)
    boxes = [{name: value for name, value in entry.items() if name != "segmentation"} for entry in results]
    assert "eval/mini/segm_AP" not in run_score(written(tmp_path, boxes), mini).metrics
    # Masks only: their boxes are taken. Polygons count too.
    masks = [{name: value for name, value in entry.items() if name != "bbox"} for entry in results]
    assert run_score(written(tmp_path, masks), mini).metrics["eval/mini/segm_AP"] == pytest.approx(1.0)
    x, y, width, height = results[0]["bbox"]
    polygon = {**results[0], "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]]}
    assert run_score(written(tmp_path, [polygon, *results[1:]]), mini).metrics["eval/mini/segm_AP50"] > 0.8


def test_ap_of_a_results_file_is_pycocotools(mini, truth, results, tmp_path):
    """Jittered results of a file, by this command and by pycocotools itself."""
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(0)
    jittered = [
        {**entry, "bbox": (np.array(entry["bbox"]) + rng.normal(0, 3, 4)).tolist(), "score": float(rng.random())}
        for entry in results
        if rng.random() > 0.2
    ]
    own = run_score(written(tmp_path, jittered), mini).metrics
    images = truth.detect_targets()
    annotations = [
        {
            "id": number,
            "image_id": image.image_id,
            "category_id": true.category_id,
            "area": true.area,
            "iscrowd": 0,
            "bbox": [true.box[0], true.box[1], true.box[2] - true.box[0], true.box[3] - true.box[1]],
        }
        for number, (image, true) in enumerate(((image, true) for image in images for true in image.objects), 1)
    ]
    content = {
        "info": {},
        "images": [{"id": image.image_id, "height": image.height, "width": image.width} for image in images],
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in truth.manifest.categories],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    boxes = [{name: value for name, value in entry.items() if name != "segmentation"} for entry in jittered]
    with contextlib.redirect_stdout(io.StringIO()):
        ground = coco.COCO(str(tmp_path / "truth.json"))
        public = evaluation.COCOeval(ground, ground.loadRes(boxes), "bbox")
        public.evaluate()
        public.accumulate()
        public.summarize()
    assert own["eval/mini/bbox_AP"] == pytest.approx(public.stats[0], abs=1e-6)
    assert own["eval/mini/bbox_AP75"] == pytest.approx(public.stats[2], abs=1e-6)
    assert own["eval/mini/bbox_AR_100"] == pytest.approx(public.stats[8], abs=1e-6)


def test_what_does_not_fit_in_a_results_file_is_counted_and_left_out(mini, results, tmp_path):
    first = results[0]["image_id"]
    entries = [
        *[entry for entry in results if entry["image_id"] != first],
        {**results[-1]},
        {**results[-1], "image_id": 999},
        {**results[-1], "category_id": 999},
        {**results[-1], "bbox": [0, 0, math.nan, 5]},
        {**results[-1], "score": math.inf},
    ]
    result = run_score(written(tmp_path, entries), mini)
    expected = {"answers_unknown": 2, "answers_double": 1, "answers_missing": 1, "objects_not_finite": 2}
    assert {name: result.counts[name] for name in expected} == expected
    assert len(result.warnings) == 4
    assert all(math.isfinite(value) for value in result.metrics.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": "first"}, "result 0 has no whole number as image_id"),
        ({"bbox": [1, 2, 3], "segmentation": None}, "result 0 lacks a score, or a bbox"),
        ({"score": None}, "result 0 lacks a score"),
        ({"segmentation": {"size": [3, 4], "counts": [12]}}, "result 0 has a mask of .3, 4."),
        ({"segmentation": {"counts": 3}}, "result 0 has no valid segmentation"),
    ],
)
def test_entries_that_are_no_results_are_named(mini, results, tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        run_score(written(tmp_path, [{**results[0], **change}, *results[1:]]), mini)


def test_files_that_hold_no_answers_are_named(mini, tmp_path):
    with pytest.raises(UserError, match="are a JSON list"):
        run_score(written(tmp_path, {"images": []}), mini)
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(UserError, match="are no JSON"):
        run_score(tmp_path / "broken.json", mini)
    with pytest.raises(UserError, match="holds no evaluation"):
        run_score(tmp_path, mini)
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="is damaged"):
        run_score(tmp_path / "broken.parquet", mini)
    with pytest.raises(UserError, match="is not there"):
        run_score(tmp_path / "gone.parquet", mini)
    with pytest.raises(UserError, match="None of the answers"):
        run_score(written(tmp_path, [{"image_id": 999, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]), mini)


def test_synonyms_map_other_names_to_categories(mini, truth, records, tmp_path):
    categories = [(category.id, category.name) for category in truth.manifest.categories]
    first = categories[0][1]
    renamed = json.loads(json.dumps(records))
    for record in renamed:
        for thing in record["prediction"]["objects"]:
            if thing["label"] == first:
                thing["label"] = "Roundish  Thing"
    (tmp_path / "answers.parquet").write_bytes(to_parquet(renamed))
    (tmp_path / "names.yaml").write_text(f"{first}: [roundish thing, orb]\n")
    without = run_score(tmp_path / "answers.parquet", mini, tasks=["detect"])
    assert without.counts["unknown_labels"] > 0 and without.metrics["eval/mini/bbox_AP"] < 0.9
    told = run_score(tmp_path / "answers.parquet", mini, tasks=["detect"], synonyms=tmp_path / "names.yaml")
    assert told.counts["unknown_labels"] == 0 and told.metrics["eval/mini/bbox_AP"] == pytest.approx(1.0)
    for text, said in (("blob: [x]", "no category 'blob'"), (f"{first}: [{categories[1][1]}]", "would mean both")):
        (tmp_path / "wrong.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            read_synonyms(tmp_path / "wrong.yaml", categories)


def test_the_papers_protocol_ranks_by_the_scores_before_calibration(mini, truth, records):
    """A calibration that turns the ranking round costs the official AP, and not the paper's."""
    turned = json.loads(json.dumps(records))
    for record in turned:
        if record["task"] == "detect":
            objects = record["prediction"]["objects"]
            wrong = [{**one, "box": [0.0, 0.0, 1.0, 1.0], "uncalibrated_score": 0.1, "score": 0.9} for one in objects]
            right = [{**one, "uncalibrated_score": 0.9, "score": 0.1} for one in objects]
            record["prediction"]["objects"] = wrong + right
    metrics = score_records(truth, turned, masks=False, released=True).metrics
    assert metrics["bbox_AP50"] < 0.8 and metrics["released_bbox_AP50"] == pytest.approx(1.0)


def test_sentences_are_scored_by_split_too_where_there_are_several(tmp_path):
    rows = [scene_row(number) for number in range(4)]
    for number, row in enumerate(rows):
        row["split"] = "testA" if number < 2 else "testB"
        row["key"] = f"mini/{row['split']}/{number}"
    url = write_set(tmp_path / "set", rows)
    data = open_eval_set(url)
    own = answer(data, Oracle(url), progress=False).records
    for record in own:
        if record["task"] == "refer" and "testB" in record["key"]:
            record["prediction"]["objects"] = []
    scores = score_records(data, own, masks=True)
    assert scores.metrics["testA/precision_at_0.5"] == 1.0 and scores.metrics["testB/gIoU"] == 0.0
    assert 0 < scores.metrics["gIoU"] < 1
    assert set(scores.splits) == {"mini/testA", "mini/testB"} and scores.splits["mini/testA"]["gIoU"] == 1.0
