"""RefCOCO's references: a pickle from the internet, read without running anything that it says, or the same in JSON.

The layout is that of RefCOCO, RefCOCO+ and RefCOCOg: a list of references with ``ref_id``, ``ann_id``, ``image_id``,
``split`` and ``sentences`` (each with ``sent_id`` and ``sent``). gRefCOCO publishes it as JSON (``grefs(unc).json``):
its ``ann_id`` is a list (several targets), and -1 in it, or ``no_target``, means that nothing is referred to.
"""

import io
import json
import pickle
import pickletools
import reprlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from padt.errors import UserError
from pipelines.io.reading import open_input, reaching, read_most
from pipelines.sources.base import Piece, Reject, identifier, number_of, whole_number
from pipelines.sources.layouts import list_hint

_REFERENCES = "Reference file"
# The published files have 3 to 30 MB.
_MOST_BYTES = 1 << 29
_REMEMBER = ("PUT", "BINPUT", "LONG_BINPUT")


class _PlainUnpickler(pickle.Unpickler):
    """Takes lists, tuples, dictionaries, sets, text, bytes, numbers, booleans and None; refuses everything else.

    A pickle can only reach code through ``find_class``, so what that refuses is never imported, let alone called.
    """

    _SETS = {"set": set, "frozenset": frozenset}

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2 writes bytes as a call of _codecs.encode on Latin-1 text.
        if (module, name) == ("_codecs", "encode"):
            return _latin_bytes
        if module in ("builtins", "__builtin__") and name in self._SETS:
            return self._SETS[name]
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def _latin_bytes(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("it encodes something that is not bytes")
    return text.encode("latin-1")


def published_name(url: str) -> str:
    """Which set a file of references belongs to, by its folder (as the sets unpack) or name; else ``refcoco``."""
    *_, folder, file = f"/{url}".split("/")
    if file.startswith("grefs"):
        return "grefcoco"
    return folder if folder in ("refcoco", "refcoco+", "refcocog", "grefcoco") else "refcoco"


def _content(url: str) -> bytes:
    with open_input(url, _REFERENCES) as handle, reaching(url, _REFERENCES):
        content = read_most(handle, _MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise UserError(f"{_REFERENCES} {url} has more than {_MOST_BYTES:,} bytes: check that it is a RefCOCO file.")
    return content


def load_plain_pickle(url: str) -> Any:
    """What a pickle of plain containers, text and numbers holds.

    Raises:
        UserError: the file is missing or damaged, or holds (or wants to call) anything else; then nothing of it runs.
    """
    return _plain_pickle(_content(url), url)


def _plain_pickle(content: bytes, url: str) -> Any:
    try:
        _check_memo(content)
        # Python 2 wrote text as bytes; RefCOCO's is ASCII, and a stray byte must not stop the file.
        return _PlainUnpickler(io.BytesIO(content), encoding="utf-8", errors="replace").load()
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{_REFERENCES} {url} is refused: {error}. Only lists, dictionaries, text and numbers are read from a "
            "pickle; get the file from its publisher again."
        ) from error
    except (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        json_like = content.lstrip()[:1] == b"{"
        hint = " It looks like JSON: an instances file is given as --annotations." if json_like else " Get it again."
        raise UserError(f"{_REFERENCES} {url} is damaged or not a pickle ({error}).{hint}") from error


def _check_memo(content: bytes) -> None:
    """Refuse a pickle that numbers the things it remembers without bounds.

    Unpickling makes room for all numbers up to the largest: a file of twenty bytes could ask for any amount of memory.
    """
    for operations, (code, argument, _) in enumerate(pickletools.genops(content), start=1):
        if code.name in _REMEMBER and not 0 <= int(argument or 0) <= operations:
            raise pickle.UnpicklingError(f"it remembers {operations:,} things at most under the number {argument:,}")


def load_refs(url: str) -> list[Any]:
    """The references of a RefCOCO pickle, or of a JSON list as gRefCOCO has it.

    Raises:
        UserError: the file cannot be used; see ``load_plain_pickle``.
    """
    content = _content(url)
    text = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    refs = _json(text, url) if text.startswith(b"[") else _plain_pickle(content, url)
    kinds = "give RefCOCO's 'refs(...).p' or gRefCOCO's 'grefs(...).json'"
    if not isinstance(refs, list | tuple) or not refs:
        raise UserError(f"{_REFERENCES} {url} does not hold a list of references: {kinds}.")
    if not any(isinstance(ref, dict) and "sentences" in ref for ref in refs):
        raise UserError(f"{_REFERENCES} {url} has no reference with sentences: {kinds}.{list_hint(refs[0])}")
    return list(refs)


def _json(text: bytes, url: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{_REFERENCES} {url} is damaged or cut off ({error}): get it again.") from error


def reference_pieces(refs: list[Any], split: str | None) -> Iterator[Piece | Reject]:
    """One piece for every sentence of the references of a split (of all, where ``split`` is None).

    Raises:
        UserError: no reference belongs to the split.
    """
    splits = Counter(_split_of(ref) for ref in refs if isinstance(ref, dict))
    if split is not None and split not in splits:
        known = ", ".join(sorted(splits))
        raise UserError(f"No reference belongs to split {split!r}: the file has {known}.")
    for ref in refs:
        if not isinstance(ref, dict):
            yield Reject("", "reference", "reference_malformed", f"not a dictionary: {reprlib.repr(ref)}")
            continue
        if split is not None and _split_of(ref) != split:
            continue
        yield from _sentences(ref)


def _split_of(ref: dict[str, Any]) -> str:
    split = ref.get("split")
    return split if isinstance(split, str) else "none"


def _sentences(ref: dict[str, Any]) -> Iterator[Piece | Reject]:
    image_id, ref_id = identifier(ref.get("image_id")), whole_number(ref.get("ref_id"))
    ann_ids = _annotation_ids(ref)
    sentences = ref.get("sentences")
    if not isinstance(sentences, list | tuple) or image_id is None or ref_id is None or ann_ids is None:
        count = len(sentences) if isinstance(sentences, list | tuple) else 1
        for _ in range(count):
            detail = f"reference {reprlib.repr(ref.get('ref_id'))} lacks ids or sentences, or has targets and none"
            yield Reject(image_id or "", "reference", "reference_malformed", detail)
        return
    for sentence in sentences:
        text = sentence.get("sent", sentence.get("raw")) if isinstance(sentence, dict) else None
        sent_id = whole_number(sentence.get("sent_id")) if isinstance(sentence, dict) else None
        if not isinstance(text, str) or sent_id is None:
            detail = f"a sentence of reference {ref_id} lacks text or sent_id"
            yield Reject(image_id, "reference", "reference_malformed", detail)
            continue
        content = {"ref_id": ref_id, "sent_id": sent_id, "text": text, "ann_ids": ann_ids}
        yield Piece(image_id, "reference", json.dumps(content))


def _annotation_ids(ref: dict[str, Any]) -> list[int] | None:
    """Ids of the annotations that a reference speaks of, none where there is no target; None where it does not tell."""
    value = ref.get("ann_id")
    if ref.get("no_target") and value in (None, [], -1, [-1]):
        return []
    values = value if isinstance(value, list | tuple) else [value]
    numbers = [number_of(each) for each in values]
    if ref.get("no_target") or any(number is None for number in numbers):
        return None
    return list(dict.fromkeys(number for number in numbers if number is not None and number != -1))
