"""The one kind of error that a client sees."""

from collections.abc import Mapping

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send


class RequestError(Exception):
    """A request that cannot be answered as it is.

    Attributes:
        status: HTTP status, 4xx.
        code: stable name for programs.
        retry_after_s: after how long the same request may be sent again; None where that would not help.
    """

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class ErrorResponse(JSONResponse):
    """An error answer, which leaves its code as ``error_code`` in the request's state for logs and metrics."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__({"error": {"code": code, "message": message}}, status_code=status, headers=headers)
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        scope.setdefault("state", {})["error_code"] = self._code
        await super().__call__(scope, receive, send)


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error answer: ``{"error": {"code", "message"}}``."""
    return ErrorResponse(status, code, message, headers)
