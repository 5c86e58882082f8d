"""Typed arguments of the application: what `serve.app:build` and a Serve config file's `args` take."""

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from padt.errors import UserError
from padt.inference.refine import Refinement

_STRICT = ConfigDict(extra="forbid", frozen=True)


class ModelSource(BaseModel):
    """A model that may answer.

    Attributes:
        model: folder.
        version: what answers call it, as in ``padt/7``; empty = the folder's name.
        revision: differs where the folder's content does; a folder that was written anew is another model.
    """

    model_config = _STRICT

    model: str
    version: str = ""
    revision: str = ""

    @property
    def label(self) -> str:
        """What answers call it."""
        return self.version or Path(self.model).name


class Canary(ModelSource):
    """A model that answers a share of the requests, beside the one that answers the others.

    Attributes:
        percent: its share.
    """

    percent: float = Field(gt=0, le=100)


class Release(ModelSource):
    """Which models answer. Changes while the application runs, by Serve's ``user_config``, without a restart.

    Attributes:
        canary: what answers a part of the requests instead, or None.
        previous: what answered before, to go back to, or None.
    """

    canary: Canary | None = None
    previous: ModelSource | None = None

    @property
    def sources(self) -> tuple[ModelSource, ...]:
        """The models that this needs, the main one first."""
        every = (self,) if self.canary is None else (self, self.canary)
        return tuple(ModelSource(model=one.model, version=one.version, revision=one.revision) for one in every)


class Autoscaling(BaseModel):
    """Replicas that follow the load: Ray Serve's own ``autoscaling_config``, with the names and meanings it has there.

    Attributes:
        min_replicas, max_replicas, initial_replicas: how few, how many, and with how many to start (the fewest).
        target_ongoing_requests: of one replica; of an engine about ``max_rows``.
        upscale_delay_s, downscale_delay_s: how long a load must last before replicas come or go.
        look_back_period_s: over which the load is averaged.
    """

    model_config = _STRICT

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(ge=1)
    initial_replicas: int | None = Field(None, ge=1)
    target_ongoing_requests: float = Field(16.0, gt=0)
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)
    look_back_period_s: float = Field(20.0, gt=0)

    @model_validator(mode="after")
    def _few_to_many(self) -> "Autoscaling":
        first = self.min_replicas if self.initial_replicas is None else self.initial_replicas
        if not self.min_replicas <= first <= self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}), initial_replicas ({first}) and max_replicas "
                f"({self.max_replicas}) must not decrease in this order."
            )
        return self


Replicas = int | Autoscaling


def fewest(replicas: Replicas) -> int:
    """With how many replicas it starts."""
    return (replicas.initial_replicas or replicas.min_replicas) if isinstance(replicas, Autoscaling) else replicas


def most(replicas: Replicas) -> int:
    """How many replicas there can be."""
    return replicas.max_replicas if isinstance(replicas, Autoscaling) else replicas


