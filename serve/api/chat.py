"""Requests and answers of ``/v1/chat/completions``, in the shapes of OpenAI's API, with objects in a field ``padt``."""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from serve.api.answers import AnswerBody, Usage
from serve.api.errors import RequestError
from serve.api.schemas import MaskFormat, Sampling, validated

_MOST_MESSAGES = 256
_MOST_PARTS = 64
_VRT = re.compile(r"<\|VRT_\d+\|>")
# Fields of OpenAI's API that may only say what is the case here anyway.
FIXED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
# What clients send along of messages that they were given, and what changes no answer.
_PASSED_OVER = frozenset({"name", "padt", "refusal", "annotations"})


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class TextPart(BaseModel):
    """Words."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ImageURL(BaseModel):
    """Where a picture is."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(
        min_length=1, description="A data URL (data:image/...;base64,...); an address where this server fetches those."
    )
    detail: Literal["auto", "low", "high"] = Field("auto", description="Makes no difference.")


class ImagePart(BaseModel):
    """A picture."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["image_url"]
    image_url: ImageURL


Parts = list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
Content = Annotated[
    Parts,
    BeforeValidator(_as_parts, json_schema_input_type=str | Parts),
    Field(max_length=_MOST_PARTS, description="Text, or a list of parts: text, and in the user's turns pictures."),
]


class Message(BaseModel):
    """A turn of the conversation."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    @model_validator(mode="after")
    def _nothing_else(self) -> "Message":
        for name, value in (self.model_extra or {}).items():
            if name not in _PASSED_OVER and value is not None:
                raise ValueError(f"the field '{name[:80]}' of a message is not supported here: leave it out")
        if self.role != "user" and any(isinstance(part, ImagePart) for part in self.content):
            raise ValueError(f"a picture cannot stand in a turn of the {self.role}: move it to the user's")
        return self


class StreamOptions(BaseModel):
    """What a stream holds."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = Field(False, description="Send a last piece with the usage.")
    include_obfuscation: bool = Field(False, description="Makes no difference.")


class Grounding(BaseModel):
    """How objects are sent."""

    model_config = ConfigDict(extra="forbid")

    mask: MaskFormat = Field("rle", description="Format of masks; see /v1/predict.")
    score_threshold: float = Field(0.0, ge=0, le=1, description="Leave out objects with a lower score.")


def _described(schema: dict[str, Any]) -> None:
    schema["properties"] |= {
        name: {"enum": [None, *values], "description": "May only be left out, or say this."}
        for name, values in FIXED.items()
    }


class ChatRequest(BaseModel):
    """A conversation that ends with the user's turn."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_described)

    model: str = Field(description="Name of the model, as /v1/models lists it.")
    messages: list[Message] = Field(min_length=1, max_length=_MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31, description="Longest answer.")
    max_tokens: int | None = Field(None, ge=1, le=2**31, description="The same, as it was called before.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 or none = the likeliest answer, else sampling.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus of the sampling.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Of the sampling; none = a fresh one.")
    stream: bool | None = Field(None, description="Answer bit by bit, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    padt: Grounding | None = Field(None, description="How objects are sent.")
    user: str | None = Field(None, description="Makes no difference.")
    metadata: dict[str, str] | None = Field(None, description="Makes no difference.")
    safety_identifier: str | None = Field(None, description="Makes no difference.")
    prompt_cache_key: str | None = Field(None, description="Makes no difference.")

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ: give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' needs 'stream': true")
        return self

    @property
    def grounding(self) -> Grounding:
        """How objects are sent, with the defaults filled in."""
        return self.padt or Grounding.model_validate({})

    @property
    def longest(self) -> int | None:
        """Most tokens of the answer; None = as the server has it."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def sampling(self) -> Sampling:
        """How to answer, with the defaults filled in."""
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "seed")}
        return Sampling(**{name: value for name, value in given.items() if value is not None})

    @property
    def sources(self) -> dict[str, str]:
        """URLs of the pictures by their place in the request."""
        return {
            f"messages.{number}.content.{place}.image_url.url": part.image_url.url
            for number, message in enumerate(self.messages)
            for place, part in enumerate(message.content)
            if isinstance(part, ImagePart)
        }

    def plain(self, picture: Callable[[], Any]) -> list[dict[str, Any]]:
        """The messages as ``padt.inference.requests.chat_request`` takes them; ``picture`` gives the next picture."""
        return [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": [
                    {"type": "text", "text": part.text}
                    if isinstance(part, TextPart)
                    else {"type": "image", "image": picture()}
                    for part in message.content
                ],
            }
            for message in self.messages
        ]


def read_chat(values: dict[str, Any]) -> ChatRequest:
    """A request of ``/v1/chat/completions``.

    Raises:
        RequestError: 400, it has fields that are unknown, of the wrong kind, or that ask for what there is not here.
    """
    for name in FIXED.keys() & values.keys():
        value = values[name]
        # For JSON, 0 is no false.
        if value is not None and not any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in FIXED[name]
        ):
            told = "".join(f" or send {json.dumps(each)}" for each in FIXED[name])
            message = f"{name} is not supported here with this value: leave it out{told}."
            raise RequestError(400, "unsupported_parameter", message, param=name)
    return validated(ChatRequest, {name: value for name, value in values.items() if name not in FIXED}, status=400)


class ChatMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str = Field(description="The text without Visual Reference Tokens.")
    refusal: None = None
    padt: AnswerBody = Field(description="The whole answer as /v1/predict gives it.")


class Choice(BaseModel):
    """One answer; there is only one."""

    index: Literal[0] = 0
    message: ChatMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatResponse(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Seconds since the epoch.")
    model: str
    system_fingerprint: str = Field(description="Of the model's weights.")
    choices: list[Choice]
    usage: Usage


def content_of(text: str) -> str:
    """The text of an answer without Visual Reference Tokens."""
    return _VRT.sub("", text)


@dataclass(frozen=True)
class Completion:
    """What all parts of one answer share."""

    id: str
    created: int
    model: str

    @classmethod
    def of(cls, request_id: str, model: str) -> "Completion":
        """An answer that begins now."""
        return cls(f"chatcmpl-{request_id}", int(time.time()), model)

    def whole(self, body: AnswerBody) -> ChatResponse:
        """The answer."""
        message = ChatMessage(content=content_of(body.text), padt=body)
        return ChatResponse(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=body.fingerprint,
            choices=[Choice(message=message, finish_reason=body.finish_reason)],
            usage=body.usage,
        )

    def piece(self, delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """A part of a stream."""
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}
        return {**self._head(), "choices": [choice]}

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The part of a stream that says how long all was."""
        return {**self._head(), "choices": [], "usage": usage.model_dump()}

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
