"""Who writes the shards: processes of this machine without a cluster, Ray with one, and the same bytes from both."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from padt.errors import UserError
from pipelines.prepare import execute, worker
from pipelines.prepare.execute import execute_here, execute_in_processes, execute_on_ray, execute_tasks
from pipelines.prepare.run import prepare
from tests.conftest import REPOSITORY
from tests.pipelines.coco_files import content_of, options_for, prepare_here, write_coco


def test_a_worker_loads_nothing_that_it_does_not_need():
    """Each of these takes a second or more to import, in every worker."""
    code = "import json, sys, pipelines.prepare.worker; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert not loaded & {"torch", "transformers", "ray", "mlflow", "pandas", "deepspeed", "serve", "jobs"}


def test_the_command_starts_no_ray_where_there_is_no_cluster(tmp_path):
    folder = write_coco(tmp_path / "raw")
    code = (
        "import sys\n"
        "from jobs.data.prepare import run_prepare\n"
        "from pipelines.prepare.options import PrepareOptions\n"
        "run_prepare(PrepareOptions(sys.argv[1], sys.argv[2], sys.argv[3], rows_per_shard=3, num_cpus=2))\n"
        "assert 'ray' not in sys.modules and 'torch' not in sys.modules"
    )
    places = [folder / "instances.json", folder / "images", tmp_path / "set"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, "-c", code, *map(str, places)], check=True, cwd=REPOSITORY, env=environment)
    assert (tmp_path / "set" / "manifest.json").exists()


def test_processes_give_the_bytes_of_a_single_one(tmp_path):
    folder = write_coco(tmp_path / "raw")
    prepare_here(options_for(folder, tmp_path / "here"))
    prepare(options_for(folder, tmp_path / "there"), execute=lambda tasks: execute_in_processes(tasks, 2))
    assert content_of(tmp_path / "here") == content_of(tmp_path / "there")


def test_a_killed_worker_is_replaced_and_its_shard_begun_again(tmp_path):
    folder = write_coco(tmp_path / "raw", count=12)
    whole = prepare_here(options_for(folder, tmp_path / "whole"))
    killed = []

    def with_a_kill(tasks):
        for result in execute_in_processes(tasks, 2):
            if not killed:
                killed.extend(_workers())
                for each in killed:
                    each.send_signal(signal.SIGKILL)
            yield result

    assert prepare(options_for(folder, tmp_path / "set"), execute=with_a_kill).fingerprint == whole.fingerprint
    assert killed and not any(each.is_running() and each in _workers() for each in killed)


def _workers() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if worker.__name__ in each.cmdline()]


def test_a_shard_that_kills_every_worker_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    started = []

    def dead_on_arrival():
        started.append(1)
        return subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(execute, "_start", dead_on_arrival)
    folder = write_coco(tmp_path / "raw", count=6)
    with pytest.raises(UserError, match=r"shards/shard-0000\d-of-0000\d\.parquet was given up .*--num-cpus"):
        prepare(options_for(folder, tmp_path / "set"), execute=lambda tasks: execute_in_processes(tasks, 2))
    assert execute.TRIES <= len(started) <= 2 * execute.TRIES


def test_what_stops_a_process_is_said_without_a_traceback_and_no_process_stays(tmp_path):
    folder, out = write_coco(tmp_path / "raw"), tmp_path / "set"

    def lose_a_group(plan):
        (out / ".work" / "groups" / "00002.jsonl.gz").unlink()

    with pytest.raises(UserError, match=r"could not be written: .*00002\.jsonl\.gz") as caught:
        prepare(options_for(folder, out), execute=lambda tasks: execute_in_processes(tasks, 2), on_plan=lose_a_group)
    assert "Traceback" not in str(caught.value) and not _workers()


def test_a_worker_ends_with_whoever_asked_it():
    command = [sys.executable, "-m", worker.__name__]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="KeyError: 'lost'"):
        execute._result({"crash": "Traceback: KeyError: 'lost'"})


def test_a_cluster_that_is_named_is_used(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        execute, "execute_on_ray", lambda tasks, num_cpus: asked.append(num_cpus) or execute_here(tasks)
    )
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    assert list(execute_tasks([], 3)) == [] and asked == [3]


@pytest.mark.slow
def test_a_shard_on_ray_that_kills_every_worker_is_an_error_too(tmp_path, ray_cluster, monkeypatch):
    monkeypatch.setattr(execute, "_write_one", _die)
    with pytest.raises(UserError, match="was given up .*run the command again"):
        prepare(options_for(write_coco(tmp_path / "raw"), tmp_path / "set"), execute=execute_on_ray)


def _die(tasks, place):
    os._exit(1)
