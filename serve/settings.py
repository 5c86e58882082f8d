"""Typed arguments of the application: what `serve.app:build` and a Serve config file's `args` take."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AppArgs(BaseModel):
    """Arguments of the application. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="Model folder, readable on the nodes that run the engine.")
    name: str = Field("padt", description="Name under which /v1/models lists the model.")

    device: str | None = Field(
        None, description="Torch device of the engine; none = cuda where there is one, else cpu."
    )
    dtype: str | None = Field(None, description="float32, bfloat16 or float16; none = as saved.")
    attn_implementation: str = "auto"

    engine_replicas: int = Field(1, ge=1)
    engine_cpus: float = Field(1.0, ge=0)
    engine_gpus: float = Field(0.0, ge=0)
    ingress_replicas: int = Field(1, ge=1)
    ingress_cpus: float = Field(0.0, ge=0, description="0: the ingress shares the cores that are there.")

    max_batch_size: int = Field(8, ge=1, description="Most requests that the engine answers together.")
    batch_wait_s: float = Field(0.02, ge=0, description="Longest wait for a batch to fill.")
    max_ongoing_requests: int = Field(16, ge=1, description="Requests that an engine replica holds; at least a batch.")
    max_queued_requests: int = Field(32, ge=0, description="Requests that may wait for an engine; more get a 503.")
    retry_after_s: int = Field(2, ge=1, description="What a 503 tells the client to wait.")
    request_timeout_s: float = Field(120.0, gt=0)

    max_body_mb: float = Field(24.0, gt=0, description="Largest request body, base64 included.")
    max_image_pixels: int = Field(40_000_000, ge=784, description="Largest image, in pixels before resizing.")
    max_new_tokens: int = Field(1024, ge=1, description="Longest answer that a request may ask for.")

    @model_validator(mode="after")
    def _a_batch_fits(self) -> "AppArgs":
        if self.max_ongoing_requests < self.max_batch_size:
            raise ValueError(
                f"max_ongoing_requests ({self.max_ongoing_requests}) is smaller than max_batch_size "
                f"({self.max_batch_size}), so a batch could never fill: raise the former."
            )
        return self
