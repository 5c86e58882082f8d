"""The engine: answers of many requests written together, which join and leave at any step.

A step admits waiting requests (vision tower and prompts, in groups under a budget), writes one token of every answer
over a static cache of keys and values, decodes the objects of the groups of VRTs that have ended (at once, or when
``EngineLimits.objects_together`` of them wait), and lets go what has ended or was cancelled. Each answer has the
prototypes of its own pictures as vocabulary, next to the words.

An answer does not depend on what runs beside it: greedy answers have ``predict``'s tokens, and boxes, scores and masks
that differ by no more than rounding, for products of other sizes are summed in another order.
"""

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from padt.errors import UserError
from padt.inference.answer_parser import AnswerGroup
from padt.inference.calibration import calibrated
from padt.inference.engine.cache import ContentCache, SeenPicture
from padt.inference.engine.passes import RowPasses
from padt.inference.engine.reports import StepReport, Work
from padt.inference.engine.rows import Row, read_picture_once, read_prompt
from padt.inference.engine.scheduler import Admission, EngineLimits, by_halves
from padt.inference.engine.tickets import Ticket
from padt.inference.engine.waiting import WaitingRows
from padt.inference.events import Ended, Event, ObjectFound, TextPiece
from padt.inference.generation import TokenChoosers
from padt.inference.grounding import answer_parser, check_images, prediction_of, processor_of
from padt.inference.requests import GenerationSettings, Images, Request, paired
from padt.inference.results import PredictedObject
from padt.inference.stream import TextPieces
from padt.model.modeling import PaDTForConditionalGeneration

logger = logging.getLogger(__name__)

# Answers wait for their objects only while their pictures have no more patches than this many admissions.
_HELD = 4


