"""The client for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Unpack

import httpx

from padt.errors import EndpointError
from padt.inference.requests import Images
from padt.inference.results import Prediction
from serve.client import wire
from serve.client.base import Questions
from serve.client.wire import Asked, Options, ServedModel, StreamEvent


class AsyncClient(Questions[Awaitable[Prediction]]):
    """``serve.client.Client`` for asyncio: methods are awaited, iterators are asynchronous.

    Pictures are read and encoded in threads.
    """

    def _connect(self, **about: Any) -> None:
        self._http = httpx.AsyncClient(**about)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(self, image: Images | None, request: Asked, **options: Unpack[Options]) -> Prediction:
        """Ask one question; see ``Client.predict``."""
        (prediction,) = await self.predict_all(image, [request], **options)
        return prediction

    async def predict_all(
        self, image: Images | None, requests: Sequence[Asked], **options: Unpack[Options]
    ) -> list[Prediction]:
        """Ask several questions about the same picture; see ``Client.predict_all``."""
        return wire.predictions(await self.raw(image, requests, **options))

    async def raw(self, image: Images | None, requests: Sequence[Asked], **options: Unpack[Options]) -> dict[str, Any]:
        """The whole answer as the endpoint words it; see ``Client.raw``."""
        body = await asyncio.to_thread(wire.body, image, requests, options)
        async with self._open("POST", "/v1/predict", json=body) as response:
            await response.aread()
        return wire.parsed(response.headers, response.content)

    async def stream(
        self, image: Images | None, request: Asked, **options: Unpack[Options]
    ) -> AsyncIterator[StreamEvent]:
        """Ask one question and hear its answer bit by bit; see ``Client.stream``."""
        body = await asyncio.to_thread(wire.body, image, [request], options, stream=True)
        async with self._open("POST", "/v1/predict", json=body) as response:
            reader = wire.EventReader(response.headers)
            async for content in response.aiter_bytes():
                for event in reader.feed(content):
                    yield event
            reader.finish()

    async def batch(
        self, items: Iterable[tuple[Images | None, Asked]], **options: Unpack[Options]
    ) -> AsyncIterator[tuple[int, Prediction | EndpointError]]:
        """Ask many questions about many pictures; see ``Client.batch``."""
        pieces = wire.batch_pieces(items, options)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            numbers, content = piece
            async with self._open("POST", "/v1/batch", content=content, headers=wire.JSON_LINES) as response:
                reader = wire.BatchReader(numbers, response.headers)
                async for received in response.aiter_bytes():
                    for answer in reader.feed(received):
                        yield answer
                for answer in reader.finish():
                    yield answer

    async def models(self) -> list[ServedModel]:
        """What answers at this endpoint."""
        async with self._open("GET", "/v1/models") as response:
            await response.aread()
        return wire.models(wire.parsed(response.headers, response.content))

    async def ready(self) -> bool:
        """Whether a question would be answered now."""
        try:
            return (await self._http.get("/readyz")).is_success
        except httpx.TransportError:
            return False

    @asynccontextmanager
    async def _open(self, method: str, path: str, **content: Any) -> AsyncIterator[httpx.Response]:
        """An answer with status 2xx whose body is not read yet; a refused call is made again as far as allowed."""
        retries = self._retries()
        with self._told():
            while True:
                async with self._http.stream(method, path, **content) as response:
                    if response.is_success:
                        yield response
                        return
                    await response.aread()
                wait = retries.wait(response)
                if wait is None:
                    raise wire.refusal(response.status_code, response.headers, response.content)
                await asyncio.sleep(wait)
