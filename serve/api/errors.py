"""The one kind of error that a client sees."""

from collections.abc import Mapping

from starlette.responses import JSONResponse


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


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error answer: ``{"error": {"code", "message"}}``."""
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)
