"""`padt submit`: run a recipe as a Ray Job on a cluster, and follow it.

The code travels as the job's working directory; the submission id is a function of recipe, changes and output, so that
submitting the same thing twice follows the job that runs instead of starting a second one.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from jobs.common.ray_session import PASSED_ON
from padt.errors import UserError

# In .gitignore's notation, as Ray takes them; plain names match at any depth.
EXCLUDES = (
    ".git", ".venv", ".ci", "runs", "mlruns", "mlflow.db*", "build", "dist", "__pycache__", "*.egg-info", ".*_cache",
    "*.tmp", "*.ipynb",
)  # fmt: skip
SIZE_LIMIT_MB = 100.0
_ENVIRONMENT = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "HF_HUB_OFFLINE", "HF_HOME", *PASSED_ON)
_POLL_S = 1.0


@dataclass(frozen=True)
class JobResult:
    """How a job ended. ``exit_code`` is the recipe's own where the cluster knows it, else 0 or 1 by its status."""

    submission_id: str
    status: str
    exit_code: int
    message: str


def run_submit(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    address: str,
    output: str | None = None,
    working_dir: str = ".",
    submission_id: str | None = None,
    redo: Sequence[str] = (),
    follow: bool = True,
    again: bool = False,
    write: Callable[[str], None] = lambda text: None,
) -> JobResult:
    """Submit a recipe, or follow the job that already runs it.

    Args:
        recipe: packaged name, or a YAML file inside ``working_dir``.
        overrides: ``stage.key=value`` changes.
        address: the cluster's job address, ``http://HEAD:8265``.
        output: run folder that the cluster's nodes can write to.
        working_dir: folder that is sent along; it holds the code.
        submission_id: in place of the one made from the arguments.
        redo: stages to make again.
        follow: stay, pass the job's log on and wait for its end.
        again: run it again although the same submission has succeeded.
        write: receives the log.

    Raises:
        UserError: the recipe or the folder cannot be sent, or the cluster cannot be reached.
    """
    from jobs.recipes.load import load_recipe

    root = Path(working_dir).resolve()
    file = _inside(recipe, root)
    checked = load_recipe(recipe, overrides, output)
    check_size(root)
    words = ["run", file, *overrides, "--output", checked.output, *[word for name in redo for word in ("--redo", name)]]
    name = submission_id or submission_name(checked.name, words)

    job = {
        "entrypoint": _command(words),
        "submission_id": name,
        "runtime_env": {
            "working_dir": str(root),
            "excludes": list(EXCLUDES),
            "env_vars": environment(checked.output),
        },
        "metadata": {"recipe": checked.name},
    }
    with _answering(address) as client:
        status = _status(client, name)
        if status == "SUCCEEDED" and not again:
            return JobResult(name, status, 0, "This submission has already succeeded: add --again to run it once more.")
        if status is None or status in ("SUCCEEDED", "FAILED", "STOPPED"):
            if status is not None:
                # Ray keeps ids of ended jobs. Their recipe goes on from its markers.
                client.delete_job(name)
            client.submit_job(**job)
        if not follow:
            told = f"Follow it with: ray job logs --follow {name}"
            return JobResult(name, _status(client, name) or "PENDING", 0, told)
        asyncio.run(_follow(client, name, write))
        return _ended(client, name)


def submission_name(recipe: str, words: Sequence[str]) -> str:
    """A stable, readable id: the recipe's name and a hash of everything that was asked for."""
    return f"padt-{recipe}-{hashlib.sha256(chr(0).join(words).encode()).hexdigest()[:10]}"


def environment(output: str) -> dict[str, str]:
    """Variables that a job gets: those of this process that matter, and a place for MLflow that outlives the job.

    Raises:
        UserError: the output is remote and no tracking server is named.
    """
    variables = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    if "MLFLOW_TRACKING_URI" not in variables:
        if "://" in output:
            raise UserError(
                f"The output {output} is not a local folder, so MLflow has no place of its own: "
                "set MLFLOW_TRACKING_URI to your tracking server."
            )
        variables["MLFLOW_TRACKING_URI"] = f"sqlite:///{output}/mlflow.db"
    # Nothing that jobs.common.ray_session sets: Ray refuses a variable that both job and driver give.
    return variables | {"PYTHONUNBUFFERED": "1"}


