"""A model with its engine, as one version that answers."""

import hashlib
import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from padt.inference.requests import GenerationSettings, caption_request
from serve.settings import Release, ServerArgs

logger = logging.getLogger("ray.serve")


class Version:
    """A model that is loaded, and whose engine runs.

    Attributes:
        release: what it was loaded from.
        name: what answers call it.
        fingerprint: of the weights.
        device: where the model runs.
        engine: ``padt.inference.engine.Engine``.
    """

    def __init__(self, release: Release, args: ServerArgs) -> None:
        """Load the model, start its engine, and answer a first small question.

        Raises:
            UserError: the model cannot be loaded or has no engine.
        """
        import torch

        from padt import load_model
        from padt.inference.engine import Engine, EngineLimits

        self.release = release
        self.name = release.version or Path(release.model).name
        self.fingerprint = weights_fingerprint(Path(release.model))
        self.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, args.dtype) if args.dtype else None
        model = load_model(release.model, dtype=dtype, device=self.device, attn_implementation=args.attn_implementation)
        limits = EngineLimits(
            max_rows=args.max_rows,
            max_length=args.max_length,
            admit_tokens=args.max_length,
            admit_patches=args.max_patches,
            max_waiting=args.max_rows + args.max_queued_requests,
            cache_mb=args.cache_mb,
        )
        self.engine: Any = Engine(model, limits)
        self._exit = ExitStack()
        self._exit.enter_context(self.engine.running())
        # The first call pays for allocation and lazy imports; better here than in somebody's request.
        settings = GenerationSettings(max_new_tokens=4)
        self.engine.submit(Image.new("RGB", (112, 112), "grey"), caption_request(), settings).result()
        logger.info("%s is loaded on %s: %s", self.name, self.device, release.model)

    def close(self) -> None:
        """Answer what was asked, then let the engine and the model go."""
        self._exit.close()


def weights_fingerprint(folder: Path) -> str:
    """Twelve hexadecimal digits over the content of a model folder's weights and configuration."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        digest.update(path.name.encode())
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:12]


class Heartbeat:
    """Notices an engine whose model makes no step while answers wait for one."""

    def __init__(self) -> None:
        self._seen = -1
        self._since = time.monotonic()

    def stalled_s(self, engine: Any) -> float:
        """Seconds, by what was seen at earlier calls, since the last step; 0 while nothing runs or waits."""
        now = time.monotonic()
        if engine.steps != self._seen or not (engine.running_rows or engine.waiting_rows):
            self._seen, self._since = engine.steps, now
        return now - self._since
