"""What all verbs share: help that ends with examples to copy, and names that a shell completes."""

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
    return _names(_JOBS / "recipes", incomplete)


def config_names(incomplete: str) -> list[str]:
    """Packaged training configurations and YAML files that begin like this."""
    return _names(_JOBS / "training" / "configs", incomplete)


def _names(folder: Path, incomplete: str) -> list[str]:
    # Only names of files: a shell asks at every press of a key, so nothing of what reads them is imported.
    packaged = [path.stem for path in folder.glob("*.yaml") if path.stem.startswith(incomplete)]
    found = [f"{path}/" if Path(path).is_dir() else path for path in glob(f"{incomplete}*")]
    return [*sorted(packaged), *sorted(path for path in found if path.endswith(("/", ".yaml", ".yml")))]
