"""Evaluation: each sample counted exactly once, whoever answers it; perfect answers score 1; bad input is named."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.evaluation.answers import checked, windows
from jobs.evaluation.evaluate import answer, run_evaluate
from jobs.evaluation.report.publish import ReportOptions
from jobs.evaluation.samples import open_eval_set, policy_mismatch
from jobs.evaluation.score import run_score
from jobs.evaluation.scoring import score_records
from jobs.evaluation.store import REPORT_FILES
from padt.data.image import ResizePolicy
from padt.errors import UserError
from padt.metrics.detect import score_detect
from pipelines.prepare.run import PrepareOptions, prepare
from pipelines.prepare.shards import write_shard
from tests.jobs.evaluation.oracle import Oracle
from tests.jobs.tiny_model import write_tiny_model
from tests.padt.metrics.test_detect import coco_truth, jittered
from tests.pipelines.mini_set import scene_row, write_mini_set, write_set

pytest.importorskip("faster_coco_eval")


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> str:
    """Eleven scenes in two shards: a number that no count of workers divides."""
    return write_mini_set(tmp_path_factory.mktemp("mini") / "set", scenes=11)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def test_perfect_answers_score_one_and_counts_are_those_of_the_set(mini):
    data = open_eval_set(mini)
    records = answer(data, Oracle(mini), progress=False).records
    assert [record["id"] for record in records] == sorted(sample.id for sample in data.samples)
    scores = score_records(data, records, masks=True, released=True)
    for name in (
        "precision_at_0.9",
        "cIoU",
        "gIoU",
        "bbox_AP",
        "segm_AP",
        "caption_grounded",
        "caption_GP",
        "caption_GR",
    ):
        assert scores.metrics[name] == pytest.approx(1.0), name
    assert scores.metrics["released_precision_at_0.5"] == 1.0
    assert scores.metrics["released_bbox_AP"] == pytest.approx(1.0)
    sentences = sum(len(row["references"]) for row in data.truth.values())
    objects = sum(len(row["objects"]) for row in data.truth.values())
    assert (scores.counts["sentences"], scores.counts["images"], scores.counts["captions"]) == (sentences, 11, 11)
    assert (scores.counts["objects"], scores.counts["errors"], len(scores.results)) == (objects, 0, objects)
    assert {entry["image_id"] for entry in scores.results} == set(range(11))


def test_several_workers_answer_every_sample_exactly_once_though_one_dies(ray_cluster, tmp_path):
    several = write_mini_set(tmp_path / "set", scenes=69)
    data = open_eval_set(several)
    assert len(windows(data.samples)) == 3
    alone = answer(data, Oracle(several), workers=1, progress=False).records
    mortal = Oracle(several, die_once=str(tmp_path / "died"))
    assert answer(data, mortal, workers=3, progress=False).records == alone
    assert (tmp_path / "died").exists()


def test_ap_on_a_prepared_set_is_that_of_the_published_file(samples, tmp_path):
    """Preparing stores normalised float32 boxes and compressed masks: not a digit of AP may change by that."""
    coco = samples / "coco"
    annotations = coco / "annotations" / "instances_val2017.json"
    options = PrepareOptions(str(annotations), str(coco / "val2017"), str(tmp_path / "set"), split="val2017")
    prepare(options, execute=lambda tasks: map(write_shard, tasks))
    data = open_eval_set(str(tmp_path / "set"))
    categories = [(category.id, category.name) for category in data.manifest.categories]
    _, published = coco_truth(samples, "val")
    answers = jittered(published, dict(categories), np.random.default_rng(5))
    numbers = {image.image_id: image.id for image in published}
    prepared = data.detect_targets()
    assert {image.image_id for image in prepared} == set(numbers)
    own = {image.id: answers.get(numbers[image.image_id], []) for image in prepared}
    expected, _ = score_detect(published, answers, categories)
    assert score_detect(prepared, own, categories)[0].metrics == pytest.approx(expected.metrics, abs=1e-9)


def test_windows_lose_nothing_and_keep_rows_together(mini):
    data = open_eval_set(mini)
    cut = windows(data.samples)
    assert sorted(sample.id for window in cut for sample in window) == sorted(sample.id for sample in data.samples)
    rows = [{sample.row for sample in window} for window in cut]
    assert sum(len(numbers) for numbers in rows) == 11


def test_lost_and_doubled_answers_are_noticed(mini):
    todo = dict(enumerate(windows(open_eval_set(mini).samples)))
    records = [{"id": sample.id} for sample in todo[0]]
    assert list(checked(todo, [(0, records)])) == [(0, records)]
    for wrong in (records[1:], [*records, records[0]], [*records[1:], {"id": "other"}]):
        with pytest.raises(RuntimeError, match="answered twice, not at all"):
            list(checked(todo, [(0, wrong)]))
    with pytest.raises(RuntimeError, match="answered twice"):
        list(checked(todo, [(0, records), (0, records)]))
    with pytest.raises(RuntimeError, match="1 windows were not answered"):
        list(checked(todo, []))


def test_limit_takes_the_first_keys_and_tasks_are_chosen(mini):
    data = open_eval_set(mini, tasks=["detect"], limit=3)
    assert [sample.id for sample in data.samples] == [
        "mini/train/0:detect",
        "mini/train/1:detect",
        "mini/train/10:detect",
    ]


def test_an_unreadable_picture_counts_as_unanswered_and_stops_nothing(tmp_path):
    rows = [scene_row(number) for number in range(3)]
    rows[1]["image"]["bytes"] = b"no picture"
    data = open_eval_set(write_set(tmp_path / "set", rows))
    records = answer(data, Oracle(data.index.url), progress=False).records
    scores = score_records(data, records, masks=True)
    assert scores.counts["errors"] == len(rows[1]["references"]) + 2
    assert scores.counts["images"] == 3
    share = 1 - len(rows[1]["references"]) / scores.counts["sentences"]
    assert scores.metrics["precision_at_0.5"] == pytest.approx(share)


def test_a_missing_linked_picture_costs_itself_only(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.loader.sample_source._PAUSES", ())
    rows = [scene_row(number) for number in range(3)]
    rows[1]["image"] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    data = open_eval_set(write_set(tmp_path / "set", rows))
    records = answer(data, Oracle(data.index.url), progress=False).records
    failed = [record for record in records if "error" in record]
    assert {record["key"] for record in failed} == {rows[1]["key"]}
    assert all("linked image" in record["error"] for record in failed)


def test_what_is_wrong_with_answers_is_counted_and_no_nan_ends_the_scoring(mini):
    data = open_eval_set(mini)
    records = answer(data, Oracle(mini), progress=False).records
    answered = [record["prediction"] for record in records if record["task"] == "detect"]
    answered[0]["truncated"] = answered[1]["truncated"] = True
    answered[2]["warnings"] = ["VRT 7 at token 3 is beyond the sample's 4 patches"]
    answered[3]["objects"][0]["score"] = float("nan")
    answered[4]["objects"][0]["box"] = (0.0, 0.0, float("inf"), 1.0)
    scores = score_records(data, records, masks=True, released=True)
    assert scores.counts["answers_truncated"] == 2
    assert scores.counts["answers_with_warnings"] == 1
    assert scores.counts["objects_not_finite"] == 2
    assert len(scores.results) == scores.counts["objects"] - 2
    assert all(np.isfinite(value) for value in scores.metrics.values())


def test_real_model_leaves_a_whole_report(mini, tiny, tmp_path):
    out = tmp_path / "evaluation"
    options = {"limit": 2, "batch_size": 4, "max_new_tokens": 6, "progress": False}
    result = run_evaluate(tiny, mini, out_dir=out, **options)
    files = {*REPORT_FILES, "plan.json"}
    assert {file.name for file in out.iterdir()} == files
    summary = json.loads((out / "metrics.json").read_text())
    assert summary["metrics"] == result.metrics
    assert {"eval/mini/precision_at_0.5", "eval/mini/gIoU", "eval/mini/bbox_AP50"} <= set(result.metrics)
    assert summary["settings"]["max_new_tokens"] == 6
    assert (summary["set"], summary["samples"]) == ("mini", result.samples)
    # Six tokens are no whole answer, and whoever reads the scores is told.
    assert summary["counts"]["answers_truncated"] > 0
    assert any("ended at max_new_tokens" in warning for warning in summary["warnings"])
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    assert [row["id"] for row in rows] == sorted({row["id"] for row in rows})
    assert len(rows) == result.samples
    # Scored again, the same answers give the same report.
    page = (out / "report.html").read_bytes()
    run_score(out, mini, report=ReportOptions(pictures=0))
    assert (out / "report.html").read_bytes() == page
    # Another evaluation takes its place when told to; what else lies there stays.
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="tasks: .* --overwrite"):
        run_evaluate(tiny, mini, tasks=["refer"], out_dir=out, set_name="again", **options)
    options |= {"overwrite": True, "report": ReportOptions(page=False)}
    run_evaluate(tiny, mini, tasks=["refer"], out_dir=out, set_name="again", **options)
    gone = {"coco_results.json", "missing_labels.json", "report.html"}
    assert {file.name for file in out.iterdir()} == {"notes.txt", *files} - gone
    assert all(name.startswith("eval/again/") for name in json.loads((out / "metrics.json").read_text())["metrics"])


def test_another_resize_policy_is_said_but_does_not_stop(mini):
    manifest = open_eval_set(mini).manifest
    assert policy_mismatch(ResizePolicy(), manifest) is None
    said = policy_mismatch(ResizePolicy(max_pixels=99999), manifest)
    assert said is not None
    assert "99999" in said
    assert str(manifest.policy.max_pixels) in said


def test_sets_without_truth_for_a_task(tmp_path):
    plain = write_mini_set(tmp_path / "plain", scenes=2, texts=False, masks=False)
    data = open_eval_set(plain)
    assert {sample.task for sample in data.samples} == {"detect"}
    records = answer(data, Oracle(plain), progress=False).records
    metrics = score_records(data, records, masks=True).metrics
    assert metrics["bbox_AP"] == pytest.approx(1.0)
    assert "segm_AP" not in metrics
    with pytest.raises(UserError, match="no row has sentences.*truth for detect"):
        open_eval_set(plain, tasks=["refer"])


def test_bad_input_is_named(mini, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        run_evaluate(tiny, tmp_path / "empty")
    with pytest.raises(UserError, match="Task 'segment' is unknown"):
        run_evaluate(tiny, mini, tasks=["segment"])
    with pytest.raises(UserError, match="limit 0"):
        run_evaluate(tiny, mini, limit=0)
    with pytest.raises(UserError, match="is not there"):
        run_evaluate(tmp_path / "nowhere", mini)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        run_evaluate(tiny, mini, out_dir=tmp_path / "file")
    with pytest.raises(UserError, match="batch_size 0"):
        run_evaluate(tiny, mini, batch_size=0)
