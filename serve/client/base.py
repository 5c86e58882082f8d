"""What both clients share: how they are made, the questions that are told in one line, and when a call is repeated."""

import os
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, Unpack

from padt.errors import EndpointError, install_command
from padt.inference.requests import Images, caption_request, detect_request, refer_request, text_request
from serve.client.wire import Asked, Options, wait_before

try:
    import httpx
except ImportError as error:
    raise ImportError(f"serve.client needs httpx: install it with `{install_command('client')}`.") from error

# A call that was refused with one of these may be made again: nothing was done yet.
TRY_AGAIN = (429, 503)

Answer = TypeVar("Answer", covariant=True)
"""What a question gives: a ``Prediction``, or an awaitable one."""


class Questions(ABC, Generic[Answer]):
    """A client, but for how it sends.

    Pictures are paths, encoded bytes, Pillow images, arrays ``(height, width, 3)`` of bytes, or addresses
    (``https://...``) where the endpoint fetches those; where an ``image`` is taken, a list of several is too.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        *,
        timeout_s: float = 150.0,
        retries: int = 4,
        longest_wait_s: float = 30.0,
        transport: Any = None,
    ) -> None:
        """Get ready; nothing is sent yet.

        Args:
            url: of the endpoint.
            api_key: bearer key; None = the environment's ``PADT_API_KEY``, if it is set.
            timeout_s: longest wait for an answer, or for the next part of a stream.
            retries: how often a call is made again that was refused with 429 or 503.
            longest_wait_s: an endpoint that asks for a longer wait before the next try (``Retry-After``) is not waited
                for: its error is raised.
            transport: httpx's, for proxies and tests.
        """
        key = os.environ.get("PADT_API_KEY", "") if api_key is None else api_key
        self._url = url
        self._limits = (retries, longest_wait_s)
        self._connect(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            transport=transport,
        )

    @abstractmethod
    def _connect(self, **about: Any) -> None:
        """Make httpx's client."""

    @abstractmethod
    def predict(self, image: Images | None, request: Asked, **options: Unpack[Options]) -> Answer:
        """Ask one question about a picture, about several, or about none."""

    def detect(self, image: Images, names: Sequence[str], **options: Unpack[Options]) -> Answer:
        """Find every object of the named classes; see ``predict``."""
        return self.predict(image, detect_request(names), **options)

    def refer(self, image: Images, sentence: str, **options: Unpack[Options]) -> Answer:
        """Find what a sentence describes; see ``predict``."""
        return self.predict(image, refer_request(sentence), **options)

    def caption(self, image: Images, **options: Unpack[Options]) -> Answer:
        """Describe a picture, every noun grounded; see ``predict``."""
        return self.predict(image, caption_request(), **options)

    def ask(self, image: Images | None, prompt: str, **options: Unpack[Options]) -> Answer:
        """Ask anything; see ``predict``."""
        return self.predict(image, text_request(prompt), **options)

    def _retries(self) -> "Retries":
        return Retries(*self._limits)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in a sentence where no answer came."""
        try:
            yield
        except httpx.TimeoutException as error:
            message = f"{self._url} did not answer in time ({type(error).__name__}): ask for less, or raise timeout_s."
            raise EndpointError(message, code="timeout") from error
        except httpx.TransportError as error:
            message = f"{self._url} does not answer ({error}): check the address, and that `padt serve` runs there."
            raise EndpointError(message, code="unreachable") from error


class Retries:
    """Waits before the repetitions of one call."""

    def __init__(self, most: int, longest_wait_s: float) -> None:
        self._most = most
        self._longest_wait_s = longest_wait_s
        self._made = 0

    def wait(self, response: httpx.Response) -> float | None:
        """Seconds after which to call again; None = the answer stands."""
        if response.status_code not in TRY_AGAIN or self._made >= self._most:
            return None
        self._made += 1
        seconds = wait_before(self._made, response.headers)
        # Whoever was refused together would come back together.
        return None if seconds > self._longest_wait_s else seconds * random.uniform(1.0, 1.25)
