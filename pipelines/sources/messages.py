"""Conversations: LLaVA's rows (``conversations`` of ``from`` and ``value``) and those of chat APIs (``messages``).

A file is a JSON array or JSON lines. Each row becomes one row of the set, whatever the number of its pictures; in what
is stored, ``<image>`` in a user's words marks the next picture (``pipelines.dataset.schema``).
"""

import base64
import binascii
import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from padt.data.conversation import IMAGE_MARKER, ConversationError, ImagePlace, read_chat, read_messages
from padt.errors import UserError
from pipelines.sources.base import Header, ImageEntry, Piece, Reject, identifier, is_file_name
from pipelines.sources.json_stream import stream_records

_FILE = "File of conversations"
_DATA_URL = re.compile(r"data:image/([a-z0-9]+)[^,]*;base64,(.+)", re.DOTALL)
_OTHER_MEDIA = ("video", "videos", "audio", "audios", "sound", "speech")
_OTHER_MARKER = re.compile(r"<(?:video|audio)>")
_SYSTEM_KEYS = ("system", "system_prompt")
_OTHER_LAYOUTS = {
    ("query", "response"): " (ms-swift)",
    ("instruction", "output"): " (Alpaca)",
    ("prompt", "completion"): "",
    ("prompt", "response"): "",
    ("question", "answer"): "",
}
_ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}


@dataclass(frozen=True)
class Conversation:
    """A usable row.

    Attributes:
        images: file names of its pictures; made-up ones where they stand in the row itself.
        messages: as shards store them.
        embedded: pictures that stand in the row itself, in base64.
    """

    images: tuple[str, ...]
    messages: tuple[dict[str, str], ...]
    embedded: tuple[str, ...] = ()


