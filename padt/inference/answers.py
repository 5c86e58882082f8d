"""Answers to many requests in their order, each as soon as it is there: through the engine, where it can."""

from collections import deque
from collections.abc import Iterator, Sequence

import torch

from padt.data.image import ImageSource, open_image
from padt.inference.engine import Engine, EngineLimits, Ticket
from padt.inference.engine.passes import takes_masks_by_row
from padt.inference.grounding import check_images, processor_of
from padt.inference.predict import predict
from padt.inference.requests import GenerationSettings, Request
from padt.inference.results import Prediction
from padt.model.modeling import PaDTForConditionalGeneration


def answers(
    model: PaDTForConditionalGeneration,
    images: Sequence[Sequence[ImageSource]],
    requests: Sequence[Request],
    settings: GenerationSettings | None = None,
    rows: int = 8,
) -> Iterator[Prediction]:
    """Answer requests, ``rows`` at a time; a long answer holds up none but those that come after it in the list.

    A beam search, a single request and a model whose attention takes no mask for each row (FlashAttention) are
    answered by :func:`padt.inference.predict.predict`, in batches. Greedy answers are the same either way; samples
    follow from ``torch.manual_seed``, but are others.

    Args:
        model: with its processor.
        images: the pictures of each request.
        requests: what is asked.
        settings: how to generate; greedy by default.
        rows: answers written at the same time.

    Yields:
        The predictions, in the order of the requests.

    Raises:
        UserError: as ``predict``.
        ImageError: a picture cannot be used.
    """
    settings = settings or GenerationSettings()
    if settings.num_beams > 1 or len(requests) < 2 or not takes_masks_by_row(model):
        for start in range(0, len(requests), rows):
            part = slice(start, start + rows)
            yield from predict(model, [list(each) for each in images[part]], requests[part], settings)
        return
    for each, request in zip(images, requests, strict=True):
        check_images(request, len(each))
    sizes = ([open_image(source).size for source in each] for each in images)
    asked = zip(requests, sizes, strict=True)
    # Nothing is kept of pictures that are asked about once.
    limits = EngineLimits.fitting(
        processor_of(model), asked, settings.max_new_tokens, min(rows, len(requests)), cache_mb=0
    )
    engine = Engine(model, limits)
    waiting = deque(zip(images, requests, strict=True))
    tickets: deque[Ticket] = deque()
    while waiting or tickets:
        while waiting and engine.waiting_rows < rows:
            seed = int(torch.randint(2**62, ())) if settings.temperature else None
            own, request = waiting.popleft()
            tickets.append(engine.submit(list(own), request, settings, seed=seed))
        engine.step()
        while tickets and tickets[0].done:
            yield tickets.popleft().result()
