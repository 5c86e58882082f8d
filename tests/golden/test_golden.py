"""The toy stages give the numbers of the golden record, and the comparison sees what it must."""

import copy
import math
from pathlib import Path

import pytest

from tests.golden.compare import STEP_TOLERANCES, difference
from tests.golden.record import RECORD, Runs, make_record, read_record, write_record


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_first_steps_of_the_toy_stages_give_the_recorded_numbers(tmp_path: Path) -> None:
    found = difference(read_record(), make_record(tmp_path))
    assert found is None, found


def changed(name: str, step: int, term: str, factor: float | None = None, **machine: str) -> dict:
    """The record with one number changed (by its last bit where no factor is given), as if of another machine."""
    record = copy.deepcopy(read_record())
    row = record["runs"][name][step - 1]
    row[term] = math.nextafter(row[term], math.inf) if factor is None else row[term] * factor
    record["machine"] |= machine
    return record


def test_one_bit_is_seen_on_the_same_machine() -> None:
    golden, new = read_record(), changed("finetune, 2 workers", 7, "loss_box")
    message = difference(golden, new)
    assert message is not None and message.startswith("finetune, 2 workers, step 7, loss_box: ")
    for record in (golden, new):
        assert repr(record["runs"]["finetune, 2 workers"][6]["loss_box"]) in message
    assert "bit for bit" in message and "python -m tests.golden.record" in message


@pytest.mark.parametrize("step", [1, 2])
def test_on_another_machine_the_first_steps_are_held_to_a_tolerance(step: int) -> None:
    golden, run, tolerance = read_record(), "pretrain, 1 worker", STEP_TOLERANCES[step - 1]
    assert difference(golden, changed(run, step, "loss", 1 + tolerance / 2, torch="9.9")) is None
    message = difference(golden, changed(run, step, "loss", 1 + tolerance * 2, torch="9.9"))
    assert message is not None and f"pretrain, 1 worker, step {step}, loss: " in message and "torch" in message


def test_on_another_machine_later_losses_are_free_and_the_schedule_is_not() -> None:
    golden, run = read_record(), "finetune, 2 workers"
    assert difference(golden, changed(run, 6, "loss", 1.5, torch="9.9")) is None
    for term in ("lr", "epoch"):
        assert f"step 6, {term}: " in str(difference(golden, changed(run, 6, term, 1.001, torch="9.9")))


def test_another_model_of_processor_is_told_and_held_to_every_bit() -> None:
    message = difference(read_record(), changed("pretrain, 1 worker", 5, "loss", cpu_model="other"))
    assert message is not None and "bit for bit" in message and "cpu_model" in message


@pytest.mark.parametrize("runs", [{}, {"pretrain, 1 worker": []}])
def test_what_is_missing_is_seen(runs: Runs) -> None:
    golden = read_record()
    assert difference(golden, {**golden, "runs": runs}) is not None
    short = {**golden, "runs": {name: rows[:-1] for name, rows in golden["runs"].items()}}
    assert "8 steps in the record, 7 now" in str(difference(golden, short))
    more = {
        **golden,
        "runs": {name: [{**row, "loss_new": 1.0} for row in rows] for name, rows in golden["runs"].items()},
    }
    assert "step 1, loss_new: None in the record, 1.0 now" in str(difference(golden, more))


def test_the_file_is_what_is_written(tmp_path: Path) -> None:
    # Every bit survives, and the committed file was written by this code.
    write_record(read_record(), tmp_path / "losses.json")
    assert (tmp_path / "losses.json").read_bytes() == RECORD.read_bytes()
