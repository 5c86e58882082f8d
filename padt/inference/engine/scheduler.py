"""What an engine takes on and a step admits: limits, budgets, and groups of similar prompts."""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import Tensor

from padt.data.processor import PaDTProcessor
from padt.errors import UserError, check_range
from padt.inference.engine.cache import SeenPicture
from padt.inference.engine.rows import Prompt
from padt.inference.requests import Request

# A group of prompts is not padded to more than this many times its shortest, beyond a few tokens.
_MOST_PADDING = 1.5
_SHORT = 64
Item = TypeVar("Item")
Size = tuple[int, int]


@dataclass(frozen=True)
class EngineLimits:
    """What an engine takes on. Keys and values are allocated for ``max_rows x max_length`` positions.

    Attributes:
        max_rows: answers that are written at a time.
        max_length: tokens of one request: prompt with its patches, and ``max_new_tokens``.
        admit_tokens: tokens of prompts (those of known prefixes left out) that one step may read; and so the longest
            prompt.
        admit_patches: patches of 28x28 pixels that one step may show to the vision tower; and so the most of one
            request.
        max_waiting: requests that may wait.
        max_waiting_per_client: how many of them may be one client's; None = all.
        cache_mb: MiB that may be held of what was seen of pictures; 0 = nothing is kept.
        admit_together: rows that must be free before waiting requests are let in, while others run: fewer, larger
            groups of prompts for some rows that stand idle.
        objects_together: objects that wait for each other, and their clients for all news, so that more of a picture
            are decoded in one run; 1 = each step's at once. Answers that are wanted whole come sooner with many.
    """

    max_rows: int = 16
    max_length: int = 4096
    admit_tokens: int = 4096
    admit_patches: int = 4096
    max_waiting: int = 256
    max_waiting_per_client: int | None = None
    cache_mb: float = 1024
    admit_together: int = 1
    objects_together: int = 1

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None:
                check_range(each.name, value, 0 if each.name == "cache_mb" else 1)

    @classmethod
    def fitting(
        cls,
        processor: PaDTProcessor,
        asked: Iterable[tuple[Request, Sequence[Size]]],
        max_new_tokens: int,
        rows: int,
        **others: Any,
    ) -> "EngineLimits":
        """Limits that let each of some requests in, and keep no more waiting than are written.

        Args:
            processor: of the model.
            asked: each request with the sizes of its pictures, ``(width, height)`` upright.
            max_new_tokens: of the longest answer.
            rows: answers that are written at a time.
            others: further limits.
        """
        words: dict[tuple[Request, int], int] = {}
        most_tokens = most_patches = 1
        for request, sizes in asked:
            grids = [processor.policy.grid(height, width) for width, height in sizes]
            patches = sum(rows * columns for rows, columns in grids)
            prompt = (request, len(grids))
            if prompt not in words:
                # Most requests of a set have their words in common, and differ in their pictures.
                words[prompt] = len(processor.prompt_ids(request.prompt, [1] * len(grids))) - len(grids)
            most_tokens = max(most_tokens, words[prompt] + patches)
            most_patches = max(most_patches, patches)
        return cls(
            max_rows=rows,
            max_length=most_tokens + max_new_tokens,
            admit_tokens=max(cls.admit_tokens, most_tokens),
            admit_patches=max(cls.admit_patches, most_patches),
            max_waiting=rows,
            **others,
        )

    def check(self, prompt: Prompt, max_new_tokens: int) -> None:
        """Refuse a request that could never be admitted.

        Raises:
            UserError: it is too long, or has too many patches.
        """
        tokens = len(prompt.ids)
        if prompt.patches > self.admit_patches:
            raise UserError(
                f"The request's pictures have {prompt.patches} patches of 28x28 pixels, more than the engine's "
                f"{self.admit_patches}: send smaller or fewer pictures."
            )
        if tokens > self.admit_tokens:
            raise UserError(
                f"The prompt has {tokens} tokens ({prompt.patches} of them patches), more than the engine's "
                f"{self.admit_tokens}: send less text or smaller pictures."
            )
        if tokens + max_new_tokens > self.max_length:
            raise UserError(
                f"The prompt's {tokens} tokens and max_new_tokens {max_new_tokens} are more than the engine's "
                f"{self.max_length}: send less text, smaller pictures, or a max_new_tokens of at most "
                f"{self.max_length - tokens}."
            )


class Admission:
    """What a group of requests costs a step; what they share, or what is known already, is paid once or not at all."""

    def __init__(self, limits: EngineLimits, known: Container[tuple[type, bytes]]) -> None:
        """Start with nothing taken.

        Args:
            limits: the budgets.
            known: kinds and keys of the pictures and prefixes that are kept.
        """
        self._tokens, self._patches = limits.admit_tokens, limits.admit_patches
        self._known = known
        self._taken: set[tuple[type, bytes]] = set()

    def fits(self, prompt: Prompt) -> bool:
        """Take a request into the group, if the budgets allow it."""
        unseen = [picture for picture in prompt.pictures if picture.seen is None]
        new = {(SeenPicture, picture.key): picture.frame.patches for picture in unseen}
        patches = sum(patches for thing, patches in new.items() if self._is_new(thing))
        prefix = (Tensor, prompt.prefix_key)
        tokens = len(prompt.ids) if self._is_new(prefix) else len(prompt.ids) - prompt.prefix_length
        if tokens > self._tokens or patches > self._patches:
            return False
        self._tokens -= tokens
        self._patches -= patches
        self._taken.update(new, [prefix])
        return True

    def _is_new(self, thing: tuple[type, bytes]) -> bool:
        return thing not in self._taken and thing not in self._known


def similar_lengths(items: Sequence[Item], length: Callable[[Item], int]) -> list[list[Item]]:
    """Cut items into groups of similar length, so that padding a group to its longest member wastes little."""
    groups: list[list[Item]] = []
    for item in sorted(items, key=length):
        if groups and length(item) <= max(_SHORT, _MOST_PADDING * length(groups[-1][0])):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def by_halves(items: list[Item], work: Callable[[list[Item]], None], failed: Callable[[Item, Exception], None]) -> None:
    """Do work on items together; where it fails, on halves, down to the single items that it fails on.

    Args:
        items: what to work on.
        work: may be done again on the same items.
        failed: told of each item that fails alone.
    """
    if not items:
        return
    try:
        return work(items)
    except Exception as error:
        if len(items) == 1:
            return failed(items[0], error)
    # Out of the handler, whose traceback keeps alive what there was too little memory for.
    for half in (items[: len(items) // 2], items[len(items) // 2 :]):
        by_halves(half, work, failed)
