"""The model's part of a step: passes over rows that lie in slots, each with a vocabulary of its own."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from padt.data.collate import normalize_pixels
from padt.errors import UserError
from padt.inference.answer_parser import AnswerGroup
from padt.inference.engine.cache import (
    ContentCache,
    SeenPicture,
    SlotCache,
    SlotWindow,
    join_features,
    split_features,
)
from padt.inference.engine.compiled import CompiledStep, Window
from padt.inference.engine.reports import Work
from padt.inference.engine.rows import Row
from padt.inference.engine.scheduler import EngineLimits, similar_lengths
from padt.inference.grounding import SeenImages, decode_groups
from padt.inference.results import PredictedObject
from padt.model.modeling import PaDTForConditionalGeneration
from padt.model.outputs import PaDTOutput


def takes_masks_by_row(model: PaDTForConditionalGeneration) -> bool:
    """Whether a model's attention takes a mask for each row, which rows of their own lengths need."""
    attention = model.model.language_model.config._attn_implementation
    return attention in ("sdpa", "eager") and set(model.config.text_config.layer_types) == {"full_attention"}


class RowPasses:
    """Runs the model over rows.

    Attributes:
        rows: those that run, in the order of their slots, which are the first ones.
        cache: what was seen of pictures (:class:`SeenPicture`, and keys and values up to their end), by content.
        work: what was done since somebody has put a new one here.
        last_pass: when the model has last come to an end with something (``time.perf_counter``).
        compiled: the step of all rows, where it is compiled.
    """

    def __init__(self, model: PaDTForConditionalGeneration, limits: EngineLimits, compile: bool | str = False) -> None:
        """Allocate the keys and values of all rows.

        Args:
            model: what is run.
            limits: rows, positions and what is kept.
            compile: see :class:`padt.inference.engine.compiled.CompiledStep`; False = do not.

        Raises:
            UserError: the model has an attention that takes no mask for each row, or cannot be compiled.
        """
        attention = model.model.language_model.config._attn_implementation
        if not takes_masks_by_row(model):
            raise UserError(
                f"The engine needs full attention under attn_implementation sdpa or eager, and the model was loaded "
                f'with {attention}: use padt.load_model(path, attn_implementation="sdpa").'
            )
        self._additive_mask = attention == "eager"
        self._model = model
        self._slots = SlotCache(model.config, limits.max_rows, limits.max_length, model.dtype, model.device)
        self.rows: list[Row] = []
        self.cache = ContentCache(int(limits.cache_mb * 2**20))
        self.work = Work()
        self.last_pass = time.perf_counter()
        self.compiled = None
        if compile:
            with torch.inference_mode():
                self.compiled = CompiledStep(model, self._slots, self._forward, compile)

    def _done(self, start: float) -> float:
        """Seconds that a pass has taken."""
        self.last_pass = time.perf_counter()
        return self.last_pass - start

    def admit(self, rows: list[Row]) -> None:
        """Read the prompts of new rows; what is kept of their pictures is not computed again."""
        start = time.perf_counter()
        # Those that came through before another one failed are in.
        rows = [row for row in rows if row.slot is None]
        self._look(rows)
        sharing = Counter(row.prompt.prefix_key for row in rows if row.prompt.prefix_length)
        found = {key: self.cache.get(Tensor, key) for key in sharing}
        prefixes = {key: prefix for key, prefix in found.items() if prefix is not None}
        # Of those that share a new prefix one goes first.
        first: list[Row] = []
        later: list[Row] = []
        led: set[bytes] = set()
        for row in rows:
            key = row.prompt.prefix_key
            (later if key in led else first).append(row)
            if key in sharing and key not in prefixes:
                led.add(key)
        for batch in (first, later):
            for group in similar_lengths(batch, lambda row: len(row.prompt.ids) - _start_of(row, prefixes)):
                self._prefill(group, prefixes)
                self._done(start)
                for row in group:
                    key = row.prompt.prefix_key
                    if key in sharing and key not in prefixes and (sharing[key] > 1 or self.cache.capacity):
                        assert row.slot is not None
                        prefixes[key] = self._slots.prefix(row.slot, row.prompt.prefix_length)
                        self.cache.put(key, prefixes[key])
        self.work.prefill_s += self._done(start)

    def _look(self, rows: Sequence[Row]) -> None:
        """Give rows what the model sees of their pictures; new pictures go through the vision tower together."""
        pictures = {picture.key: picture for row in rows for picture in row.prompt.pictures}
        seen: dict[bytes, SeenPicture] = {}
        for key, picture in pictures.items():
            known = picture.seen or self.cache.get(SeenPicture, key, again=True)
            if known is not None:
                seen[key] = known
        new = [picture for key, picture in pictures.items() if key not in seen and picture.pixels is not None]
        if new:
            pixels = torch.cat([torch.from_numpy(picture.pixels) for picture in new]).to(self._model.device)
            grids = torch.tensor([picture.grid_thw for picture in new], device=self._model.device)
            features = self._model.image_features(normalize_pixels(pixels), grids)
            parts = split_features(
                features, self._model.prototypes_of(features.merged), [picture.frame for picture in new]
            )
            for picture, part in zip(new, parts, strict=True):
                seen[picture.key] = part
                self.cache.put(picture.key, part)
            self.last_pass = time.perf_counter()
        for row in rows:
            row.pictures = tuple(seen[picture.key] for picture in row.prompt.pictures)

    def _prefill(self, rows: Sequence[Row], prefixes: dict[bytes, Tensor]) -> None:
        """Read the prompts of new rows, as far as they are not known, into the slots after those that run."""
        free = len(self.rows)
        starts = [_start_of(row, prefixes) for row in rows]
        prompts = [row.prompt.ids[start:] for row, start in zip(rows, starts, strict=True)]
        try:
            for slot, (row, start) in enumerate(zip(rows, starts, strict=True), free):
                if start:
                    self._slots.restore(slot, prefixes[row.prompt.prefix_key])
            window = SlotWindow(self._slots, free, starts, [len(ids) for ids in prompts])
            ids = _pad(prompts, self._model.processor.pad_token_id)
            positions = _pad([row.prompt.positions[:, start:].T for row, start in zip(rows, starts, strict=True)], 0)
            shown = [picture for row, start in zip(rows, starts, strict=True) if not start for picture in row.pictures]
            merged = torch.cat([picture.features.merged for picture in shown]) if shown else None
            tables = None
            if (ids >= self._model.config.vrt_offset).any():
                # An earlier turn of the conversation holds VRTs.
                empty = self._model.lm_head.weight[:0]
                tables = pad_sequence([torch.cat([empty, *row.prototypes]) for row in rows], batch_first=True)
            device = self._model.device
            embeddings = self._model.embed(ids.to(device), merged, tables)
            output = self._forward(window, embeddings, positions.permute(2, 0, 1).to(device))
            chosen = self._choose(rows, output)
        except Exception:
            for slot, row in enumerate(rows, free):
                self._slots.clear(slot, len(row.prompt.ids))
            raise
        for slot, row in enumerate(rows, free):
            row.slot, row.length = slot, len(row.prompt.ids)
        self.rows += rows
        self._take(chosen)

    def decode(self, rows: list[Row]) -> None:
        """Write one more token of rows that lie in slots one after the other."""
        start = time.perf_counter()
        device, offset = self._model.device, self._model.config.vrt_offset
        assert rows[0].slot is not None
        lengths = [row.length for row in rows]
        tokens = [row.last_token for row in rows]
        places = [length + row.prompt.offset for row, length in zip(rows, lengths, strict=True)]
        # Of each row's prototypes only the one that is read.
        words = self._model.lm_head.weight[0]
        read = torch.stack(
            [
                row.prototype(token - offset) if token >= offset else words
                for row, token in zip(rows, tokens, strict=True)
            ]
        )
        # Padding would lie in the slots of rows that are left out.
        if self.compiled is not None and len(rows) == len(self.rows):
            output = self.compiled(tokens, read, lengths, places)
        else:
            window = SlotWindow(self._slots, rows[0].slot, lengths, [1] * len(rows))
            # The prototype is its table's single entry.
            embeddings = self._model.embed(torch.tensor(tokens, device=device)[:, None], None, read[:, None])
            output = self._forward(window, embeddings, torch.tensor(places, device=device)[:, None].expand(3, -1, -1))
        chosen = self._choose(rows, output)
        # From here on nothing fails for all: what failed before may be done again.
        for row in rows:
            row.length += 1
        self._take(chosen)
        seconds = self._done(start)
        self.work.decode_s += seconds
        for row in rows:
            row.times.decode += seconds

    def _forward(self, window: Window, embeddings: Tensor, positions: Tensor) -> PaDTOutput:
        mask = window.attention_mask()
        if self._additive_mask:
            lowest = torch.finfo(embeddings.dtype).min
            mask = torch.zeros_like(mask, dtype=embeddings.dtype).masked_fill(~mask, lowest)
        return self._model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=window,
            use_cache=True,
            logits_to_keep=1,
        )

    def _choose(self, rows: Sequence[Row], output: PaDTOutput) -> list["_Choice"]:
        """Choose the next token of each row from a pass over these rows."""
        assert output.logits is not None and output.last_hidden_state is not None
        # A copy: a prompt's states are not kept alive.
        states = output.last_hidden_state[:, -1].clone()
        words, vrts = output.logits[:, -1].float(), self._vrt_logits(rows, states).float()
        normalizers = torch.logaddexp(words.logsumexp(-1), vrts.logsumexp(-1))
        best_word, best_vrt = words.max(-1), vrts.max(-1)
        # The two tables lie side by side without being joined, which would copy the vocabulary for each row.
        vrt_wins = best_vrt.values > best_word.values
        tokens = list(torch.where(vrt_wins, best_vrt.indices + words.shape[1], best_word.indices).unbind())
        for place, row in enumerate(rows):
            if not row.chooser.takes_the_best:
                logits = torch.cat([words[place], vrts[place, : row.prompt.patches]])
                try:
                    tokens[place] = row.chooser.choose(row.parser.ids, logits)
                except Exception as error:
                    row.fail(error)
        # The step waits for the device here, once.
        ids, finite = torch.stack([torch.stack(tokens), normalizers.isfinite().long()]).tolist()
        chosen = []
        for place, (row, token) in enumerate(zip(rows, ids, strict=True)):
            if row.error is None and not finite[place]:
                row.fail(FloatingPointError("The model's logits are not finite (inf or NaN): load it in float32."))
            if row.error is None:
                chosen.append(_Choice(row, token, states[place], normalizers[place]))
        return chosen

    def _vrt_logits(self, rows: Sequence[Row], states: Tensor) -> Tensor:
        """Logits of each row's own VRTs, ``(rows, d)`` -> ``(rows, most patches + 1)``, -inf at what it has not.

        One product for each picture, whatever number of rows asks about it: no prototypes are copied.
        """
        asking: dict[SeenPicture, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            for picture in dict.fromkeys(row.pictures):
                asking[picture].append(place)
        logits = states.new_full((len(rows), max(row.prompt.patches for row in rows) + 1), float("-inf"))
        for picture, places in asking.items():
            products = states[places] @ picture.prototypes.to(states.dtype).T
            for product, place in zip(products, places, strict=True):
                start = 0
                for own in rows[place].pictures:
                    if own is picture:
                        logits[place, start : start + len(product)] = product
                    start += len(own.prototypes)
        return logits

    def _take(self, choices: Sequence["_Choice"]) -> None:
        """Let rows read the tokens that were chosen."""
        self.work.tokens += len(choices)
        for row, token, state, normalizer in choices:
            try:
                row.take(token, state, normalizer)
            except Exception as error:
                row.fail(error)

    def objects(self, items: Sequence[tuple[Row, AnswerGroup]]) -> list[PredictedObject | None]:
        """Decode groups that the last step has closed; all have the same ``settings.masks``."""
        start = time.perf_counter()
        places: dict[tuple[SeenPicture, ...], int] = {}
        for row, _ in items:
            places.setdefault(row.pictures, len(places))
        features, table = join_features([picture for pictures in places for picture in pictures])
        seen = SeenImages([tuple(picture.frame for picture in pictures) for pictures in places], features, table)
        own = [(places[row.pictures], group) for row, group in items]
        traces = [row.trace_of(group) for row, group in items]
        found = decode_groups(self._model, seen, own, traces, items[0][0].settings.masks)
        seconds = self._done(start)
        self.work.objects += len(found)
        self.work.objects_s += seconds
        for row in dict.fromkeys(row for row, _ in items):
            row.times.objects += seconds
        return found

    def release(self, row: Row) -> None:
        """Free a row's slot; the last row moves into it, so that those that run stay side by side."""
        assert row.slot is not None
        # A pass that failed may have written one position more.
        self._slots.clear(row.slot, row.length + 1)
        last = self.rows.pop()
        if last is not row:
            assert last.slot is not None
            self._slots.move(last.slot, row.slot, last.length)
            self.rows[row.slot] = last
            last.slot = row.slot
        row.slot = None


class _Choice(NamedTuple):
    """A row's next token, the state ``(d,)`` that predicted it, and the logarithm of the sum of ``exp(logit)``."""

    row: Row
    token: int
    state: Tensor
    normalizer: Tensor


def _start_of(row: Row, prefixes: dict[bytes, Tensor]) -> int:
    """Tokens of a row's prompt that are known."""
    return row.prompt.prefix_length if row.prompt.prefix_key in prefixes else 0


def _pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side="left")