class ServerArgs(BaseModel):
    """What the application is made of, whichever model answers. A change restarts the replicas that it concerns."""

    model_config = _STRICT

    name: str = Field("padt", description="Name under which /v1/models lists the model.")

    device: str | None = Field(
        None, description="Torch device of the engine; none = cuda where there is one, else cpu."
    )
    dtype: str | None = Field(None, description="float32, bfloat16 or float16; none = as saved.")
    attn_implementation: str = "sdpa"

    engine_replicas: Annotated[int, Field(ge=1)] | Autoscaling = Field(
        1, description="A number, or what follows the load: min_replicas, max_replicas, target_ongoing_requests."
    )
    engine_cpus: float = Field(1.0, ge=0)
    engine_gpus: float = Field(0.0, ge=0)
    ingress_replicas: Annotated[int, Field(ge=1)] | Autoscaling = Field(1, description="As of the engine.")
    ingress_cpus: float = Field(0.0, ge=0, description="0: the ingress shares the cores that are there.")

    max_rows: int = Field(16, ge=1, description="Answers that an engine writes at a time.")
    max_length: int = Field(6144, ge=64, description="Tokens of one request, its patches and its answer included.")
    compile_steps: bool | str = Field(
        False,
        description="Compile the decoding step, with CUDA graphs on a GPU, or by the named back end of torch.compile; "
        "the start takes minutes longer.",
    )
    refine: str = Field(
        "", description="sam2 = let SAM 2 refine the masks of whole answers; boxes and scores stay. Empty = do not."
    )
    refine_prompt: str = Field(
        "",
        description="What SAM 2 is told of an object: box+mask (where it is empty), box, mask or points. Points "
        "were not seen to help.",
    )
    refine_model: str = Field(
        "",
        description="SAM 2's weights: a folder that the engines' nodes can read, or OWNER/NAME on the Hub; empty = "
        "facebook/sam2.1-hiera-large.",
    )
    cache_mb: float = Field(1024, ge=0, description="MiB in which an engine keeps what it has seen of pictures.")
    max_queued_requests: int = Field(32, ge=0, description="Requests that may wait besides; more get a 503.")
    retry_after_s: int = Field(2, ge=1, description="What a 503 tells the client to wait.")
    request_timeout_s: float = Field(120.0, gt=0)
    hang_after_s: float = Field(
        60.0, gt=0, description="An engine whose model makes no step for so long is not ready, and is replaced."
    )

    keys_file: str | None = Field(
        None, description="File of keys, NAME:KEY in lines, read again when it changes; more are in PADT_API_KEYS."
    )
    allow_anyone: bool = Field(False, description="Answer other machines too where there are no keys.")
    key_share: float = Field(0.5, gt=0, le=1, description="Most of all places that one key's requests may hold.")
    allow_origins: tuple[str, ...] = Field(
        (), description="Origins of web pages elsewhere that may ask, as in https://app.example.org; * = all."
    )

    image_hosts: tuple[str, ...] = Field(
        (), description="Hosts from which pictures are fetched by URL, as in *.example.org; none = no fetching."
    )
    fetch_timeout_s: float = Field(10.0, gt=0, description="Longest time that fetching a picture may take.")

    request_log: str = Field(
        "", description="File to which an ingress adds a line of JSON for each request; empty = Serve's own log."
    )
    log_text: bool = Field(False, description="Let log and traces hold the words of questions and answers.")
    sample_share: float = Field(
        0.0, ge=0, le=1, description="Part of all questions that is kept, with pictures and answers, in sample_folder."
    )
    sample_folder: str = Field("", description="Folder for them, path or URL, which `padt prepare` reads.")
    sample_mb: float = Field(1000.0, gt=0, description="Nothing is added to a sample_folder that holds so many MB.")
    trace_share: float = Field(0.0, ge=0, le=1, description="Part of all requests of which MLflow gets a trace.")
    trace_uri: str = Field("", description="MLflow server of the traces; empty = the ingress's MLFLOW_TRACKING_URI.")
    trace_experiment: str = Field("padt-requests", description="MLflow experiment of the traces.")

    max_body_mb: float = Field(24.0, gt=0, description="Largest request body, base64 included.")
    body_timeout_s: float = Field(30.0, gt=0, description="Longest time that a body may take to arrive.")
    max_bodies: int = Field(32, ge=1, description="Bodies that an ingress reads and decodes at once; more get a 503.")
    max_batches: int = Field(4, ge=1, description="Batches that an ingress takes at once; more get a 503.")
    max_batch_lines_at_once: int = Field(8, ge=1, description="Lines of a batch that are answered at a time.")
    max_image_pixels: int = Field(40_000_000, ge=784, description="Largest image, in pixels before resizing.")
    max_patches: int = Field(
        4096,
        ge=4,
        description="Most patches (28x28 pixels) of a question; the ingress scales larger pictures down, and lets "
        "several share them.",
    )
    max_images: int = Field(8, ge=1, le=64, description="Most pictures of one question.")
    max_prompt_bytes: int = Field(
        8192, ge=64, description="Longest prompt in UTF-8, labels included. No prompt has more tokens than bytes."
    )
    max_new_tokens: int = Field(1024, ge=1, description="Longest answer that a request may ask for.")

    @model_validator(mode="after")
    def _a_largest_picture_fits(self) -> "ServerArgs":
        if self.max_length <= self.max_patches:
            raise ValueError(
                f"max_length ({self.max_length}) leaves no token to a picture of max_patches ({self.max_patches}): "
                "raise max_length or lower max_patches."
            )
        return self

    @model_validator(mode="after")
    def _samples_have_a_place(self) -> "ServerArgs":
        if self.sample_share and not self.sample_folder:
            raise ValueError("sample_share needs a place: give sample_folder too.")
        return self

    @model_validator(mode="after")
    def _masks_can_be_refined(self) -> "ServerArgs":
        try:
            self.refinement  # noqa: B018
        except UserError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def refinement(self) -> Refinement | None:
        """How masks are refined, or None."""
        return Refinement.asked(self.refine, self.refine_prompt, self.refine_model)

    def places(self, engines: int, ingresses: int) -> int:
        """Requests that one ingress lets in, of those that so many engines and the queue hold together."""
        return math.ceil((engines * self.max_rows + self.max_queued_requests) / max(1, ingresses))

    @property
    def most_waiting(self) -> int:
        """Requests that wait at one engine at most, before it refuses more: pictures may all be its own."""
        return self.max_rows + self.max_queued_requests


class AppArgs(ServerArgs):
    """Arguments of the application. Unknown keys are errors."""

    model: str = Field(
        "",
        description="Model folder, readable on the nodes that run the engine; empty in a config file that says it in "
        "the Engine's user_config, where a change restarts nothing.",
    )
    version: str = Field("", description="What answers call this model, as in padt/7; empty = the folder's name.")

    @property
    def server(self) -> ServerArgs:
        """The part that a new model leaves as it is."""
        return ServerArgs(**self.model_dump(include=set(ServerArgs.model_fields)))

    @property
    def release(self) -> dict[str, Any] | None:
        """The part that says which model answers, as Serve's ``user_config``; None where nothing does."""
        return Release(model=self.model, version=self.version).model_dump() if self.model else None
