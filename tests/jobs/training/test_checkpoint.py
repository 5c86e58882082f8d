"""What a run goes on from: the newest checkpoint that is whole, whatever became of newer ones."""

import json
import shutil

import pytest

from jobs.training.checkpoint import SNAPSHOT, starting_point
from padt.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of two ranks as a run leaves them."""
    root = tmp_path / "checkpoints"
    for step in (10, 20, 30):
        for rank in (0, 1):
            part = root / f"step-{step:08d}" / "deepspeed"
            part.mkdir(parents=True, exist_ok=True)
            file = part / f"optimizer-{rank}.pt"
            file.write_bytes(b"x" * 100)
            listing = {"world_size": 2, "files": {f"deepspeed/{file.name}": 100}}
            (part.parent / f"files-{rank:05d}.json").write_text(json.dumps(listing))
    snapshot(root, 20, 30)
    return root


def snapshot(root, *steps):
    results = [{"checkpoint_dir_name": f"step-{step:08d}", "metrics": {}} for step in steps]
    (root / SNAPSHOT).write_text(json.dumps({"checkpoint_results": results}))


def damaged(root, kind):
    newest = root / "step-00000030"
    if kind == "truncated file":
        (newest / "deepspeed" / "optimizer-1.pt").write_bytes(b"x" * 7)
    elif kind == "missing file":
        (newest / "deepspeed" / "optimizer-0.pt").unlink()
    elif kind == "a rank's part is missing":
        (newest / "files-00001.json").unlink()
    else:
        shutil.rmtree(newest)


def test_ray_train_finds_what_is_whole_itself(folder, tmp_path):
    assert starting_point(str(tmp_path)) is None and (folder / SNAPSHOT).exists()
    # A newer one that a kill cut short is in no list.
    (folder / "step-00000040").mkdir()
    assert starting_point(str(tmp_path)) is None
    assert starting_point(str(tmp_path / "new")) is None


@pytest.mark.parametrize("kind", ["truncated file", "missing file", "a rank's part is missing", "missing folder"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning_that_names_both(folder, tmp_path, caplog, kind):
    damaged(folder, kind)
    assert starting_point(str(tmp_path)) == str(folder / "step-00000020")
    assert "step-00000030" in caplog.text and "going on from step-00000020" in caplog.text
    assert not (folder / SNAPSHOT).exists(), "Ray Train would refuse it"
    # Killed again before the next checkpoint.
    assert starting_point(str(tmp_path)) == str(folder / "step-00000020")


def test_a_truncated_list_costs_no_checkpoint(folder, tmp_path, caplog):
    (folder / SNAPSHOT).write_text((folder / SNAPSHOT).read_text()[:20])
    assert starting_point(str(tmp_path)) == str(folder / "step-00000030")
    assert SNAPSHOT in caplog.text and "step-00000030" in caplog.text


def test_without_any_whole_checkpoint_one_sentence_says_so(folder, tmp_path):
    for each in folder.glob("step-*"):
        (each / "deepspeed" / "optimizer-1.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"no whole checkpoint \(step-00000030: .*0 of 100 bytes.*remove that folder"):
        starting_point(str(tmp_path))


def test_what_a_kill_left_of_the_first_checkpoint_is_ignored(folder, tmp_path):
    for each in folder.glob("step-*"):
        damaged(folder, "missing folder") if each.name == "step-00000030" else shutil.rmtree(each)
    (folder / SNAPSHOT).unlink()
    (folder / "step-00000010").mkdir()
    assert starting_point(str(tmp_path)) is None
