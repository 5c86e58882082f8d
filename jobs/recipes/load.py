"""Recipes as files: read, extended, sized and checked.

A recipe is a YAML file::

    name: toy
    about: what it is, in a sentence
    output: runs/toy
    values: {scenes: 4000}
    stages:
      prepare:  {do: prepare-toy, scenes: "${scenes}"}
      finetune: {do: train, config: toy_finetune, data: {sets: [{url: "${prepare}/train"}]}}

``${prepare}`` is the folder of an earlier stage, ``${scenes}`` one of the ``values``, which the command line may change
(``scenes=100``). With ``variants``, each a mapping of values, one file is several recipes: ``pro.yaml`` with the
variants ``3b`` and ``7b`` is ``pro_3b`` and ``pro_7b``. ``extends: pro`` lays a recipe over another, stage by stage.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jobs.common.config_tree import read_yaml
from jobs.recipes.stage import BUILT_IN, Stage, built_in_digest, digest_of, merge, references, resolve
from jobs.recipes.stages import TrainStage, build_stage
from padt.errors import UserError, suggestion

RECIPES = Path(__file__).parent
RECIPE_KEYS = ("name", "about", "output", "experiment", "extends", "values", "variants", "stages", "ablation")
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. ``keys[stage]`` hashes the stage's options together with those of all stages it builds on."""

    name: str
    about: str
    output: str
    experiment: str
    stages: dict[str, Stage]
    uses: dict[str, set[str]]
    keys: dict[str, str]

    def dependents(self, names: Sequence[str]) -> set[str]:
        """The given stages and every stage that builds on one of them."""
        found = set(names)
        for stage, used in self.uses.items():
            if used & found:
                found.add(stage)
        return found

    def to_yaml(self) -> str:
        """The recipe with everything written out; as a file it is the same recipe."""
        stages: dict[str, Any] = {}
        for name, stage in self.stages.items():
            options = stage.options()
            if isinstance(stage, TrainStage):
                del options["output"]
            stages[name] = {"do": stage.kind, **options}
        tree = {"name": self.name, "about": self.about, "output": self.output, "experiment": self.experiment}
        return yaml.safe_dump({**tree, "stages": stages}, sort_keys=False, allow_unicode=True, width=120)


@dataclass(frozen=True)
class RecipeFile:
    """Where a recipe is written: its file, and which of its variants is meant (None where it has none)."""

    path: Path
    variant: str | None = None


def load_recipe(file: str, overrides: Sequence[str] = (), output: str | None = None) -> Recipe:
    """Read and check a recipe: a YAML file or the name of one in ``jobs/recipes``.

    Args:
        file: path or packaged name, with the variant at its end where it has some: ``pro_3b``.
        overrides: ``stage.key.path=value`` changes, for example ``finetune.optimizer.lr=1e-3``, and ``value=...``
            changes of the recipe's values, for example ``raw=/data``.
        output: run folder in place of the recipe's own (any fsspec URL).

    Raises:
        UserError: file, variant, stage, kind, option or reference that is missing, unknown or wrong.
    """
    found = find_recipe(file)
    tree = _sized(_extended(found.path), found, file)
    entries = tree.get("stages")
    if not isinstance(entries, Mapping) or not entries:
        raise UserError(f"{file} has no stages: name at least one, as in 'stages: {{prepare: {{do: prepare-toy}}}}'.")
    values = dict(tree.get("values") or {})
    by_stage = _split_overrides(overrides, list(entries), values)
    _check_values(file, values, entries)
    entries = resolve(entries, values)
    stages = {name: build_stage(name, entry, file, by_stage.get(name, ())) for name, entry in entries.items()}
    uses = {name: references(stage.options()) - {name} for name, stage in stages.items()}
    _check_references(file, uses, values)
    name = str(resolve(tree.get("name") or Path(file).stem, values))
    folder = output or resolve(tree.get("output") or f"runs/{name}", values)
    return Recipe(
        name=name,
        about=str(resolve(tree.get("about") or "", values)),
        output=folder.rstrip("/") if "://" in folder else str(Path(folder).expanduser().resolve()),
        experiment=str(tree.get("experiment", "padt")),
        stages=stages,
        uses=uses,
        keys=_keys(stages, uses),
    )


def find_recipe(file: str) -> RecipeFile:
    """The file, and the variant in it, that a name means: a path, or the name of a packaged recipe.

    Raises:
        UserError: there is no such file, or a variant has to be named.
    """
    path = Path(file)
    folder = RECIPES if path.parent == Path(".") and not path.exists() else path.parent
    name = path.name.removesuffix(".yaml")
    for stem, variant in ((name, None), *((name[:place], name[place + 1 :]) for place in _underscores(name))):
        candidate = path if variant is None and path.is_file() else folder / f"{stem}.yaml"
        if not candidate.is_file():
            continue
        variants = variants_in(candidate)
        if variant in variants or (variant is None and not variants):
            return RecipeFile(candidate, variant)
        if variant is None:
            names = ", ".join(f"{file.removesuffix('.yaml')}_{each}" for each in variants)
            raise UserError(f"Recipe {file} comes in several variants: name one of {names}.")
    known = list(packaged_recipes())
    near = suggestion(file, known)
    hint = f" {near[0].upper()}{near[1:]}" if near.startswith("did") else ""
    raise UserError(f"Recipe {file} does not exist: give a YAML file or one of {', '.join(known)}.{hint}")


