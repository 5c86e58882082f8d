"""One preparation of a folder at a time: who comes second waits and says who is at work.

A claim is a small file in the folder. Its holder writes it anew every few seconds; who finds it unchanged for a minute,
or names a process of this machine that is no more, takes it over. So nobody's clock has to be right. On this machine's
disks, and in stores that can create an object only where there is none (S3, Google's), one of two gets it; elsewhere
two that start in the same moment may both believe to have it. That costs work but no data: what either writes is the
same, and appears whole.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from padt.errors import UserError
from pipelines.io.reading import is_local, transport_errors
from pipelines.io.storage import Folder

log = logging.getLogger(__name__)

CLAIM_NAME = ".claim.json"
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
_POLL_SECONDS = 1.0

_held_here: set[str] = set()


@contextmanager
def claimed(folder: Folder) -> Iterator[None]:
    """Hold the folder's claim for the length of a block; waits while another preparation holds it.

    A folder that was made for the claim alone is removed again.
    """
    made = not folder.exists()
    claim = _Claim(folder)
    claim.take()
    _held_here.add(claim.id)
    beating = threading.Thread(target=claim.beat, name="padt-claim", daemon=True)
    beating.start()
    try:
        yield
    finally:
        claim.over.set()
        beating.join()
        _held_here.discard(claim.id)
        claim.release()
        if made and is_local(folder.fs) and not folder.names():
            with suppress(OSError):
                os.rmdir(folder.path())


class _Claim:
    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.id = uuid.uuid4().hex
        self.over = threading.Event()
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._content: dict[str, Any] = {
            "id": self.id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": since,
            "beat": 0,
        }

    def take(self) -> None:
        seen, since = None, time.monotonic()
        while not self._create():
            held = self._read()
            if held is None:
                continue
            if held != seen:
                if (seen is None or _id(held) != _id(seen)) and not _is_dead(held):
                    log.warning("%s is being prepared by %s: waiting for its end", self.folder.url, _who(held))
                seen, since = held, time.monotonic()
            if _is_dead(held) or time.monotonic() - since > STALE_SECONDS:
                log.info("%s: the preparation by %s has died; taking over", self.folder.url, _who(held))
                # Another may have taken it over since: that claim is to stay.
                if self._read() == held:
                    self.folder.remove(CLAIM_NAME)
                continue
            time.sleep(_POLL_SECONDS)

    def beat(self) -> None:
        """Write the claim anew until it is over, or another has taken it."""
        while not self.over.wait(BEAT_SECONDS):
            try:
                if _id(self._read()) != self.id:
                    return
                self._content["beat"] += 1
                self.folder.write(CLAIM_NAME, self._text())
            except UserError as error:
                # A beat that fails costs nothing, as long as a later one gets through.
                log.debug("the claim of %s could not be written: %s", self.folder.url, error)

    def release(self) -> None:
        with suppress(UserError, *transport_errors()):
            if _id(self._read()) == self.id:
                self.folder.remove(CLAIM_NAME)

    def _create(self) -> bool:
        path = self.folder.path(CLAIM_NAME)
        if is_local(self.folder.fs):
            try:
                os.makedirs(self.folder.path(), exist_ok=True)
                with open(path, "x") as file:
                    file.write(self._text())
            except FileExistsError:
                return False
            except OSError as error:
                raise UserError(
                    f"{self.folder.url} cannot be written ({error}): make room or check your rights."
                ) from (error)
            return True
        if self._read() is not None:
            return False
        try:
            self.folder.fs.pipe_file(path, self._text().encode(), mode="create")
        except FileExistsError:
            return False
        except transport_errors():
            # A store says in words of its own that another was faster, or that it cannot do this.
            if self._read() is None:
                self.folder.write(CLAIM_NAME, self._text())
        return _id(self._read()) == self.id

    def _read(self) -> dict[str, Any] | None:
        """The claim as it stands, empty where it is being written or damaged; None where there is none."""
        self.folder.fs.invalidate_cache()
        try:
            content = json.loads(self.folder.read(CLAIM_NAME))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        except transport_errors() as error:
            raise UserError(
                f"{self.folder.url}/{CLAIM_NAME} cannot be read ({error}): check the network, and your rights there."
            ) from error
        return content if isinstance(content, dict) else {}

    def _text(self) -> str:
        return json.dumps(self._content)


def _id(held: dict[str, Any] | None) -> Any:
    return (held or {}).get("id")


def _who(held: dict[str, Any]) -> str:
    return f"process {held.get('pid')} on {held.get('host')} since {held.get('since')}"


def _is_dead(held: dict[str, Any]) -> bool:
    """Whether a claim's process is known to be no more; those of other machines never are."""
    pid = held.get("pid")
    if held.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    if pid == os.getpid():
        # Containers number their processes alike: an earlier one may have had this number.
        return _id(held) not in _held_here
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
