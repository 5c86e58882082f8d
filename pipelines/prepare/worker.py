"""A process that writes shards: tasks come in one after the other, and what became of each goes out.

    python -m pipelines.prepare.worker

Tasks are pickled on standard input; for each, a line of JSON is written to standard output: ``result`` (``ShardResult``
as text), or ``error`` (a sentence for the user), or ``crash`` (a traceback). It ends with its input, whatever it is at:
what is half-written passes for nothing.
"""

import json
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from typing import Any

from padt.errors import UserError
from pipelines.io.transport import transport_errors
from pipelines.prepare.shards import ShardTask, write_shard


def attempt(task: ShardTask) -> dict[str, str]:
    """Write a shard: its ``result`` as text, or as ``error`` what stands in the way."""
    try:
        return {"result": write_shard(task).to_json()}
    except UserError as error:
        return {"error": str(error)}
    except transport_errors() as error:
        return {"error": f"A shard could not be written: {error}. Mend that and run the command again."}


def main() -> None:
    """Work until the input ends."""
    # Who interrupts the command interrupts its first process, which ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # What a library prints is no answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tasks: queue.SimpleQueue[ShardTask] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    while True:
        answer: dict[str, Any]
        try:
            answer = attempt(tasks.get())
        except Exception:
            answer = {"crash": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _listen(tasks: "queue.SimpleQueue[ShardTask]") -> None:
    try:
        while True:
            tasks.put(pickle.load(sys.stdin.buffer))
    except EOFError:
        # Whoever asked has got all answers, or is no more.
        os._exit(0)


if __name__ == "__main__":
    main()
