"""A source that is entered in the table is one everywhere: for the library, the command line and recipes."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from padt.errors import UserError
from pipelines.dataset.manifest import Category, open_set
from pipelines.prepare.execute import execute_here
from pipelines.prepare.options import PrepareOptions
from pipelines.prepare.run import prepare
from pipelines.sources.base import Header, ImageEntry, Piece
from pipelines.sources.table import OWN_OPTIONS, SOURCES, SourceKind
from tests.pipelines.coco_files import image_bytes


@dataclass(frozen=True)
class ListSource:
    """A source of tests: a text file with a file name in each line."""

    url: str

    def files(self) -> list[tuple[str, str]]:
        return [("list", self.url)]

    def header(self) -> Header:
        names = Path(self.url).read_text().split()
        return Header([ImageEntry(name, name, None, None) for name in names], [Category(1, "cat")])

    def pieces(self) -> Iterator[Piece]:
        return iter(())


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> str:
    kind = SourceKind(
        reader=lambda options: ListSource(options.annotations),
        about="Prepare a list.",
        annotations="Names, a line each.",
    )
    monkeypatch.setitem(SOURCES, "list", kind)
    return "list"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    (tmp_path / "list.txt").write_text("a.jpg\n")
    return tmp_path


def test_a_new_row_is_prepared_and_its_manifest_reads_back(listed: str, files: Path) -> None:
    options = PrepareOptions(str(files / "list.txt"), str(files), str(files / "set"), source=listed)
    manifest = prepare(options, execute=execute_here)
    assert (manifest.counts.rows, manifest.name, manifest.sources[0].role) == (1, "list", "list")
    assert open_set(options.out) == manifest


def test_a_new_row_is_a_source_of_recipes(listed: str) -> None:
    from jobs.recipes.stages import build_stage

    one = {"source": listed, "annotations": "l", "images": "i"}
    stage = build_stage("s", {"do": "prepare", "sets": {"one": one}}, "recipe.yaml")
    assert stage.sets["one"].prepare_options("out") == PrepareOptions("l", "i", "out", source=listed)  # type: ignore[attr-defined]


def test_a_new_row_is_a_verb(listed: str, capsys: pytest.CaptureFixture[str]) -> None:
    import jobs.cli.prepare as verbs

    try:
        commands = importlib.reload(verbs).app.registered_commands
    finally:
        SOURCES.pop(listed)
        importlib.reload(verbs)
    assert commands[-1].name == listed
    assert not {"captions", "drop_fakes"} & set(commands[-1].callback.__annotations__)  # type: ignore[union-attr]


def test_what_a_recipe_and_the_command_line_take_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.cli.prepare import app
    from jobs.recipes.prepare_stage import PreparedSet

    offered: set[str] = set()
    for command in app.registered_commands:
        if command.name in SOURCES:
            offered |= set(command.callback.__annotations__)  # type: ignore[union-attr]
    # A recipe names its source and has its own folder; how many cores take part is no matter of what comes out.
    assert offered - {"out", "overwrite", "num_cpus"} == set(PreparedSet.model_fields) - {"source"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["objects365", "-a", "a.json", "-i", "x", "-i", "y", "--drop-fakes", "--max-pixels", "900", "-o", "out"],
            PrepareOptions("a.json", ["x", "y"], "out", source="objects365", drop_fakes=True, max_pixels=900),
        ),
        (
            ["refcoco", "-a", "a.json", "-i", "x", "-r", "refcoco+/refs.p", "--split", "val", "-o", "out"],
            PrepareOptions("a.json", ["x"], "out", source="refcoco", references="refcoco+/refs.p", split="val"),
        ),
        (["messages", "-a", "a.json", "-o", "out"], PrepareOptions("a.json", (), "out", source="messages")),
        (
            ["coco", "-a", "a", "-i", "x", "-o", "out", "--images-mode", "link", "--exclude", "e", "--against", "f"],
            PrepareOptions("a", ["x"], "out", images_mode="link", exclude=["e"], against=["f"]),
        ),
    ],
)
def test_words_become_options(words: list[str], expected: PrepareOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.cli.main import main

    asked: list[PrepareOptions] = []
    monkeypatch.setattr("jobs.data.prepare.run_prepare", asked.append)
    monkeypatch.setattr("jobs.data.prepare.set_facts", lambda url, manifest: {"url": url, "excluded": 0})
    monkeypatch.setattr("jobs.cli.prepare.show_sets", lambda sets: None)
    assert main(["prepare", *words]) == 0
    assert asked == [expected]


def test_each_row_takes_known_options_only() -> None:
    for name, kind in SOURCES.items():
        assert set(kind.options) <= set(OWN_OPTIONS) and set(kind.required) <= set(kind.options), name
        assert all(example.startswith(f"{name} ") for example in kind.examples)


def test_the_papers_road_can_be_written_as_a_recipe() -> None:
    """What `padt prepare` can, a recipe can: limits of pixels, fakes, sets to leave out and to compare with."""
    from jobs.recipes.stages import build_stage

    entry = {
        "source": "objects365",
        "annotations": "zhiyuan_objv2_train.json",
        "images": "train",
        "drop_fakes": True,
        "max_pixels": 1_003_520,
        "exclude": ["${evaluation}/data"],
        "against": ["${evaluation}/data:val"],
        "shard_mb": 128,
    }

    def stage(**changes: str) -> Any:
        return build_stage("s", {"do": "prepare", "sets": {"one": {**entry, **changes}}}, "paper.yaml")

    options = stage().sets["one"].prepare_options("out")
    assert options.policy.max_pixels == 1_003_520 and options.shard_bytes == 128 * 2**20 and options.drop_fakes
    with pytest.raises(UserError, match=r"paper\.yaml, stage s(.|\n)*did you mean objects365\?"):
        stage(source="object365")
    with pytest.raises(UserError, match=r"Unknown key sets\.one\.out in paper\.yaml"):
        stage(out="elsewhere")
