"""gRefCOCO from its published JSON to its figures: several targets, one, none."""

import pytest

from jobs.evaluation.evaluate import answer
from jobs.evaluation.samples import open_eval_set
from jobs.evaluation.scoring import score_records
from tests.jobs.evaluation.oracle import Oracle
from tests.pipelines.coco_files import annotation, options_for, prepare_here, write_coco
from tests.pipelines.sources.test_grefcoco import REFS, _written


@pytest.fixture
def prepared(tmp_path) -> str:
    write_coco(tmp_path, 1, annotations=[annotation(11, 1), annotation(12, 1, (60, 20, 50, 40))])
    references = _written(tmp_path, REFS)
    prepare_here(options_for(tmp_path, tmp_path / "set", source="refcoco", references=references))
    return str(tmp_path / "set")


def test_its_figures(prepared):
    data = open_eval_set(prepared, ["refer"])
    records = answer(data, Oracle(prepared), progress=False).records
    perfect = score_records(data, records, masks=True)
    for name in ("gIoU", "cIoU", "N_acc", "T_acc", "presence_MCC", "precision_at_0.5", "vlm_r1_accuracy"):
        assert perfect.metrics[name] == 1.0, name
    assert (perfect.counts["sentences"], perfect.counts["sentences_without_target"]) == (4, 1)
    # An answer to the dragon that is not there, and none to one of the four sentences.
    by_text = {record["sentence"]: record for record in records}
    by_text["a red dragon"]["prediction"]["objects"] = by_text["left cat"]["prediction"]["objects"][:1]
    by_text["all of them"]["prediction"]["objects"] = []
    metrics = score_records(data, records, masks=True).metrics
    assert metrics["N_acc"] == 0.0 and metrics["T_acc"] == pytest.approx(2 / 3)
    assert metrics["gIoU"] == pytest.approx(2 / 4)
    assert metrics["presence_MCC"] == pytest.approx((2 * 0 - 1 * 1) / (3 * 3 * 1 * 1) ** 0.5)
