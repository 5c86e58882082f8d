"""Keeping transformers' own talk out of ours while it loads what we then check ourselves."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers(progress_bars: bool = False) -> Iterator[None]:
    """Silence warnings (and, unless asked for, progress bars) of transformers inside the block; errors still come.

    The settings are transformers' own and hold for the process; they are put back on leaving.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not progress_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
