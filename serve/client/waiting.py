"""The client that waits for its answers."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import httpx

from padt.errors import EndpointError
from padt.inference.requests import Images
from padt.inference.results import Prediction
from serve.client import wire
from serve.client.base import Questions
from serve.client.wire import Asked, Options, ServedModel, StreamEvent


class Client(Questions[Prediction]):
    """Asks an endpoint, and waits for its answers. May be used by several threads; closed by ``with`` or ``close``."""

    def _connect(self, **about: Any) -> None:
        self._http = httpx.Client(**about)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(self, image: Images | None, request: Asked, **options: Unpack[Options]) -> Prediction:
        """Ask one question about a picture, about several, or about none.

        Args:
            image: the picture (see ``Questions``), a list of several, or None.
            request: as ``padt.inference.requests`` makes them; plain words are a free prompt.
            options: see ``Options``.

        Returns:
            What ``model.predict`` gives, but for the token ids.

        Raises:
            EndpointError: the endpoint refuses, fails or does not answer; it has status, code and request id.
            UserError: the question has no form in the API.
            ImageError: the picture cannot be read.
        """
        return self.predict_all(image, [request], **options)[0]

    def predict_all(
        self, image: Images | None, requests: Sequence[Asked], **options: Unpack[Options]
    ) -> list[Prediction]:
        """Ask several questions about the same picture, which is looked at once; see ``predict``."""
        return wire.predictions(self.raw(image, requests, **options))

    def raw(self, image: Images | None, requests: Sequence[Asked], **options: Unpack[Options]) -> dict[str, Any]:
        """The whole answer to ``predict_all`` as the endpoint words it, with version, usage and times."""
        with self._open("POST", "/v1/predict", json=wire.body(image, requests, options)) as response:
            response.read()
        return wire.parsed(response.headers, response.content)

    def stream(self, image: Images | None, request: Asked, **options: Unpack[Options]) -> Iterator[StreamEvent]:
        """Ask one question and hear its answer bit by bit; see ``predict``.

        Closing the iterator (``break`` and ``close()`` do it) ends the work at the endpoint.

        Yields:
            ``TextPiece`` (text without VRTs), ``ObjectFound``, and at the end the ``Prediction``.
        """
        body = wire.body(image, [request], options, stream=True)
        with self._open("POST", "/v1/predict", json=body) as response:
            reader = wire.EventReader(response.headers)
            for content in response.iter_bytes():
                yield from reader.feed(content)
            reader.finish()

    def batch(
        self, items: Iterable[tuple[Images | None, Asked]], **options: Unpack[Options]
    ) -> Iterator[tuple[int, Prediction | EndpointError]]:
        """Ask many questions about many pictures, which are read as they are sent.

        Args:
            items: picture (or a list of several, or None) and request of each question.
            options: see ``Options``; for all of them.

        Yields:
            The number of the item, from 0, and its prediction or what was wrong with it, in order of completion.

        Raises:
            EndpointError: the endpoint refuses the whole or does not answer.
        """
        for numbers, content in wire.batch_pieces(items, options):
            with self._open("POST", "/v1/batch", content=content, headers=wire.JSON_LINES) as response:
                reader = wire.BatchReader(numbers, response.headers)
                for received in response.iter_bytes():
                    yield from reader.feed(received)
                yield from reader.finish()

    def models(self) -> list[ServedModel]:
        """What answers at this endpoint."""
        with self._open("GET", "/v1/models") as response:
            response.read()
        return wire.models(wire.parsed(response.headers, response.content))

    def ready(self) -> bool:
        """Whether a question would be answered now."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    @contextmanager
    def _open(self, method: str, path: str, **content: Any) -> Iterator[httpx.Response]:
        """An answer with status 2xx whose body is not read yet; a refused call is made again as far as allowed."""
        retries = self._retries()
        with self._told():
            while True:
                with self._http.stream(method, path, **content) as response:
                    if response.is_success:
                        yield response
                        return
                    response.read()
                wait = retries.wait(response)
                if wait is None:
                    raise wire.refusal(response.status_code, response.headers, response.content)
                time.sleep(wait)