class Engine:
    """Answers requests of many threads with one model.

    Attributes:
        limits: what it takes on.
        steps: steps so far that wrote tokens of running answers.
        tokens: written so far, end tokens included.
        objects: decoded so far.
    """

    def __init__(
        self,
        model: PaDTForConditionalGeneration,
        limits: EngineLimits | None = None,
        on_step: Callable[[StepReport], None] | None = None,
        compile: bool | str = False,
    ) -> None:
        """Allocate the keys and values of all rows.

        Args:
            model: with its processor, which nobody else may use while the engine runs.
            limits: what to take on.
            on_step: called in the engine's thread after each step that did something. It must be quick.
            compile: compile the decoding step, in rows and positions padded to powers of two: True = by torch's own
                compiler, with CUDA graphs on a GPU; or the name of another back end of ``torch.compile``. Nobody has
                timed it on a GPU yet. :meth:`warm_up` compiles all shapes.

        Raises:
            UserError: the model has no processor, an attention that takes no mask for each row, or cannot be compiled.
        """
        self.limits = limits or EngineLimits()
        self.steps = self.tokens = self.objects = 0
        self._on_step = on_step
        self._model = model
        # Tokenizers are not safe in threads: this one is the submitters', under the lock; the loop has the model's.
        self._reader = copy.deepcopy(processor_of(model))
        self._reading = threading.Lock()
        self._choosers = TokenChoosers(model)
        self._passes = RowPasses(model, self.limits, compile)
        self._admitting: list[Row] = []
        # Written to their end, and out of their slots; some of their objects are not decoded.
        self._written: list[Row] = []
        self._waiting = WaitingRows(self.limits)
        self._stepping = threading.Lock()
        self._step_start = time.perf_counter()

    @property
    def running_rows(self) -> int:
        """Answers that are being written."""
        return len(self._passes.rows)

    @property
    def waiting_rows(self) -> int:
        """Requests that wait for their admission."""
        return len(self._waiting)

    @property
    def stalled_s(self) -> float:
        """Seconds since the model has come to an end with anything while requests run or wait; 0 without any."""
        oldest = self._waiting.oldest()
        since = max(self._step_start, self._passes.last_pass)
        if not (self._passes.rows or self._admitting):
            if oldest is None:
                return 0.0
            # Nothing was to be done before.
            since = max(since, oldest)
        return max(0.0, time.perf_counter() - since)

    @property
    def failure(self) -> BaseException | None:
        """What has ended the engine's thread, after which nothing is answered any more; None while it lives."""
        return self._waiting.closed

    @property
    def cache(self) -> ContentCache:
        """What was seen of pictures, and keys and values up to their end."""
        return self._passes.cache

    # ------------------------------------------------------------------ clients

    def submit(
        self,
        images: Images | None,
        request: str | Request,
        settings: GenerationSettings | None = None,
        *,
        seed: int | None = None,
        vrts: bool = False,
        client: str = "",
        listener: Callable[[Event], None] | None = None,
    ) -> Ticket:
        """Let a request wait for its admission. Its pictures are opened and its words are tokenised in this thread.

        Args:
            images: the request's image, a list of several, or None for a text-only turn.
            request: what is asked; plain words are a text request.
            settings: how to generate, without beams; ``cache`` has no meaning here.
            seed: of the sampling; None = a fresh one.
            vrts: write VRTs into the text as ``<|VRT_k|>``.
            client: who asks; clients take turns.
            listener: called in the engine's thread with each event, which the ticket then does not hand out. It must be
                quick; if it raises, the request is cancelled.

        Raises:
            UserError: the request is beyond the limits, asks for beams, or as ``predict``.
            EngineBusyError: too many requests wait, or too many of this client.
            ImageError: an image cannot be used.
        """
        settings = settings or GenerationSettings()
        if settings.num_beams > 1:
            raise UserError(f"The engine has no beam search, and num_beams is {settings.num_beams}: use num_beams=1.")
        self._waiting.check_room(client)
        (sources,), (asked,) = paired(images, request)
        check_images(asked, len(sources))
        pictures = [
            read_picture_once(self._reader, source, lambda key: self.cache.get(SeenPicture, key)) for source in sources
        ]
        with self._reading:
            prompt = read_prompt(self._model, self._reader, asked, pictures)
        self.limits.check(prompt, settings.max_new_tokens)
        row = Row(
            Ticket(listener),
            prompt,
            settings,
            self._choosers.chooser(settings, prompt.ids.tolist(), seed),
            answer_parser(self._model, prompt.frames),
            TextPieces(self._model.processor, vrts),
            client,
        )
        self._waiting.add(row)
        return row.ticket

    # ------------------------------------------------------------------ the loop

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile every shape of the step, so that no answer waits for it; nothing without ``compile``."""
        with self._stepping:
            if self._passes.compiled is not None:
                self._passes.compiled.warm_up()

    def run_until_idle(self) -> None:
        """Answer everything that was submitted, in this thread."""
        while self.step():
            pass

    @contextmanager
    def running(self) -> "Iterator[Engine]":
        """Run in a thread of its own; at the end all that was submitted is answered, or cancelled after an error."""
        stopping, cancelling = threading.Event(), threading.Event()
        thread = threading.Thread(target=self._run, args=(stopping, cancelling), name="padt-engine", daemon=True)
        thread.start()
        try:
            yield self
        except BaseException:
            cancelling.set()
            raise
        finally:
            stopping.set()
            self._waiting.wake()
            thread.join()

    def _run(self, stopping: threading.Event, cancelling: threading.Event) -> None:
        try:
            while True:
                # Between steps every request either waits or runs.
                for row in [*self._passes.rows, *self._written, *self._waiting.rows()] if cancelling.is_set() else []:
                    row.ticket.cancel()
                if self.step():
                    continue
                if stopping.is_set():
                    return
                self._waiting.wait(stopping.is_set)
        except BaseException as error:
            # Nobody shall wait for an engine that is no more.
            failure = RuntimeError(f"The engine has failed: {error}")
            failure.__cause__ = error
            for row in {*self._passes.rows, *self._written, *self._admitting, *self._waiting.close(error)}:
                row.fail(failure)
                self._end(row)
            self._passes.rows.clear()
            self._written.clear()
            raise

    @torch.inference_mode()
    def step(self) -> bool:
        """Admit, write a token of every answer, decode objects, and let go what has ended.

        Returns:
            Whether anything is left to do.
        """
        with self._stepping:
            self._step_start = time.perf_counter()
            self._passes.work = Work()
            for row in self._waiting.take_cancelled():
                row.reason = "cancelled"
                self._end(row)
            for row in [*self._passes.rows, *self._written]:
                if row.ticket.cancelled:
                    row.reason = "cancelled"
            self._settle()
            admitted = self._admit()
            self._settle()
            rows = list(self._passes.rows)
            if rows:
                by_halves(rows, self._passes.decode, Row.fail)
                self.steps += 1
                self._settle()
            self._watch(len(rows), admitted)
            return bool(self._passes.rows) or len(self._waiting) > 0

    def _watch(self, rows: int, admitted: int) -> None:
        work = self._passes.work
        self.tokens += work.tokens
        self.objects += work.objects
        if self._on_step is None or not (rows or admitted):
            return
        try:
            self._on_step(StepReport(rows, admitted, len(self._waiting), work))
        except Exception:
            logger.exception("What watches the engine's steps has failed; the engine goes on.")

    def _admit(self) -> int:
        """Let in the next requests; returns how many."""
        room = self.limits.max_rows - len(self._passes.rows)
        if self._passes.rows and room < self.limits.admit_together:
            return 0
        self._admitting = self._waiting.take(room, Admission(self.limits, self.cache))
        start = time.perf_counter()
        by_halves(self._admitting, self._passes.admit, Row.fail)
        for row in self._admitting:
            row.times.queued, row.times.prefill = start - row.submitted, time.perf_counter() - start
            if row.slot is None:
                self._end(row)
        admitted, self._admitting = len(self._admitting), []
        return admitted

    def _settle(self) -> None:
        """Decode the objects that are due, tell the clients, and let go what has ended."""
        going = [row for row in (*self._passes.rows, *self._written) if row.reason not in ("cancelled", "error")]
        if self._due(going):
            found: dict[tuple[Row, AnswerGroup], PredictedObject | None] = {}
            for masks in (True, False):
                items = [(row, group) for row in going if row.settings.masks is masks for group in row.groups()]
                by_halves(
                    items,
                    lambda some: found.update(zip(some, self._passes.objects(some), strict=True)),
                    lambda item, error: item[0].fail(error),
                )
            for row in going:
                if row.error is None:
                    try:
                        self._report(row, found)
                    except Exception as error:
                        row.fail(error)
        for row in [row for row in self._passes.rows if row.reason is not None]:
            # Others have the slot while its objects wait.
            self._passes.release(row)
            self._written.append(row)
        written, self._written = self._written, []
        for row in written:
            if row.prediction is None and row.error is None and row.reason != "cancelled":
                self._written.append(row)
            else:
                self._end(row)

    def _due(self, rows: Sequence[Row]) -> bool:
        """Whether clients are told and objects decoded now: enough of these wait, or nothing else is left to do."""
        if self.limits.objects_together <= 1:
            return True
        if not len(self._waiting) and all(row.reason is not None for row in self._passes.rows):
            return True
        if sum(row.waiting_groups for row in rows) >= self.limits.objects_together:
            return True
        # What is still being written holds its pictures anyway.
        return sum(row.prompt.patches for row in self._written) > _HELD * self.limits.admit_patches

    def _report(self, row: Row, found: dict[tuple[Row, AnswerGroup], PredictedObject | None]) -> None:
        for entry in row.pending:
            if isinstance(entry, str):
                self._tell(row, TextPiece(entry))
                continue
            thing = found[row, entry]
            if thing is None:
                continue
            if row.settings.calibrated:
                (thing,) = calibrated(self._model.config.score_calibration, [thing], earlier=row.objects)
            row.objects.append(thing)
            self._tell(row, ObjectFound(len(row.objects) - 1, thing))
        row.forget_pending()
        if row.reason is not None:
            row.prediction = prediction_of(self._model, row.parser, row.objects, row.prompt.frames)

    def _end(self, row: Row) -> None:
        assert row.reason is not None
        lengths = (len(row.prompt.ids), len(row.parser.ids))
        self._tell(row, Ended(row.reason, row.prediction, row.error, row.times, *lengths))

    def _tell(self, row: Row, event: Event) -> None:
        try:
            row.ticket.put(event)
        except Exception:
            logger.exception("A listener has failed; its request is cancelled.")
            row.ticket.cancel()
