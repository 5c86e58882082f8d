"""The application builder, for `padt serve`, `serve run serve.app:build model=FOLDER` and Serve config files."""

from typing import Any

from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from serve.ingress.deployment import Ingress
from serve.replica.deployment import Engine
from serve.replica.routing import PictureRouter
from serve.settings import AppArgs, Autoscaling, Replicas, most

# Places for requests that are about to be refused, and for those about health and documentation.
SPARE = 64
# Beyond the longest answer: a replica that is to stop finishes what it has begun.
STOPPING_S = 5.0


def build(args: AppArgs) -> Application:
    """Bind ingress and engine under the given arguments. Loads nothing: replicas do, where they start."""
    # Requests are counted and refused by the ingress, which does it before it decodes a picture and in the one error
    # shape. So nothing waits in Serve's own queues, where a question about health would wait behind it.
    places = args.places(most(args.engine_replicas), 1)
    stopping = {
        "graceful_shutdown_timeout_s": args.request_timeout_s + STOPPING_S,
        "graceful_shutdown_wait_loop_s": 0.5,
    }
    engine = Engine.options(  # type: ignore[attr-defined]  # class decorators' types are not seen
        **_scale(args.engine_replicas),
        **stopping,
        ray_actor_options={"num_cpus": args.engine_cpus, "num_gpus": args.engine_gpus},
        max_ongoing_requests=args.max_rows + args.most_waiting + SPARE,
        health_check_period_s=min(5.0, args.hang_after_s),
        request_router_config=RequestRouterConfig(
            request_router_class=PictureRouter, request_router_kwargs={"full": args.max_rows}
        ),
        user_config=args.release,
    ).bind(args.server)
    return Ingress.options(  # type: ignore[attr-defined]
        **_scale(args.ingress_replicas),
        **stopping,
        ray_actor_options={"num_cpus": args.ingress_cpus},
        max_ongoing_requests=args.max_bodies + places + SPARE,
    ).bind(engine, args.server)


def _scale(replicas: Replicas) -> dict[str, Any]:
    """Serve's options for a number of replicas, or for one that follows the load."""
    if isinstance(replicas, Autoscaling):
        return {"autoscaling_config": replicas.model_dump(exclude_none=True)}
    return {"num_replicas": replicas}
