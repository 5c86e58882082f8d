"""The command line: instant help, errors that a user can mend, and one sentence where an extra is missing."""

import subprocess
import sys

import pytest

from jobs.cli.main import VERBS, main
from padt.errors import UserError
from tests.conftest import REPOSITORY


def padt(*words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh process; ``before`` is Python that runs first."""
    code = f"import sys\n{before}\nfrom jobs.cli.main import main\nsys.exit(main({list(words)!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


def test_help_loads_nothing_heavy() -> None:
    before = (
        "import atexit\n"
        "heavy = {'torch', 'ray', 'pydantic', 'numpy'}\n"
        "atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules))))"
    )
    run = padt("--help", before=before)
    assert run.returncode == 0
    assert "LOADED []" in run.stdout
    positions = [run.stdout.index(f" {verb} ") for verb in VERBS]
    assert positions == sorted(positions)


@pytest.mark.parametrize("verb", [(verb,) for verb in VERBS] + [("prepare", "coco"), ("prepare", "toy")])
def test_every_verb_teaches_with_examples(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples" in shown or verb == ("prepare",)


def test_a_users_mistake_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nowhere"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: Recipe nowhere does not exist: give a YAML file or one of toy")
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("words", [["fly"], ["train"], ["serve", "m", "--port", "x"], ["prepare", "coco"]])
def test_wrong_use_is_told_and_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "rror" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "blocked", "message"),
    [
        (["serve", "models:/padt@champion"], "pydantic", "'padt serve' needs pydantic: pip install 'padt[serve]'"),
        (["train", "-c", "toy_pretrain"], "pydantic", "'padt train' needs pydantic: pip install 'padt[train]'"),
        (["inspect", "data"], "pyarrow", "'padt inspect' needs pyarrow: pip install 'padt[data]'"),
        (["demo"], "fsspec", "'padt demo' needs fsspec: pip install 'padt[all]'"),
    ],
)
def test_a_missing_extra_is_one_sentence(words: list[str], blocked: str, message: str) -> None:
    run = padt(*words, before=f"sys.modules[{blocked!r}] = None")
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == f"error: {message}"


def test_programming_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    import jobs.recipes.run

    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(jobs.recipes.run, "run_recipe", broken)
    with pytest.raises(ZeroDivisionError):
        main(["run", "toy"])


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import jobs.recipes.run

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.recipes.run, "run_recipe", interrupted)
    assert main(["run", "toy"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_user_errors_of_deep_inside_arrive(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import jobs.recipes.run

    def refuse(*args: object, **kwargs: object) -> None:
        raise UserError("key x is wrong: use y.")

    monkeypatch.setattr(jobs.recipes.run, "run_recipe", refuse)
    assert main(["run", "toy"]) == 2
    assert capsys.readouterr().err == "error: key x is wrong: use y.\n"
