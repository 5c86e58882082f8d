"""The application: its arguments, what Serve is told of them, and the config file that ships with it."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

pytest.importorskip("ray.serve")

from ray.serve.schema import ServeDeploySchema  # noqa: E402

from serve.app import build  # noqa: E402
from serve.settings import AppArgs, Release  # noqa: E402

CONFIG = Path(__file__).parents[2] / "serve" / "config.yaml"


def deployments(**args: object) -> dict:
    application = build(AppArgs(model="/models/padt", **args))
    ingress = application._bound_deployment
    engine = ingress.init_args[0]._bound_deployment
    return {"Engine": engine, "Ingress": ingress}


def test_a_number_is_a_number_of_replicas() -> None:
    found = deployments(engine_replicas=3)
    assert found["Engine"].num_replicas == 3
    assert found["Engine"]._deployment_config.autoscaling_config is None


def test_what_follows_the_load_is_serves_own_autoscaling() -> None:
    scaling = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8, "downscale_delay_s": 60}
    found = deployments(engine_replicas=scaling, ingress_replicas={"max_replicas": 2})
    engine = found["Engine"]._deployment_config.autoscaling_config
    assert (engine.min_replicas, engine.max_replicas, engine.target_ongoing_requests) == (1, 4, 8)
    assert engine.downscale_delay_s == 60 and engine.policy.policy_function
    assert found["Ingress"]._deployment_config.autoscaling_config.max_replicas == 2


@pytest.mark.parametrize(
    "replicas", [0, {"min_replicas": 0, "max_replicas": 2}, {"min_replicas": 3, "max_replicas": 2}, {"max": 3}]
)
def test_replicas_that_make_no_sense_are_refused(replicas: object) -> None:
    with pytest.raises(ValidationError):
        AppArgs(model="m", engine_replicas=replicas)


def test_places_follow_the_replicas() -> None:
    args = AppArgs(model="m", max_rows=16, max_queued_requests=32)
    assert (args.places(1, 1), args.places(4, 1), args.places(4, 2), args.places(1, 0)) == (48, 96, 48, 48)


def test_replicas_that_stop_have_time_to_finish_the_longest_answer() -> None:
    for deployment in deployments(request_timeout_s=300).values():
        assert deployment._deployment_config.graceful_shutdown_timeout_s > 300


def test_a_release_goes_by_user_config_and_is_no_part_of_what_a_change_restarts() -> None:
    one, two = (build(AppArgs(model=model))._bound_deployment for model in ("a", "b"))
    engines = [one.init_args[0]._bound_deployment, two.init_args[0]._bound_deployment]
    assert engines[0].init_args == engines[1].init_args
    assert [engine.user_config["model"] for engine in engines] == ["a", "b"]


def test_a_canary_is_a_part() -> None:
    for percent in (0, 101, -1):
        with pytest.raises(ValidationError):
            Release.model_validate({"model": "a", "canary": {"model": "b", "percent": percent}})


def test_the_config_file_is_valid() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (application,) = config.applications
    args = AppArgs.model_validate(application.args)
    assert application.import_path == "serve.app:build" and args.release is None
    (engine,) = application.deployments
    assert engine.name == "Engine" and Release.model_validate(engine.user_config).model
    build(args)
