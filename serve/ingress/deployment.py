"""The ingress: HTTP in front of the engine. Checks and decodes requests; needs no model and no GPU."""

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.ingress.application import application
from serve.ingress.desk import Desk
from serve.ingress.gate import Gate
from serve.ingress.keys import KeyRing
from serve.observability.observers import observers_of
from serve.observability.recorder import Recorder
from serve.settings import ServerArgs

api = application()


class BehindGate:
    """Puts the replica's own gate before the routes, and hands them its desk: both are known when the replica runs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._gate: ASGIApp | None = None
        self._desk: Desk | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask the gate; what no replica runs, such as the start of the application, passes."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._gate is None:
            ingress = serve.get_replica_context().servable_object
            self._desk, self._gate = ingress.desk, ingress.gate(self._app)
        scope.setdefault("state", {})["desk"] = self._desk
        await self._gate(scope, receive, send)


api.add_middleware(BehindGate)


@serve.deployment
@serve.ingress(api)
class Ingress:
    """Serve deployment for HTTP. Scaled by ``ServerArgs.ingress_replicas``."""

    def __init__(self, engine: DeploymentHandle, args: ServerArgs) -> None:
        self.desk = Desk(engine, args)
        self._keys = KeyRing(args.keys_file)
        self._observers = observers_of(args)

    def reconfigure(self, options: dict[str, Any]) -> None:
        """Serve calls this with the ingress's ``user_config``: ``draining`` lets nobody in any more."""
        self.desk.questions.closed = bool(options.get("draining"))

    def __del__(self) -> None:
        """Serve calls this when the replica stops."""
        self._observers.close()

    def gate(self, app: ASGIApp) -> ASGIApp:
        """The gate before an application, with this server's settings and keys, and who records what comes and goes."""
        return Recorder(Gate(app, self.desk.args, self._keys, proxied=True), self._observers)
