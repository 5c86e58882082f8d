"""Typed arguments of the application: what `serve.app:build` and a Serve config file's `args` take."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Release(BaseModel):
    """Which model answers. Changes while the application runs, by Serve's ``user_config``, without a restart.

    Attributes:
        model: folder.
        version: what answers call it, as in ``padt/7``; empty = the folder's name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    version: str = ""


class ServerArgs(BaseModel):
    """What the application is made of, whichever model answers. A change restarts the replicas that it concerns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("padt", description="Name under which /v1/models lists the model.")

    device: str | None = Field(
        None, description="Torch device of the engine; none = cuda where there is one, else cpu."
    )
    dtype: str | None = Field(None, description="float32, bfloat16 or float16; none = as saved.")
    attn_implementation: str = "sdpa"

    engine_replicas: int = Field(1, ge=1)
    engine_cpus: float = Field(1.0, ge=0)
    engine_gpus: float = Field(0.0, ge=0)
    ingress_replicas: int = Field(1, ge=1)
    ingress_cpus: float = Field(0.0, ge=0, description="0: the ingress shares the cores that are there.")

    max_rows: int = Field(16, ge=1, description="Answers that an engine writes at a time.")
    max_length: int = Field(6144, ge=64, description="Tokens of one request, its patches and its answer included.")
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
    max_image_pixels: int = Field(40_000_000, ge=784, description="Largest image, in pixels before resizing.")
    max_patches: int = Field(
        4096, ge=4, description="Most patches (28x28 pixels) of an image; the ingress scales larger ones down."
    )
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

    @property
    def capacity(self) -> int:
        """Requests that engines and queue hold together."""
        return self.engine_replicas * self.max_rows + self.max_queued_requests


class AppArgs(ServerArgs):
    """Arguments of the application. Unknown keys are errors."""

    model: str = Field(description="Model folder, readable on the nodes that run the engine.")
    version: str = Field("", description="What answers call this model, as in padt/7; empty = the folder's name.")

    @property
    def server(self) -> ServerArgs:
        """The part that a new model leaves as it is."""
        return ServerArgs(**self.model_dump(include=set(ServerArgs.model_fields)))

    @property
    def release(self) -> dict[str, Any]:
        """The part that says which model answers, as Serve's ``user_config``."""
        return Release(model=self.model, version=self.version).model_dump()