def packaged_recipes() -> dict[str, RecipeFile]:
    """The recipes that the package ships, by name."""
    found = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        for variant in variants_in(path) or [None]:
            found[path.stem if variant is None else f"{path.stem}_{variant}"] = RecipeFile(path, variant)
    return found


def about_recipes() -> dict[str, str]:
    """What each packaged recipe is, in a sentence, by its name."""
    told = {}
    for name, found in packaged_recipes().items():
        tree = _sized(_extended(found.path), found, name)
        told[name] = str(resolve(tree.get("about") or "", tree.get("values") or {}))
    return told


def variants_in(path: Path) -> list[str | None]:
    """Names of a file's variants; those of the recipe that it extends where it says nothing of its own."""
    return list(_extended(path).get("variants") or {})


def _underscores(name: str) -> list[int]:
    return [place for place in range(len(name) - 1, 0, -1) if name[place] == "_"]


def _extended(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's tree, laid over that of the recipe that it extends."""
    tree = read_yaml(path)
    unknown = [key for key in tree if key not in RECIPE_KEYS]
    if unknown:
        raise UserError(f"Unknown key {unknown[0]} in {path}: a recipe has {', '.join(RECIPE_KEYS)}.")
    if "extends" not in tree:
        return tree
    base = _base(path, tree)
    if base in seen:
        raise UserError(f"{path} extends {tree['extends']}, which extends it: take one of the two out.")
    # A recipe's name, and with it the folder of its results, are its own.
    below = {key: value for key, value in _extended(base, (*seen, path)).items() if key not in ("name", "output")}
    return merge(below, {key: value for key, value in tree.items() if key != "extends"})


def _base(path: Path, tree: Mapping[str, Any]) -> Path:
    name = f"{str(tree['extends']).removesuffix('.yaml')}.yaml"
    for folder in (path.parent, RECIPES):
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise UserError(f"{path} extends {tree['extends']}, which does not exist: give a YAML file beside it.")


def _sized(tree: dict[str, Any], found: RecipeFile, file: str) -> dict[str, Any]:
    """The tree of one variant."""
    if found.variant is None:
        return tree
    own = (tree.get("variants") or {}).get(found.variant)
    if not isinstance(own, Mapping):
        raise UserError(f"{file}: variant {found.variant} has no values: write 'variants: {{3b: {{base: ...}}}}'.")
    name = f"{tree.get('name') or found.path.stem}_{found.variant}"
    return {**tree, "name": name, "values": merge(tree.get("values") or {}, own)}


def _split_overrides(overrides: Sequence[str], stages: Sequence[str], values: dict[str, Any]) -> dict[str, list[str]]:
    """Changes by stage; those of values are made at once."""
    by_stage: dict[str, list[str]] = {}
    for override in overrides:
        path, sign, text = override.partition("=")
        stage, dot, rest = path.partition(".")
        if sign and path in values:
            values[path] = yaml.safe_load(text)
        elif sign and dot and rest and stage in stages:
            by_stage.setdefault(stage, []).append(f"{rest}={text}")
        else:
            of_values = f", or value=... with one of {', '.join(values)}" if values else ""
            raise UserError(
                f"Override {override!r} is not stage.key=value with one of the stages {', '.join(stages)}{of_values}: "
                f"write for example {stages[0]}.seed=1."
            )
    return by_stage


def _check_values(file: str, values: Mapping[str, Any], stages: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in stages or name in BUILT_IN:
            raise UserError(f"{file}: {name} is a value and a stage (or built in): call one of them otherwise.")
        if not _NAME.fullmatch(str(name)) or isinstance(value, Mapping):
            raise UserError(f"{file}: value {name} must have a plain name and be text, a number or a list.")
        if value is None:
            raise UserError(f"{file}: value {name} is not given: add {name}=... to the command.")


def _check_references(file: str, uses: Mapping[str, set[str]], values: Mapping[str, Any]) -> None:
    earlier: list[str] = []
    for name, used in uses.items():
        wrong = sorted(used - set(earlier) - set(BUILT_IN))
        if wrong:
            known = ", ".join([*earlier, *BUILT_IN, *values])
            raise UserError(f"{file}, stage {name}: ${{{wrong[0]}}} is no earlier stage: use one of {known}.")
        earlier.append(name)


def _keys(stages: Mapping[str, Stage], uses: Mapping[str, set[str]]) -> dict[str, str]:
    keys: dict[str, str] = {}
    for name, stage in stages.items():
        below = [(used, keys[used] if used in keys else built_in_digest(used)) for used in sorted(uses[name])]
        keys[name] = digest_of([stage.kind, stage.digest(), below])
    return keys
