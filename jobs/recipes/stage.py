"""What all stages of recipes have in common: typed options, placeholders for folders of others, an identity."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from jobs.common.config_tree import Section

PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")
BUILT_IN: dict[str, Callable[[], Path]] = {
    # The small base model that the package ships.
    "toy_base": lambda: Path(__file__).resolve().parents[2] / "pipelines" / "toy" / "base",
}


@dataclass(frozen=True)
class StageContext:
    """What a stage is told about the recipe that it belongs to.

    Attributes:
        name: the stage's name.
        folder: where it leaves everything that it makes (any fsspec URL).
        parent_run_id: MLflow run of the recipe, or None without tracking.
        experiment: MLflow experiment of the recipe, or None without tracking.
        eval_sets: prepared sets that the recipe's evaluations measure on.
    """

    name: str
    folder: str
    parent_run_id: str | None = None
    experiment: str | None = None
    eval_sets: tuple[str, ...] = ()


class Stage(Section):
    """Base of all kinds. ``kind`` is the word that recipes use after ``do:``."""

    kind: ClassVar[str]
    not_shaping: ClassVar[frozenset[str]] = frozenset()
    """Options that do not shape the result, such as the number of workers."""

    def options(self) -> dict[str, Any]:
        """All options as plain values, to be stored and compared."""
        return self.model_dump(mode="json")

    def places(self) -> dict[str, Any]:
        """Options that say where things lie which are told by their content when the stage is performed again.

        Where only these have changed, a stage that was done is entered once more: it finds that all is there, or
        refuses other content by itself.
        """
        return {}

    def digest(self) -> str:
        """Hash of everything that shapes the result: when it changes, the stage's result is out of date."""
        places = self.places()
        shaping = {key: value for key, value in self.options().items() if key not in {*self.not_shaping, *places}}
        return digest_of(shaping)

    def uses_ray(self) -> bool:
        """Whether Ray should be up before it begins; what needs it for a moment starts it itself."""
        return False

    def resolved(self, folders: Mapping[str, str]) -> Self:
        """This stage with every ``${name}`` replaced by its folder."""
        return type(self).model_validate(resolve(self.model_dump(mode="json"), folders))

    def perform(self, context: StageContext) -> dict[str, Any]:
        """Do the work and leave it in ``context.folder``.

        Returns:
            Plain values for the done marker; ``metrics`` among them are shown in tables.
        """
        raise NotImplementedError


def digest_of(value: Any) -> str:
    """Short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, section by section; lists are replaced whole."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def references(value: Any) -> set[str]:
    """Names that the ``${name}`` placeholders of nested plain values mention."""
    if isinstance(value, str):
        return set(PLACEHOLDER.findall(value))
    if isinstance(value, Mapping):
        return set().union(*(references(entry) for entry in value.values()))
    if isinstance(value, list | tuple):
        return set().union(*(references(entry) for entry in value))
    return set()


def resolve(value: Any, names: Mapping[str, Any]) -> Any:
    """Nested plain values with every ``${name}`` replaced; names that are not given stay.

    Text that is nothing but one placeholder becomes the value itself, a number for example.
    """
    if isinstance(value, str):
        whole = PLACEHOLDER.fullmatch(value)
        if whole and whole[1] in names:
            return names[whole[1]]
        return PLACEHOLDER.sub(lambda match: str(names.get(match[1], match[0])), value)
    if isinstance(value, Mapping):
        return {key: resolve(entry, names) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(entry, names) for entry in value]
    return value


def built_in_digest(name: str) -> str:
    """Hash of what a built-in folder holds, so that a changed base model is noticed."""
    folder = BUILT_IN[name]()
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
