"""``python -m tests.parity FIXTURE_DIR``: prints the table; exits 1 above tolerance, 2 if the folder is no fixture."""

import argparse
import logging
import sys

from rich.console import Console
from transformers.utils import logging as transformers_logging

from padt.errors import UserError
from tests.parity.run import run_parity


def main() -> int:
    """Compare one fixture folder and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description="Compare with the released PaDT.")
    parser.add_argument("fixture", help="folder written by the released implementation")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    transformers_logging.disable_progress_bar()
    console = Console(width=max(160, Console().width))
    try:
        report = run_parity(arguments.fixture)
    except UserError as error:
        console.print(f"[bold red]{error}[/bold red]")
        return 2
    report.print(console)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
