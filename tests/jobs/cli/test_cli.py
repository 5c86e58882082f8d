"""The command line: instant help, errors that a user can mend, and one sentence where an extra is missing."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import padt.errors
from jobs.cli.main import VERBS, main
from jobs.common import console
from padt.errors import UserError, install_command
from tests.conftest import REPOSITORY


def run_padt(*words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh process; ``before`` is Python that runs first."""
    code = f"import sys\n{before}\nfrom jobs.cli.main import main\nsys.exit(main({list(words)!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


def test_help_loads_nothing_heavy() -> None:
    before = (
        "import atexit\n"
        "heavy = {'torch', 'ray', 'pydantic', 'numpy'}\n"
        "atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules))))"
    )
    run = run_padt("--help", before=before)
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
    assert shown.err.startswith("error: Recipe nowhere does not exist: give a YAML file or one of ovd_3b")
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["train"], "Missing option '--config'"),
        (["serve", "m", "--port", "x"], "Invalid value for '--port'"),
        (["serve", "m", "--port", "99999"], "Invalid value for '--port'"),
        (["prepare", "coco"], "Missing option '--annotations'"),
    ],
)
def test_wrong_use_is_told_and_ends_with_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "blocked", "extra"),
    [
        (["serve", "models:/padt@champion"], "pydantic", "serve"),
        (["train", "-c", "toy_pretrain"], "pydantic", "train"),
        (["inspect", "data"], "pyarrow", "data"),
        (["demo"], "fsspec", "all"),
    ],
)
def test_a_missing_extra_is_one_sentence(words: list[str], blocked: str, extra: str) -> None:
    run = run_padt(*words, before=f"sys.modules[{blocked!r}] = None")
    assert run.returncode == 2
    # In the checkout, with whatever pip belongs to this interpreter: the project is on no index.
    last = run.stderr.splitlines()[-1]
    assert last.startswith(f"error: 'padt {words[0]}' needs {blocked}: ") and last.endswith(f"pip install '.[{extra}]'")


def test_an_installed_copy_names_the_packages_of_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert install_command("data").endswith(f" install '{'.' if Path.cwd() == REPOSITORY else REPOSITORY}[data]'")
    monkeypatch.setattr(padt.errors, "__file__", str(tmp_path / "padt" / "errors.py"))
    command = install_command("train")  # which names the extra `data`
    assert "'deepspeed>=" in command and "'fsspec>=" in command and "'ray[data]" in command
    assert "padt[" not in command and "fastapi" not in command and "extra" not in command


def test_the_version_needs_no_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"padt {padt.__version__}\n"


@pytest.mark.parametrize("verb", [(verb,) for verb in VERBS if verb != "prepare"] + [("prepare", "coco")])
def test_examples_stand_on_one_line_each(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb, "--help"]) == 0
    shown = capsys.readouterr().out.partition("Examples\n")[2].strip().splitlines()
    # A folded command cannot be copied: each line begins with a program.
    assert shown and all(line.split()[0] in ("padt", "curl") for line in shown)


@pytest.mark.parametrize(
    ("words", "wanted", "unwanted"),
    [
        ("run ", ["toy", "pro_3b", "pro_clean_7b", "pro_lora_24gb"], "toy_finetune"),
        ("submit t", ["toy"], "toy_finetune"),
        ("train --config toy_", ["toy_finetune", "toy_pretrain"], "paper"),
        ("train --config jobs/recipes/", ["jobs/recipes/toy.yaml"], "jobs/recipes/run.py"),
    ],
)
def test_a_shell_completes_names_and_files(words: str, wanted: list[str], unwanted: str) -> None:
    variables = {
        "_PADT_COMPLETE": "complete_bash",
        "COMP_WORDS": f"padt {words}",
        "COMP_CWORD": str(words.count(" ") + 1),
    }
    before = (
        f"import atexit, os\nos.environ.update({variables!r})\nsys.argv = ['padt']\n"
        "atexit.register(lambda: print('LOADED', sorted({'torch', 'ray', 'yaml', 'numpy'} & set(sys.modules))))"
    )
    found = run_padt(before=before).stdout.splitlines()
    assert set(wanted) < set(found) and unwanted not in found
    assert found[-1] == "LOADED []"


def test_a_missing_picture_is_told_before_anything_heavy_is_loaded() -> None:
    before = (
        "import atexit\natexit.register(lambda: print('LOADED', sorted({'torch', 'transformers'} & set(sys.modules))))"
    )
    for verb in ("predict", "explain"):
        run = run_padt(verb, "none.jpg", "--caption", "--model", "pipelines/toy/base", "--out", "none", before=before)
        assert run.returncode == 2 and "none.jpg cannot be opened" in run.stderr
        assert run.stdout.splitlines()[-1] == "LOADED []"


def test_preparing_speaks_at_once_and_tells_a_missing_file_without_ray(tmp_path: Path) -> None:
    before = "import atexit\natexit.register(lambda: print('LOADED', 'ray' in sys.modules))"
    words = ("-a", "none.json", "-i", "none", "-o", str(tmp_path / "set"))
    run = run_padt("prepare", "coco", *words, before=before)
    first, *_, last = run.stderr.splitlines()
    assert f"preparing {tmp_path}/set from none.json" in first
    assert last.startswith("error: ") and "none.json" in last
    assert run.stdout.splitlines()[-1] == "LOADED False"


def test_what_is_printed_is_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    command = "mlflow ui --backend-store-uri sqlite:////" + "/".join(["a_long_folder"] * 20) + "/mlflow.db"
    console.set_up_logging()
    console.out.print(command)
    logging.getLogger("jobs.x").info("try %s", command)
    shown = capsys.readouterr()
    assert shown.out == f"{command}\n" and shown.err.endswith(f"] try {command}\n")


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
