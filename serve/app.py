"""The application builder, for `padt serve`, `serve run serve.app:build model=FOLDER` and Serve config files."""

from ray.serve import Application

from serve.ingress.deployment import Ingress
from serve.replica.deployment import Engine
from serve.settings import AppArgs

# Places for requests that are about to be refused, and for those about health and documentation.
SPARE = 64


def build(args: AppArgs) -> Application:
    """Bind ingress and engine under the given arguments. Loads nothing: replicas do, where they start."""
    # Requests are counted and refused by the ingress, which does it before it decodes a picture and in the one error
    # shape. So nothing waits in Serve's own queues, where a question about health would wait behind it.
    engine = Engine.options(  # type: ignore[attr-defined]  # class decorators' types are not seen
        num_replicas=args.engine_replicas,
        ray_actor_options={"num_cpus": args.engine_cpus, "num_gpus": args.engine_gpus},
        max_ongoing_requests=args.capacity + SPARE,
        health_check_period_s=5.0,
        user_config=args.release,
    ).bind(args.server)
    return Ingress.options(  # type: ignore[attr-defined]
        num_replicas=args.ingress_replicas,
        ray_actor_options={"num_cpus": args.ingress_cpus},
        max_ongoing_requests=args.max_bodies + args.capacity + SPARE,
    ).bind(engine, args.server)
