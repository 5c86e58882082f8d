"""What all verbs share: help that ends with examples to copy, and names that a shell completes."""

import re
from glob import glob
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperCommand

from jobs.common import console

_JOBS = Path(__file__).resolve().parents[1]

Refine = Annotated[
    str | None, typer.Option(metavar="sam2", help="Let SAM 2 refine the masks; boxes and scores stay. None = do not.")
]
RefinePrompt = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT",
        help="What SAM 2 is told of an object: box+mask (the default), box, mask or points. "
        "Boxes and masks were seen to help, points (centres of patches) were not.",
    ),
]
RefineModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="SAM 2's folder or OWNER/NAME; default: facebook/sam2.1-hiera-large of the Hub."
    ),
]


class Verb(TyperCommand):
    """A command whose help ends with example command lines, each on one line: a folded one cannot be copied."""

    def __init__(self, *arguments: Any, epilog: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._examples = epilog

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Typer's help, and the examples below it."""
        super().format_help(ctx, formatter)
        console.out.print(Text("Examples", "bold"))
        console.out.print(self._examples)


def examples(*lines: str) -> dict[str, Any]:
    """Arguments of ``app.command`` for a verb whose help shows these command lines."""
    return {"cls": Verb, "epilog": "\n".join(f"  {line}" for line in lines)}


def recipe_names(incomplete: str) -> list[str]:
    """Packaged recipes and YAML files that begin like this."""
    return _names([name for path in (_JOBS / "recipes").glob("*.yaml") for name in _recipes_in(path)], incomplete)


def config_names(incomplete: str) -> list[str]:
    """Packaged training configurations and YAML files that begin like this."""
    return _names([path.stem for path in (_JOBS / "training" / "configs").glob("*.yaml")], incomplete)


# A shell asks at every press of a key, so nothing of what reads the files properly is imported.


def _recipes_in(path: Path) -> list[str]:
    return [f"{path.stem}_{variant}" for variant in _variants(path.read_text(encoding="utf-8"), path)] or [path.stem]


def _variants(text: str, path: Path) -> list[str]:
    own = re.search(r"^variants:.*\n((?: .*\n|\n)*)", text, re.MULTILINE)
    if own is not None:
        return re.findall(r"^  (\w+):", own[1], re.MULTILINE)
    base = re.search(r"^extends: (\w+)", text, re.MULTILINE)
    return _variants(path.with_stem(base[1]).read_text(encoding="utf-8"), path) if base is not None else []


def _names(known: list[str], incomplete: str) -> list[str]:
    packaged = [name for name in known if name.startswith(incomplete)]
    found = [f"{path}/" if Path(path).is_dir() else path for path in glob(f"{incomplete}*")]
    return [*sorted(packaged), *sorted(path for path in found if path.endswith(("/", ".yaml", ".yml")))]
