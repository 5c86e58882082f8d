"""The one kind of error that a client sees."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that cannot be answered as it is.

    Attributes:
        status: HTTP status, 4xx or 5xx.
        code: stable name for programs.
        retry_after_s: after how long the same request may be sent again; None where that would not help.
        param: the field that is to blame, as in ``questions.1.names``; None = none, or several.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after_s: int | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """What is sent: ``{"error": {...}}``."""
        return error_body(self.status, self.code, str(self), self.param)


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """``{"error": {"message", "type", "code", "param"}}``: the shape that OpenAI's clients read, too."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


class ErrorResponse(JSONResponse):
    """An error answer, which leaves its code as ``error_code`` in the request's state for logs and metrics."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(error_body(status, code, message, param), status_code=status, headers=headers)
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        scope.setdefault("state", {})["error_code"] = self._code
        await super().__call__(scope, receive, send)


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None, param: str | None = None
) -> JSONResponse:
    """An error answer; see ``error_body``."""
    return ErrorResponse(status, code, message, headers, param)
