"""`padt serve`: put a model behind HTTP on the Ray cluster of the environment, or on a local Ray."""

import errno
import logging
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.mlflow_run import tracking_uri
from jobs.inference.served_tags import ServedTags
from padt.errors import UserError

if TYPE_CHECKING:
    from serve.settings import ServerArgs

logger = logging.getLogger(__name__)

# So often it is looked which versions answer.
_LOOK_S = 5.0


@dataclass(frozen=True)
class Served:
    """A model that answers.

    Attributes:
        url: address for requests from this machine.
        model: folder.
        version: what answers call the model.
        cluster: address of the Ray that it runs on.
    """

    url: str
    model: str
    version: str = ""
    cluster: str = ""


@contextmanager
def serving(
    model: str, host: str = "127.0.0.1", port: int = 8000, *, ready_timeout_s: float = 30.0, **settings: Any
) -> Iterator[Served]:
    """Serve a model for the length of a block.

    Args:
        model: model folder, or a registered one such as ``models:/padt@champion``.
        host: interface to listen on; ``0.0.0.0`` = all.
        port: 0 takes a free one.
        ready_timeout_s: longest wait for the first answer once the engine has started.
        settings: fields of ``serve.settings.ServerArgs``.

    Raises:
        UserError: the model is not there, a setting is wrong, the port is taken, strangers could ask, or the
            engine does not start.
    """
    from pydantic import ValidationError

    from jobs.inference.reload import source_of

    source = source_of(model)
    if settings.get("trace_share"):
        # Replicas need not have this process's environment.
        settings = {"trace_uri": tracking_uri(), **settings}
    for name in ("request_log", "sample_folder"):
        if settings.get(name) and "://" not in settings[name]:
            # Nor its working folder.
            settings[name] = str(Path(settings[name]).resolve())
    if settings.get("refine_model"):
        settings["refine_model"] = _model_to_refine_with(settings["refine_model"])
    port = _free_port(host, port)
    from serve.settings import Release, ServerArgs

    try:
        args = ServerArgs(**settings)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in problem["loc"]) or "settings"
        raise UserError(f"{name}: {problem['msg'].removeprefix('Value error, ')}.") from error
    _check_who_may_ask(host, args)
    # For the proxies of a local Ray, whose own refusals are plain text; those of a cluster have its environment.
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.ingress.proxy:middlewares")

    from jobs.common.ray_session import ray_session

    with ray_session():
        import ray
        from ray import serve

        from serve.control import APP_NAME, DeployError, application, deploy

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING"})
        try:
            # Returns when the engine has loaded its model, or raises when it could not.
            deploy(application(args, Release(**source.model_dump())))
            url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
            _wait_until_ready(url, ready_timeout_s)
        except DeployError as error:
            serve.delete(APP_NAME)
            raise UserError(f"The engine did not start: {_last_line(str(error))}") from error
        except BaseException:
            serve.delete(APP_NAME)
            raise
        try:
            yield Served(url, source.model, source.label, ray.get_runtime_context().gcs_address)
        finally:
            # Only what this call has put there: the cluster's Serve may hold other applications.
            serve.delete(APP_NAME)


def run_serve(
    model: str,
    host: str,
    port: int,
    announce: Callable[[Served], None] = lambda served: None,
    *,
    watch_s: float = 0.0,
    **settings: Any,
) -> None:
    """Serve a model until the process is told to stop (Ctrl-C or SIGTERM), and then finish what has been asked.

    Args:
        model: see ``serving``.
        host: see ``serving``.
        port: see ``serving``.
        announce: told once it answers.
        watch_s: look so often whether the model's alias in the registry names another version, and serve that one
            without a pause; 0 = never.
        settings: see ``serving``.

    Raises:
        UserError: see ``serving``; or there is nothing to watch.
    """
    from jobs.inference.reload import Watcher, check_watchable

    if watch_s:
        check_watchable(model)
    stop = threading.Event()
    previous: dict[int, Any] = {}
    try:
        with serving(model, host, port, **settings) as served, ServedTags(served.url) as tags:
            # Ray has handlers of its own from its start on; until here a signal interrupts.
            for number in (signal.SIGTERM, signal.SIGINT):
                previous[number] = signal.signal(number, lambda number, frame: _stop_once(stop))
            announce(served)
            watcher = Watcher(model, served.version)
            tags.follow([served.version])
            while not stop.wait(watch_s or _LOOK_S):
                if watch_s:
                    watcher.look()
                # Others may have changed it: padt reload, or whoever deploys to this cluster.
                tags.follow(_answering())
            from serve.control import drain
            from serve.settings import ServerArgs

            logger.info("Stopping: finishing what has been asked; once more to stop at once")
            drain(ServerArgs(**settings).request_timeout_s)
    except KeyboardInterrupt:
        logger.info("Stopped")
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _answering() -> list[str]:
    """The versions that the application has been told to answer with."""
    from serve.control import deployed, release_of

    try:
        return [source.label for source in release_of(deployed()).sources]
    except UserError as error:
        logger.warning("%s", error)
        return []


def _stop_once(stop: threading.Event) -> None:
    if stop.is_set():
        raise KeyboardInterrupt
    stop.set()


def _check_who_may_ask(host: str, args: "ServerArgs") -> None:
    """Refuse to open a model to a network without keys, unless that is what is wanted."""
    from serve.ingress.gate import is_local
    from serve.ingress.keys import KEYS_VARIABLE, KeyRing

    keys = KeyRing(args.keys_file)
    if not (keys.needed or args.allow_anyone or host == "localhost" or is_local((host,))):
        raise UserError(
            f"On {host} everybody who reaches this machine could ask: give --keys-file FILE (lines NAME:KEY) or set "
            f"{KEYS_VARIABLE}=NAME:KEY, or say --allow-anyone if that is what you want."
        )


def _wait_until_ready(url: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            logger.debug("%s is not ready yet", url)
        if time.monotonic() > deadline:
            raise UserError(
                f"The model does not answer at {url}: if this cluster's Serve already listens on another port, give "
                "that one as --port; else look at the logs of the Ingress replica (`ray logs`)."
            )
        time.sleep(0.25)


def _free_port(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError as error:
            raise UserError(f"There is no port {port}: give a --port from 0 to 65535.") from error
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                message = f"Host {host} is no interface of this machine ({error.strerror}): give another --host."
            else:
                message = f"Port {port} of {host} is not free ({error.strerror}): give another --port."
            raise UserError(message) from error
        return int(probe.getsockname()[1])


def _model_to_refine_with(reference: str) -> str:
    """A folder's whole path, known to hold a SAM 2; a name on the Hub is left to the engines' nodes."""
    from padt.inference.refine import sam2_folder
    from padt.pretrained.hub import is_hub_id

    return reference if is_hub_id(reference) else str(sam2_folder(reference).resolve())


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), text)
