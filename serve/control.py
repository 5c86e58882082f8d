"""The running application, from outside: deploy it, see how its engines are, change what answers, let it end.

What runs is described as in a Serve config file, so an application of ``padt serve`` and one of ``serve deploy`` are
the same thing, and a new release changes the Engine's ``user_config`` only, for which Serve restarts nothing.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ServeApplicationSchema, ServeDeploySchema

from padt.errors import UserError
from serve.messages import EngineState
from serve.replica.routing import session
from serve.settings import Release, ServerArgs

logger = logging.getLogger(__name__)

APP_NAME = "padt"
_POLL_S = 0.25
_STATE_TIMEOUT_S = 5.0
_BROKEN = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


class DeployError(RuntimeError):
    """The application does not run."""


def application(args: ServerArgs, release: Release) -> ServeApplicationSchema:
    """The application as a config file describes it."""
    return ServeApplicationSchema.model_validate(
        {
            "name": APP_NAME,
            "route_prefix": "/",
            "import_path": "serve.app:build",
            "args": args.model_dump(mode="json", exclude_defaults=True),
            "deployments": [{"name": "Engine", "user_config": release.model_dump()}],
        }
    )


def with_user_config(
    app: ServeApplicationSchema, deployment: str, user_config: dict[str, Any]
) -> ServeApplicationSchema:
    """The same application with another ``user_config`` of one of its deployments."""
    described = app.model_dump(exclude_unset=True)
    others = [one for one in described.get("deployments", []) if one["name"] != deployment]
    own = next((one for one in described.get("deployments", []) if one["name"] == deployment), {"name": deployment})
    described["deployments"] = [*others, {**own, "user_config": user_config}]
    return ServeApplicationSchema.model_validate(described)


def release_of(app: ServeApplicationSchema) -> Release:
    """What an application was told to answer with.

    Raises:
        UserError: it was told nothing.
    """
    for deployment in app.deployments:
        if deployment.name == "Engine" and isinstance(deployment.user_config, dict):
            return Release.model_validate(deployment.user_config)
    if not app.args.get("model"):
        raise UserError(f"The application {app.name!r} names no model, so it is not one of padt serve.")
    return Release(model=app.args["model"], version=app.args.get("version", ""))


def deployed() -> ServeApplicationSchema:
    """The application that runs on the cluster this process is connected to.

    Raises:
        UserError: none does, or it was put there by ``serve.run``, which leaves no description.
    """
    found = _descriptions().get(APP_NAME)
    if found is None:
        raise UserError(
            f"No application {APP_NAME!r} of padt serve or serve deploy runs on this cluster: say which cluster by "
            "--address (padt serve prints it), or start one with `padt serve MODEL`."
        )
    return found


def deploy(app: ServeApplicationSchema, timeout_s: float | None = None) -> None:
    """Let an application run as described, beside those that run already; returns when all its replicas do.

    Args:
        app: the description.
        timeout_s: longest wait; None = as long as Serve goes on trying.

    Raises:
        DeployError: it cannot, or not within the time.
    """
    _apply(app)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        status = serve.status().applications.get(app.name)
        if status is not None and status.status == ApplicationStatus.RUNNING:
            return
        if status is not None and status.status in _BROKEN:
            messages = [status.message, *(one.message for one in status.deployments.values())]
            raise DeployError("\n".join(message for message in messages if message))
        if deadline is not None and time.monotonic() > deadline:
            raise DeployError(f"The application does not run after {timeout_s:g} s.")
        time.sleep(_POLL_S)


def engine_states() -> dict[str, EngineState | None]:
    """How each engine is, by its name; None for one that does not say."""
    details = _details()["applications"].get(APP_NAME, {})
    replicas = details.get("deployments", {}).get("Engine", {}).get("replicas", [])
    handle = serve.get_deployment_handle("Engine", APP_NAME)
    calls = {
        one["replica_id"]: handle.options(session_id=session(only=one["replica_id"])).state.remote()
        for one in replicas
        if one["state"] in ("RUNNING", "UPDATING")
    }
    found: dict[str, EngineState | None] = {}
    for name, call in calls.items():
        try:
            found[name] = call.result(timeout_s=_STATE_TIMEOUT_S)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.debug("Engine %s does not say how it is: %s", name, error)
            call.cancel()
            found[name] = None
    return found


def change(
    release: Release, timeout_s: float = 900.0, tell: Callable[[Mapping[str, EngineState | None]], None] | None = None
) -> None:
    """Let a release answer in place of what does: every engine loads it beside, and swaps.

    Where an engine cannot, all go back to what answered before.

    Args:
        release: what shall answer.
        timeout_s: longest wait for all engines.
        tell: called with how the engines are, again and again.

    Raises:
        UserError: no application runs, or the release cannot be loaded; the old one answers then.
    """
    app = deployed()
    before = release_of(app)
    _apply(with_user_config(app, "Engine", release.model_dump()))
    problem = _wait_for(release, timeout_s, tell)
    if problem:
        _apply(with_user_config(app, "Engine", before.model_dump()))
        left = _wait_for(before, _STATE_TIMEOUT_S + 60.0, tell)
        end = f"{before.label} answers as before." if not left else f"And {before.label} is not back everywhere: {left}"
        raise UserError(f"{problem} {end}")


def _wait_for(
    release: Release, timeout_s: float, tell: Callable[[Mapping[str, EngineState | None]], None] | None
) -> str:
    """Wait until every engine answers with a release; returns what is wrong, or nothing."""
    deadline = time.monotonic() + timeout_s
    while True:
        states = engine_states()
        if tell is not None:
            tell(states)
        known = [state for state in states.values() if state is not None]
        done = [state for state in known if Release.model_validate(state.release) == release]
        if known and len(done) == len(states):
            return ""
        for state in known:
            if state.problem and Release.model_validate(state.wanted) == release:
                return f"{state.problem.rstrip('.')}."
        if time.monotonic() > deadline:
            return f"{len(done)} of {len(states)} engines answer with {release.label} after {timeout_s:g} s."
        time.sleep(_POLL_S)


def drain(timeout_s: float) -> None:
    """Let nobody in any more, and wait until what runs is answered, at most for a time."""
    _apply(with_user_config(deployed(), "Ingress", {"draining": True}))
    deadline = time.monotonic() + timeout_s
    # Who was let in before the ingress heard of it is at an engine by then.
    quiet = 0
    while quiet < 3 and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        status = serve.status().applications[APP_NAME].deployments["Ingress"]
        busy = any(state is None or state.running for state in engine_states().values())
        quiet = 0 if busy or status.replica_states.get("UPDATING", 0) else quiet + 1


def _apply(app: ServeApplicationSchema) -> None:
    # Serve ends the described applications that a new description leaves out.
    others = [other for name, other in _descriptions().items() if name != app.name]
    capacity = _details().get("target_capacity")
    _client().deploy_apps(ServeDeploySchema(applications=[*others, app], target_capacity=capacity))


def _descriptions() -> dict[str, ServeApplicationSchema]:
    described = {name: one.get("deployed_app_config") for name, one in _details()["applications"].items()}
    return {name: ServeApplicationSchema.model_validate(one) for name, one in described.items() if one}


def _details() -> dict[str, Any]:
    return _client().get_serve_details()


def _client() -> Any:
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        raise UserError("No Ray Serve runs on this cluster: start one with `padt serve MODEL`.")
    return client
