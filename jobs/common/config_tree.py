"""Typed configuration trees: read from YAML files, changed by dotted overrides, checked by pydantic.

A tree is made of ``Section`` classes and of the options of components, plain dataclasses, which check their own bounds.
Unknown keys are errors that name the nearest known key.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from padt.errors import UserError, suggestion


class Section(BaseModel):
    """Base of a tree's own parts: unknown keys are refused, below it in dataclasses too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def to_yaml(self) -> str:
        """The resolved tree as YAML that ``build_config`` takes back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


Config = TypeVar("Config", bound=Section)


def read_yaml(path: str | Path, packaged: Path | None = None) -> dict[str, Any]:
    """Read a YAML mapping from a file, or from ``<name>.yaml`` in a folder of the package.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    file = Path(path)
    known = {entry.stem: entry for entry in sorted(packaged.glob("*.yaml"))} if packaged else {}
    if not file.exists() and file.parent == Path("."):
        file = known.get(file.name.removesuffix(".yaml"), file)
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        listed = f" or one of {', '.join(known)}" if known else ""
        raise UserError(f"Configuration file {path} does not exist: give a YAML file{listed}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"Configuration file {path} cannot be read as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"Configuration file {path} holds no keys: it must be a YAML mapping such as 'model: ...'.")
    return tree


def build_config(cls: type[Config], tree: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "") -> Config:
    """Check a tree of plain values against a typed section after applying overrides.

    Args:
        cls: the section's class.
        tree: nested mapping as YAML gives it.
        overrides: ``key.path=value``; values are YAML, list entries go by number (``data.sets.0.url=...``).
        source: named in errors.

    Raises:
        UserError: unknown key (names the nearest), wrong value, or an override that cannot be applied.
    """
    merged = json.loads(json.dumps(tree, default=str))
    for override in overrides:
        _apply(merged, override)
    where = f" in {source}" if source else ""
    _check_keys(cls, merged, "", where)
    try:
        return cls.model_validate(merged)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(p) for p in e['loc']) or '(all)'}: {_reason(e)}" for e in error.errors()]
        raise UserError(f"The configuration{where} does not hold:\n" + "\n".join(lines)) from error
    except UserError as error:
        # A component's own check of its options.
        raise UserError(f"The configuration{where} does not hold:\n  {error}") from error


def schema_of(cls: type[Section]) -> dict[str, Any]:
    """JSON schema of a section as it stands in a file: components refuse unknown keys there too."""
    schema = cls.model_json_schema(mode="validation")
    for part in (schema, *schema.get("$defs", {}).values()):
        if part.get("type") == "object" and "properties" in part:
            part.setdefault("additionalProperties", False)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}, "c": [{"d": 2}]}`` -> ``{"a.b": 1, "c.0.d": 2}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            flat.update(flatten({str(i): entry for i, entry in enumerate(value)}, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``key: old -> new`` for each dotted key whose values differ in two trees."""
    before, after = flatten(old), flatten(new)
    keys = dict.fromkeys([*before, *after])
    return [f"{k}: {before.get(k)!r} -> {after.get(k)!r}" for k in keys if before.get(k) != after.get(k)]


def _reason(entry: Any) -> str:
    given = "" if entry["type"] in ("missing", "value_error") else f" (given: {entry['input']!r})"
    return entry["msg"].removeprefix("Value error, ") + given


def _apply(tree: Any, override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or not path.strip():
        raise UserError(f"Override {override!r} is not key.path=value: write for example optimizer.lr=1e-4.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"The value of override {override!r} is not YAML: quote it.") from error
    *parents, last = path.strip().split(".")
    node = tree
    for name in parents:
        node = _child(node, name, override)
        if not isinstance(node, (dict, list)):
            raise UserError(f"Override {override!r}: {name!r} is a value, not a section, so nothing lies below it.")
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, name: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, name, override)]
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _position(node: list, name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise UserError(f"Override {override!r}: {name!r} is not an entry of a list of {len(node)}: count from 0.")
    return int(name)


def _check_keys(cls: type, tree: Any, prefix: str, where: str) -> None:
    if not isinstance(tree, dict):
        return
    known = _fields_of(cls)
    for key, value in tree.items():
        if key not in known:
            raise UserError(f"Unknown key {prefix}{key}{where}: {suggestion(key, known)}")
        nested = _options_in(known[key])
        if nested is not None:
            for below, entry in _entries(known[key], value):
                _check_keys(nested, entry, ".".join([f"{prefix}{key}", *below, ""]), where)


def _entries(annotation: Any, value: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Sections in a field's value, with what leads to each: a position in a list, a name in a mapping, or nothing."""
    if isinstance(value, list):
        return [((str(number),), entry) for number, entry in enumerate(value)]
    if get_origin(annotation) is dict and isinstance(value, dict):
        return [((name,), entry) for name, entry in value.items()]
    return [((), value)]


def _fields_of(cls: Any) -> dict[str, Any]:
    """Names and types of the fields of a section or a dataclass of options."""
    if issubclass(cls, BaseModel):
        return {name: field.annotation for name, field in cls.model_fields.items()}
    return {field.name: field.type for field in dataclasses.fields(cls)}


def _options_in(annotation: Any) -> type | None:
    """The section or dataclass in a field's type, such as that of ``list[SetSpec]`` or ``LoraSettings | None``."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _options_in(argument)) is not None), None)
