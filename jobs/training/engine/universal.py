"""A checkpoint of ZeRO in shares of so many ranks, made into DeepSpeed's universal form, which any number can load."""

import io
import logging
import os
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch.distributed as dist

from padt.errors import UserError

logger = logging.getLogger(__name__)


@contextmanager
def universal(folder: Path, tag: str) -> Iterator[Path]:
    """The universal form of a checkpoint for the length of a block; all ranks must call this together.

    One rank of each machine makes it in the machine's temporary folder, which has to hold three fp32 copies of the
    trained weights.

    Args:
        folder: holds the checkpoint in its folder ``tag``.
        tag: name of the folder in the result, too.

    Raises:
        UserError: it cannot be converted.
    """
    names = [os.urandom(8).hex()]
    dist.broadcast_object_list(names)
    target = Path(tempfile.gettempdir()) / f"padt-universal-{names[0]}"
    works = int(os.environ.get("LOCAL_RANK", "0")) == 0
    failure = None
    try:
        if works:
            try:
                convert(folder / tag, target / tag)
            except Exception as error:  # noqa: BLE001 - told by all ranks alike, which would wait for one another
                failure = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        failures: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        if told := next(filter(None, failures), None):
            raise UserError(
                f"The checkpoint {folder} cannot be converted for another number of workers ({told}): go on with as "
                "many as before, or make room in the temporary folder (TMPDIR)."
            )
        yield target
        dist.barrier()
    finally:
        if works:
            shutil.rmtree(target, ignore_errors=True)


def convert(source: Path, target: Path) -> None:
    """DeepSpeed's own conversion of one tag's folder, without its lines on the console."""
    from deepspeed.checkpoint.ds_to_universal import main

    target.mkdir(parents=True)
    said = io.StringIO()
    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    with redirect_stdout(said), redirect_stderr(said):
        main(
            Namespace(
                input_folder=str(source),
                output_folder=str(target),
                # Ours are checkpoints of plain models, which have none of the state that it looks for.
                inject_missing_state=True,
                **options,
            )
        )
    logger.info("converted the checkpoint %s for another number of workers", source)
