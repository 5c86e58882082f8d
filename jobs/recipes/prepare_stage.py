"""Stages that make prepared sets: from annotation files, and the toy's from seeds."""

import posixpath
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from pydantic import Field, create_model, model_validator

from jobs.common.config_tree import Section, read_yaml
from jobs.recipes.stage import Stage, StageContext, digest_of, merge, resolve
from padt.errors import UserError, look_up
from pipelines.prepare.options import PrepareOptions
from pipelines.toy.scenes import SceneOptions

CATALOGUES = Path(__file__).resolve().parents[1] / "data" / "catalogues"
# Told by their content when a set is prepared once more.
_PLACES = ("annotations", "references", "captions", "exclude")
# The recipe decides where the set goes; what is there already is the recipe's to keep or redo.
_NOT_A_RECIPES = ("out", "overwrite", "num_cpus")
_HINTS = get_type_hints(PrepareOptions)


class PrepareToyStage(Stage):
    """Draw the toy data set and prepare it: ``train/`` and ``val/`` below the stage's folder, and ``talk/`` if asked.

    Attributes:
        scenes: training scenes.
        heldout: scenes kept for evaluation.
        seed: of the drawing; splits never share a scene.
        talk: scenes for conversations in plain words, without any Visual Reference Token.
        pictures: what scenes look like.
    """

    kind: ClassVar[str] = "prepare-toy"
    scenes: int = Field(4000, ge=1)
    heldout: int = Field(240, ge=1)
    seed: int = Field(0, ge=0)
    talk: int = Field(0, ge=0)
    pictures: SceneOptions = SceneOptions()

    def perform(self, context: StageContext) -> dict[str, Any]:
        """See ``jobs.data.prepare.run_prepare_toy``."""
        from jobs.data.prepare import run_prepare_toy, set_facts

        manifests = run_prepare_toy(
            context.folder,
            scenes=self.scenes,
            heldout=self.heldout,
            seed=self.seed,
            talk=self.talk,
            pictures=self.pictures,
        )
        sets = {name: set_facts(posixpath.join(context.folder, name), manifest) for name, manifest in manifests.items()}
        return {"sets": sets}


class _PreparedSet(Section):
    """One set: its options are those of ``PrepareOptions``, the very ones of `padt prepare`."""

    @model_validator(mode="after")
    def _sound(self) -> "_PreparedSet":
        self.prepare_options("data")
        return self

    def prepare_options(self, out: str) -> PrepareOptions:
        """What to prepare, into which folder."""
        return PrepareOptions(out=out, **self.model_dump())


PreparedSet = create_model(
    "PreparedSet",
    __base__=_PreparedSet,
    __doc__=_PreparedSet.__doc__,
    **{  # type: ignore[call-overload]
        option.name: (
            _HINTS[option.name],
            () if option.name == "images" else ... if option.default is MISSING else option.default,
        )
        for option in fields(PrepareOptions)
        if option.name not in _NOT_A_RECIPES
    },
)


class PrepareStage(Stage):
    """Prepare sets from annotation files, each in a folder of its name below the stage's.

    In a recipe, ``sets`` may also be a list of names of a ``catalogue`` (``jobs/data/catalogues``), whose files lie
    below ``raw``, and ``options`` are laid under those of every set; see ``written_out``.

    Attributes:
        sets: options of each set by its name.
    """

    kind: ClassVar[str] = "prepare"
    sets: dict[str, PreparedSet] = Field(min_length=1)  # type: ignore[valid-type]

    def places(self) -> dict[str, Any]:
        """Annotation files and sets that are excluded."""
        sets = self.options()["sets"]
        return {name: {key: each[key] for key in _PLACES} for name, each in sets.items()}

    def digest(self) -> str:
        """All options but places and what a report is compared with."""
        sets = self.options()["sets"]
        return digest_of(
            {n: {k: v for k, v in each.items() if k not in (*_PLACES, "against")} for n, each in sets.items()}
        )

    def perform(self, context: StageContext) -> dict[str, Any]:
        """See ``jobs.data.prepare.run_prepare``."""
        from jobs.data.prepare import run_prepare, set_facts

        sets = {}
        each: Any  # a class that was made, of which type checkers know nothing
        for name, each in self.sets.items():
            url = posixpath.join(context.folder, name)
            sets[name] = set_facts(url, run_prepare(each.prepare_options(url)))
        return {"sets": sets}


def written_out(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of a stage ``prepare`` with those of its catalogue written out.

    Args:
        options: ``sets`` is a mapping of options by name, or, with ``catalogue``, a list of names in it (or a mapping
            that changes options of some). ``raw`` is the folder of the raw files, ``options`` are those of every set.
        where: the stage, as errors call it.

    Raises:
        UserError: no such catalogue, or a set is not in it.
    """
    rest = {key: value for key, value in options.items() if key not in ("catalogue", "raw", "options", "sets")}
    catalogue, sets, common = options.get("catalogue"), options.get("sets") or {}, options.get("options") or {}
    if catalogue is None:
        if "raw" in options:
            raise UserError(f"{where}: raw is the folder of a catalogue's files: name a catalogue, or leave it out.")
        if not isinstance(sets, Mapping):
            raise UserError(f"{where}: sets has no options: give them by name, or a catalogue that holds them.")
        return {**rest, "sets": {name: merge(common, each or {}) for name, each in sets.items()}}
    known = read_yaml(catalogue, CATALOGUES)
    raw = str(options.get("raw") or ".").rstrip("/")
    chosen = sets if isinstance(sets, Mapping) else dict.fromkeys(sets)
    written = {}
    for name, changes in chosen.items():
        entry = resolve(look_up(f"{where}: set", name, known), {"raw": raw})
        written[name] = merge(merge(entry, common), changes or {})
    return {**rest, "sets": written}
