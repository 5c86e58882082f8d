"""The application builder, for `padt serve`, `serve run serve.app:build model=FOLDER` and Serve config files."""

from ray.serve import Application

from serve.engine import Engine
from serve.ingress import Ingress
from serve.settings import AppArgs


def build(args: AppArgs) -> Application:
    """Bind ingress and engine under the given arguments. Loads nothing: replicas do, where they start."""
    backpressure = {"status_code": 503, "retry_after_s": args.retry_after_s}
    engine = Engine.options(  # type: ignore[attr-defined]  # class decorators' types are not seen
        num_replicas=args.engine_replicas,
        ray_actor_options={"num_cpus": args.engine_cpus, "num_gpus": args.engine_gpus},
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        backpressure_config=backpressure,
    ).bind(args)
    # The engine's queue is the one that bounds: the ingress must be able to hold what engine and queue hold, and a
    # few requests for health and documentation besides.
    held = args.engine_replicas * args.max_ongoing_requests + args.max_queued_requests + 16
    return Ingress.options(  # type: ignore[attr-defined]
        num_replicas=args.ingress_replicas,
        ray_actor_options={"num_cpus": args.ingress_cpus},
        max_ongoing_requests=held,
        max_queued_requests=held,
        backpressure_config=backpressure,
    ).bind(engine, args)
