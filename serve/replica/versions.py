"""A model with its engine, as one version that answers."""

import asyncio
import gc
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from padt.inference.events import Event
from padt.inference.requests import GenerationSettings, caption_request
from serve.observability.metrics import CountSteps, process_meters
from serve.settings import ModelSource, ServerArgs

logger = logging.getLogger("ray.serve")


class Version:
    """A model that is loaded, and whose engine runs.

    Attributes:
        source: what it was loaded from.
        name: what answers call it.
        fingerprint: of the weights.
        device: where the model runs.
        engine: ``padt.inference.engine.Engine``.
        lost: why this version answers nothing more; empty as long as it does.
    """

    def __init__(self, source: ModelSource, args: ServerArgs) -> None:
        """Load the model, start its engine, and answer a first small question.

        Raises:
            UserError: the model cannot be loaded or has no engine.
        """
        import torch

        from padt import load_model
        from padt.checkpoints.fingerprint import fingerprint
        from padt.inference.engine import Engine, EngineLimits

        self.source = source
        self.name = source.label
        self.lost = ""
        self.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, args.dtype) if args.dtype else None
        model = load_model(source.model, dtype=dtype, device=self.device, attn_implementation=args.attn_implementation)
        # The registry's tag begins with it.
        self.fingerprint = fingerprint(Path(source.model))[:12]
        limits = EngineLimits(
            max_rows=args.max_rows,
            max_length=args.max_length,
            admit_tokens=args.max_length,
            admit_patches=args.max_patches,
            max_waiting=args.most_waiting,
            cache_mb=args.cache_mb,
        )
        count = CountSteps(process_meters(), self.name)
        self.engine: Any = Engine(model, limits, on_step=count, compile=args.compile_steps)
        # Before it runs: a shape that is compiled under a request would look like a model that hangs.
        self.engine.warm_up()
        count.watch(self.engine)
        self._hang_after_s = args.hang_after_s
        self._readers: set[asyncio.Queue[Event | None]] = set()
        self._exit = ExitStack()
        self._exit.enter_context(self.engine.running())
        # The first call pays for allocation and lazy imports; better here than in somebody's request.
        settings = GenerationSettings(max_new_tokens=4)
        try:
            self.engine.submit(Image.new("RGB", (112, 112), "grey"), caption_request(), settings).result()
        except BaseException:
            self._exit.close()
            raise
        logger.info("%s is loaded on %s: %s", self.name, self.device, source.model)

    @property
    def stalled_s(self) -> float:
        """How long the model has come to an end with nothing while jobs run or wait; 0 without any."""
        return self.engine.stalled_s

    @contextmanager
    def told(self, reader: "asyncio.Queue[Event | None]") -> Iterator[None]:
        """For the length of a block a queue gets None when this version is lost."""
        self._readers.add(reader)
        if self.lost:
            reader.put_nowait(None)
        try:
            yield
        finally:
            self._readers.discard(reader)

    def check(self) -> None:
        """Notice an engine that answers nothing more, and tell whoever waits for it. In the event loop.

        Raises:
            RuntimeError: the engine's thread has died, or hangs.
        """
        if not self.lost and self.engine.failure is not None:
            self.lost = f"The engine of {self.name} has failed: {self.engine.failure}"
        elif not self.lost and self.stalled_s >= self._hang_after_s:
            self.lost = f"The model of {self.name} has made no step for {self.stalled_s:.0f} s."
        if self.lost:
            for reader in self._readers:
                reader.put_nowait(None)
            raise RuntimeError(self.lost)

    def close(self) -> None:
        """Answer what was asked, then let the engine and the model go, and their memory."""
        import torch

        self._exit.close()
        self.engine = None
        # What holds a model has circles.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
