"""SAM 2 beside an engine: masks are refined when an answer is whole, in a thread of its own.

The engine's steps go on meanwhile. One answer is refined at a time; how many wait is bounded by the questions that the
replica takes at all, and one whose client has gone is left out when its turn comes.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from PIL import Image

from padt.data.rle import encode
from padt.inference.refine import MaskRefiner, Refinement, load_refiner
from padt.inference.results import Frame, PredictedObject, Prediction

logger = logging.getLogger("ray.serve")

_SQUARE = PredictedObject("", 0.5, (28, 28, 84, 84), encode(np.ones((112, 112), bool)), (5,), (0, 1), 0.5, True)
_FIRST = Prediction("", (_SQUARE,), (Frame(112, 112, (4, 4)),))


class Refining:
    """SAM 2 and its thread."""

    def __init__(self, refiner: MaskRefiner) -> None:
        self._refiner = refiner
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="padt-refine")

    @classmethod
    def load(cls, refinement: Refinement, device: str | None) -> "Refining":
        """Load SAM 2, and refine a first mask: what the first call pays for is paid before the first request.

        Raises:
            UserError: it cannot be loaded.
        """
        refiner = load_refiner(refinement, device=device)
        refiner.refine([Image.new("RGB", (112, 112), "grey")], [_FIRST])
        logger.info("masks are refined by %s, told %s", refinement.model, refinement.prompt)
        return cls(refiner)

    async def refine(self, pictures: Sequence[Image.Image], prediction: Prediction) -> tuple[Prediction, float]:
        """The answer with refined masks, and the seconds that it took, its wait included; 0 where there are no masks.

        Where SAM 2 fails, the answer keeps the model's own masks and says so in a warning.
        """
        if all(found.mask is None for found in prediction.objects):
            return prediction, 0.0
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            refined = await loop.run_in_executor(self._thread, self._refiner.refine, pictures, [prediction])
        except Exception:
            logger.exception("SAM 2 has failed; the answer keeps the model's own masks")
            warning = "masks are the model's own: refining them has failed, and the server's log says why"
            refined = [replace(prediction, warnings=(*prediction.warnings, warning))]
        return refined[0], time.perf_counter() - began
