"""Connecting to Ray: on busy machines, inside submitted jobs, and where there is no cluster."""

import json

import pytest

from jobs.common import ray_session
from padt.errors import UserError


@pytest.fixture
def starts(monkeypatch):
    """Make ``ray.init`` raise what stands in the list, one after the other, and count its calls."""
    ray = pytest.importorskip("ray")
    errors: list[Exception] = []
    calls: list[dict] = []

    def init(**options):
        calls.append(options)
        if errors:
            raise errors.pop(0)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return errors, calls


def test_a_slow_start_is_tried_again_and_then_said(starts):
    errors, calls = starts
    errors += [Exception("The current node timed out during startup. This could be")] * 2
    assert ray_session.ensure_ray() and len(calls) == 3
    errors += [Exception("The current node timed out during startup.")] * 3
    with pytest.raises(UserError, match="did not start .* 3 tries"):
        ray_session.ensure_ray()
    errors += [ValueError("something else")]
    with pytest.raises(ValueError, match="something else"):
        ray_session.ensure_ray()


def test_a_cluster_that_is_not_there_is_one_sentence(starts, monkeypatch):
    errors, _ = starts
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    errors += [ConnectionError("no answer")]
    with pytest.raises(UserError, match="cannot be reached at ray.example:6379"):
        ray_session.ensure_ray()


def test_workers_of_a_cluster_learn_where_the_object_store_is_unless_the_job_says_so(starts, monkeypatch):
    """Ray refuses a variable that both the submitted job and the program in it set."""
    _, calls = starts
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    ray_session.ensure_ray()
    variables = calls[-1]["runtime_env"]["env_vars"]
    assert variables["AWS_ENDPOINT_URL"] == "http://store:9000" and variables["OMP_NUM_THREADS"] == "1"
    assert "secret" not in variables.values()
    job = {"runtime_env": {"env_vars": {"AWS_ENDPOINT_URL": "http://store:9000"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    ray_session.ensure_ray()
    assert "AWS_ENDPOINT_URL" not in calls[-1]["runtime_env"]["env_vars"]