def check_size(root: Path, limit_mb: float = SIZE_LIMIT_MB) -> float:
    """Megabytes that would be sent to the cluster.

    Raises:
        UserError: more than the limit; the message names the largest files.
    """
    if not root.is_dir():
        raise UserError(f"Working directory {root} does not exist: give the folder that holds the code.")
    sizes: list[tuple[int, str]] = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not _excluded(name)]
        for name in files:
            path = Path(folder) / name
            if not _excluded(name) and path.is_file():
                sizes.append((path.stat().st_size, path.relative_to(root).as_posix()))
    total = sum(size for size, _ in sizes) / 1e6
    if total > limit_mb:
        largest = ", ".join(f"{name} ({size / 1e6:.0f} MB)" for size, name in sorted(sizes, reverse=True)[:3])
        raise UserError(
            f"Working directory {root} holds {total:.0f} MB, more than the {limit_mb:.0f} MB that are sent with a job: "
            f"move large files out of it (largest: {largest})."
        )
    return total


def _excluded(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in EXCLUDES)


def _inside(recipe: str, root: Path) -> str:
    """The recipe as the job will find it: relative to the working directory, or a packaged name."""
    from jobs.recipes.load import RECIPES, find_recipe

    found = find_recipe(recipe)
    path = found.path.resolve()
    name = path if found.variant is None else path.with_stem(f"{path.stem}_{found.variant}")
    if path.parent == RECIPES.resolve():
        return name.stem
    if not path.is_relative_to(root):
        raise UserError(
            f"Recipe {recipe} lies outside the working directory {root}: move it there, or set --working-dir."
        )
    return name.relative_to(root).as_posix()


def _command(words: Sequence[str]) -> str:
    import shlex

    return shlex.join(["python", "-m", "jobs.cli.main", *words])


@contextmanager
def _answering(address: str) -> Iterator[Any]:
    """A client of the cluster's job address; what goes wrong between the two is one sentence.

    Raises:
        UserError: nothing answers there, the cluster wants another token, or it refuses what is asked of it.
    """
    import aiohttp
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    url = address if "://" in address else f"http://{address}"
    token, place = _token()
    client = None
    try:
        # As a header: Ray itself would send its token only where RAY_AUTH_MODE says so.
        client = JobSubmissionClient(url, headers={"Authorization": f"Bearer {token}"} if token else None)
        yield client
    except AuthenticationError as error:
        said = f"refuses the token of {place}" if token else "wants a token, and there is none here"
        raise UserError(
            f"The Ray cluster at {url} {said}: put that of its head (`ray get-auth-token` there) into "
            "~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH."
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, aiohttp.ClientError) as error:
        if client is not None:
            raise UserError(
                f"The Ray cluster at {url} broke off ({_first_line(error)}): a job that was submitted goes on there; "
                "run the same command again to follow it."
            ) from error
        raise UserError(
            f"No Ray cluster answers at {url} ({_first_line(error)}): give the head's dashboard address, "
            "for example http://HEAD:8265 (`ray dashboard cluster.yaml` opens it on http://localhost:8265)."
        ) from error


def _token() -> tuple[str | None, str]:
    """Ray's token as Ray looks for it, and where it was found; none where RAY_AUTH_MODE switches tokens off.

    ``ray start`` uses the token of its machine without being told to, so this side does so as well.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None, "RAY_AUTH_MODE"
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip(), str(file)
    if named:
        raise UserError(
            f"RAY_AUTH_TOKEN_PATH names {file}, which is not there: give the file with the cluster's token."
        )
    return None, str(file)


def _status(client: Any, name: str) -> str | None:
    jobs = {job.submission_id: job for job in client.list_jobs()}
    return str(jobs[name].status) if name in jobs else None


async def _follow(client: Any, name: str, write: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(name):
        write(text)


def _ended(client: Any, name: str) -> JobResult:
    # The log may close a moment before the status is final.
    while not client.get_job_status(name).is_terminal():
        time.sleep(_POLL_S)
    info = client.get_job_info(name)
    status = str(info.status)
    code = info.driver_exit_code if info.driver_exit_code is not None else int(status != "SUCCEEDED")
    return JobResult(name, status, code or int(status != "SUCCEEDED"), (info.message or "").partition("\n")[0])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
