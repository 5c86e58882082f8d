"""Parts of the OpenAPI description that FastAPI cannot make of signatures."""

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from serve.api.answers import ErrorBody
from serve.api.batch import LINE_TYPES
from serve.api.chat import ChatRequest
from serve.api.schemas import PredictRequest

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 403, 406, 408, 413, 415, 422, 429, 500, 503, 504)
}


def inlined(kind: type[BaseModel]) -> dict[str, Any]:
    """The schema of a request without references, which could not be followed from where it stands."""
    schema = kind.model_json_schema()
    parts = schema.pop("$defs", {})

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return filled(
                    {**parts[value["$ref"].rpartition("/")[2]], **{k: v for k, v in value.items() if k != "$ref"}}
                )
            return {key: filled(part) for key, part in value.items()}
        return [filled(part) for part in value] if isinstance(value, list) else value

    return filled(schema)


def _form() -> dict[str, Any]:
    """The fields of a form: those of JSON as text, with files for pictures."""
    properties = dict(inlined(PredictRequest)["properties"])
    del properties["images"]
    properties |= {
        "image": {
            "type": "string",
            "format": "binary",
            "description": "The picture as a file; several files of this name are several pictures.",
        },
        "names": {"type": "string", "description": "Classes to detect, separated by commas."},
        "questions": {"type": "string", "description": "A JSON list of questions, instead of `task`."},
    }
    return {"type": "object", "properties": properties}


# One path takes two content types, which FastAPI's parameters cannot say; so the body is described by hand.
PREDICT_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": inlined(PredictRequest)},
        "multipart/form-data": {"schema": _form()},
    },
}
PREDICT_STREAM = {
    "description": "The answer; with `questions` a list of answers; with `stream` server-sent events.",
    "content": {
        "text/event-stream": {
            "schema": {
                "type": "string",
                "description": "Events `text` {answer, text: without Visual Reference Tokens}, `object` {answer, "
                "number, at: characters of the answer's streamed text before it, object}, and as the last one either "
                "`done` (the whole answer) or `error` ({error}). Lines that begin with a colon mean nothing.",
            }
        }
    },
}
CHAT_BODY = {"required": True, "content": {"application/json": {"schema": inlined(ChatRequest)}}}
CHAT_STREAM = {
    "description": "The answer; with `stream` server-sent events.",
    "content": {
        "text/event-stream": {
            "schema": {
                "type": "string",
                "description": "Each event is a `chat.completion.chunk`, the last one `[DONE]`; or an error. Objects "
                "come as they are complete, in `choices[0].delta.padt` {number, at: characters of content before it, "
                "object}; the piece with the finish_reason has the whole answer in `choices[0].delta.padt.answer`.",
            }
        }
    },
}
BATCH_BODY = {
    "required": True,
    "content": {
        kind: {
            "schema": {
                "type": "string",
                "description": "A JSON object in each line: `custom_id` (comes back with the answer; optional) and "
                "`body`, as /v1/predict takes it, without `stream`. No line may be longer than a body of /v1/predict.",
            },
        }
        for kind in LINE_TYPES
    },
}
BATCH_STREAM = {
    "description": "A JSON object in each line, in order of completion.",
    "content": {
        LINE_TYPES[0]: {
            "schema": {
                "type": "string",
                "description": "`custom_id` and `line` (from 1) of the question, `status` (200, or of the error) and "
                "`body`, as /v1/predict gives it.",
            }
        }
    },
}