@dataclass(frozen=True)
class MessagesSource:
    """Conversations with any number of pictures.

    Ids that come again (LLaVA's files have several conversations about one photograph, all with its id) get a number:
    ``000000033471``, ``000000033471#2``. Rows without an id are called by their place in the file.

    Attributes:
        annotations: URL of the file.
    """

    annotations: str

    def files(self) -> list[tuple[str, str]]:
        """See ``Source``."""
        return [("annotations", self.annotations)]

    def header(self) -> Header:
        """See ``Source``."""
        header = Header()
        reasons: Counter[str] = Counter()
        said: dict[str, str] = {}
        for image_id, found in self._rows(header.repairs):
            if isinstance(found, ConversationError):
                reasons[found.reason] += 1
                said.setdefault(found.reason, f" The row {image_id}: {found}")
                continue
            first, *more = found.images or ("",)
            size = sum(len(each) * 3 // 4 for each in found.embedded)
            header.images.append(ImageEntry(image_id, first, None, None, tuple(more), size))
        if not header.images:
            why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            first = "".join(said[reason] for reason, _ in reasons.most_common(1))
            raise UserError(
                f"{_FILE} {self.annotations} has no usable row ({why or 'it is empty'}): give rows with "
                f"'conversations' (LLaVA) or 'messages' (chat APIs).{first}"
            )
        return header

    def pieces(self) -> Iterator[Piece | Reject]:
        """See ``Source``."""
        for image_id, found in self._rows(Counter()):
            if isinstance(found, ConversationError):
                yield Reject(image_id, "conversation", found.reason, str(found))
            else:
                content = {"messages": found.messages} | ({"pictures": found.embedded} if found.embedded else {})
                yield Piece(image_id, "conversation", json.dumps(content))

    def _rows(self, repairs: Counter[str]) -> Iterator[tuple[str, Conversation | ConversationError]]:
        seen: Counter[str] = Counter()
        for line in stream_records(self.annotations, _FILE):
            image_id = identifier(line.value.get("id")) if isinstance(line.value, Mapping) else None
            if image_id is None:
                image_id = f"{line.number:09d}"
                repairs["id_given"] += 1
            seen[image_id] += 1
            if seen[image_id] > 1:
                # The name found may itself be an id of the file.
                while (again := f"{image_id}#{seen[image_id]}") in seen:
                    seen[image_id] += 1
                image_id = again
                seen[image_id] += 1
                repairs["id_repeated"] += 1
            try:
                yield image_id, read_conversation(line.value)
            except ConversationError as error:
                yield image_id, error


def read_conversation(row: Any) -> Conversation:
    """A row as it will be stored.

    Raises:
        ConversationError: it has no messages, or what it has cannot be trained on.
    """
    if not isinstance(row, Mapping):
        raise ConversationError("conversation_malformed", f"It is not a JSON object: {str(row)[:60]}.")
    _refuse_other_media(row)
    shown: tuple[Any, ...] = ()
    if isinstance(row.get("conversations"), list):
        messages = [_llava_message(message, number) for number, message in enumerate(row["conversations"], start=1)]
    elif isinstance(row.get("messages"), list):
        turns, shown = read_chat(row["messages"])
        messages = [
            {
                "role": _ROLES.get(turn.role, turn.role),
                "content": "".join(
                    IMAGE_MARKER if isinstance(piece, ImagePlace) else str(piece) for piece in turn.content
                ),
            }
            for turn in turns
        ]
    else:
        raise ConversationError("conversation_malformed", _other_layout(row))
    messages = _with_system(row, messages)
    for number, message in enumerate(messages, start=1):
        # An assistant may well write of tags; in a question they stand for what was shown.
        if message["role"] == "user" and (marker := _OTHER_MARKER.search(message["content"])):
            raise ConversationError(
                "content_unsupported", f"Turn {number} has the marker {marker[0]}: only pictures are read."
            )
    images, embedded = _pictures(shown or row.get("image") or row.get("images"))
    # Halves of surrogate pairs cannot be stored as UTF-8.
    stored = tuple({key: text.encode("utf-8", "replace").decode() for key, text in each.items()} for each in messages)
    read_messages(stored, len(images))
    return Conversation(images, stored, embedded)


def _refuse_other_media(row: Mapping[str, Any]) -> None:
    for key in _OTHER_MEDIA:
        if row.get(key):
            raise ConversationError(
                "content_unsupported", f"It has {key!r} ({str(row[key])[:60]}): only pictures are read."
            )


def _with_system(row: Mapping[str, Any], messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages with what the row's own field says to the system; a system turn stays behind it."""
    told = next((row[key] for key in _SYSTEM_KEYS if row.get(key)), None)
    if told is None:
        return messages
    if not isinstance(told, str):
        raise ConversationError("conversation_malformed", f"Its 'system' is not text: {str(told)[:60]}.")
    if messages and messages[0]["role"] == "system":
        turn = messages[0]["content"]
        both = turn if turn.strip() == told.strip() else f"{told}\n\n{turn}"
        return [{"role": "system", "content": both}, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


def _other_layout(row: Mapping[str, Any]) -> str:
    """Why a row is no conversation, with the layout that it seems to have."""
    for (asked, answered), tool in _OTHER_LAYOUTS.items():
        if asked in row and answered in row:
            return (
                f"It has {asked!r} and {answered!r}{tool}: write them as 'messages': [{{'role': 'user', 'content': "
                f"{asked}}}, {{'role': 'assistant', 'content': {answered}}}]."
            )
    for key in row:
        near = difflib.get_close_matches(str(key), ["conversations", "messages"], n=1, cutoff=0.8)
        if near and isinstance(row[key], list) and str(key) not in near:
            return f"It has {str(key)!r}: call it {near[0]!r}."
    return "It has neither 'conversations' nor 'messages' as a list."


def _llava_message(message: Any, number: int) -> dict[str, str]:
    role = message.get("from") if isinstance(message, Mapping) else None
    text = message.get("value") if isinstance(message, Mapping) else None
    if not isinstance(role, str) or not isinstance(text, str):
        raise ConversationError("conversation_malformed", f"Turn {number} lacks 'from' or 'value' as text.")
    return {"role": _ROLES.get(role, role), "content": text}


def _pictures(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """File names of a row's pictures (one, a list of them, or none), and those that stand in the row itself."""
    values = [] if value is None or value == "" else value if isinstance(value, list | tuple) else [value]
    embedded = [_DATA_URL.fullmatch(each) for each in values if isinstance(each, str) and each.startswith("data:")]
    found = [match for match in embedded if match is not None]
    if embedded and len(found) < len(values):
        raise ConversationError(
            "content_unsupported", "Pictures must be files, or all of them data URLs (data:image/...;base64,...)."
        )
    if not all(embedded or is_file_name(each) for each in values):
        raise ConversationError(
            "conversation_malformed",
            f"A picture has no usable file name: {str(values)[:60]}. Give each picture by the name of its file, or "
            "as a data URL.",
        )
    if not found:
        return tuple(values), ()
    try:
        contents = [base64.b64decode(match[2], validate=True) for match in found]
    except binascii.Error as error:
        raise ConversationError("content_unsupported", f"A picture's data URL is not base64: {error}.") from error
    # Called by their content: no two pictures of a file have the same name.
    digests = [hashlib.sha256(content).hexdigest()[:24] for content in contents]
    names = tuple(f"{digest}.{match[1]}" for digest, match in zip(digests, found, strict=True))
    return names, tuple(match[2] for match in found)
