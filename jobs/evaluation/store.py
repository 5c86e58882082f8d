"""Where answers are kept: written window by window as they come, so that a kill or a failing scorer loses none.

``plan.json`` says what is asked of whom, and is written first; ``answers/00003.parquet`` holds the answers to one
window; ``predictions.parquet`` holds all of them, sorted by id, and takes the place of the parts. One row is one
sample. Files depend on the answers alone: not on workers, kills or the order in which windows come.
"""

import io
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.common.config_tree import differences
from padt.errors import UserError
from pipelines.io.storage import Folder

PLAN_FILE = "plan.json"
PARTS_FOLDER = "answers"
PREDICTIONS_FILE = "predictions.parquet"
METRICS_FILE = "metrics.json"
COCO_FILE = "coco_results.json"
MISSING_FILE = "missing_labels.json"
PICTURES_FILE = "predictions.png"
REPORT_FILE = "report.html"
REPORT_FILES = (METRICS_FILE, PREDICTIONS_FILE, COCO_FILE, MISSING_FILE, PICTURES_FILE, REPORT_FILE)
"""What an evaluation leaves; ``metrics.json`` goes away first and comes back last: where it is, all is whole."""
_ROW_GROUP = 4096

_OBJECT = pa.struct(
    [
        ("label", pa.string()),
        ("score", pa.float64()),
        ("uncalibrated_score", pa.float64()),
        ("box", pa.list_(pa.float64())),
        ("mask", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
        ("patches", pa.list_(pa.int32())),
        ("span", pa.list_(pa.int32())),
        ("confidence", pa.float64()),
        ("complete", pa.bool_()),
        ("image", pa.int32()),
    ]
)
_PREDICTION = pa.schema(
    [
        ("text", pa.string()),
        ("objects", pa.list_(_OBJECT)),
        ("truncated", pa.bool_()),
        ("warnings", pa.list_(pa.string())),
        ("not_finite", pa.int32()),
        ("tokens", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("grid", pa.list_(pa.int32())),
    ]
)
_QUESTION = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        ("task", pa.string()),
        ("item", pa.int32()),
        ("sentence", pa.string()),
        ("error", pa.string()),
    ]
)
SCHEMA = pa.unify_schemas([_QUESTION, _PREDICTION])
"""Columns of ``predictions.parquet``; those of the answer are null where the picture could not be read."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What answers depend on; two evaluations with equal plans may share them.

    Attributes:
        data: fingerprint of the set, ``[:60]`` at its end where only so many rows are asked about.
        model: fingerprint of the model's files.
        tasks: what is asked.
        settings: ``padt.inference.requests.GenerationSettings`` as plain values.
        names_per_prompt: classes in one detection prompt; None = all.
        device: kind of device that answers, such as ``cpu`` or ``cuda``: on another one sums end in other digits.
        dtype: of the weights.
        threads: of a process that answers on a CPU.
        samples: questions.
        windows: parts that the answers come in.
        refine: how masks are refined, with the fingerprint of what refines them; None = they are the model's own.
        asked_as: names that classes are asked by, where they are not the set's own.
    """

    data: str
    model: str
    tasks: tuple[str, ...]
    settings: Mapping[str, Any]
    names_per_prompt: int | None
    device: str
    dtype: str
    threads: int
    samples: int
    windows: int
    refine: Mapping[str, Any] | None = None
    asked_as: Mapping[str, str] = field(default_factory=dict)

    def changes(self, values: Mapping[str, Any]) -> list[str]:
        """What differs between stored values and this plan, in words."""
        own = json.loads(json.dumps(asdict(self)))
        stored = {name: value for name, value in values.items() if name in own}
        return differences({**stored, "data": stored.get("data", "")[-20:]}, {**own, "data": own["data"][-20:]})


class AnswerStore:
    """The answers of one evaluation in its folder.

    Attributes:
        folder: any fsspec URL.
    """

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)

    def begin(
        self, plan: EvaluationPlan, about: Mapping[str, Any], windows: Sequence[Sequence[Any]], overwrite: bool
    ) -> dict[int, list[dict[str, Any]]]:
        """Go on with what is there, or begin.

        Args:
            plan: what is to be asked.
            about: what else is told of the evaluation, such as places of set and model; kept in the plan as ``about``.
            windows: the samples of each window.
            overwrite: throw the answers of another plan, or of this one, away.

        Returns:
            Answers that are there, by number of their window.

        Raises:
            UserError: the folder holds answers of another plan.
        """
        stored = None if overwrite else self.plan()
        if stored is None:
            for name in (METRICS_FILE, PLAN_FILE, PARTS_FOLDER, *REPORT_FILES):
                self.folder.remove(name)
        elif changes := plan.changes(stored):
            raise UserError(
                f"{self.folder.url} holds answers that were asked for otherwise ({'; '.join(changes[:5])}): give "
                "another folder as --out, or throw them away with --overwrite."
            )
        self.folder.write(PLAN_FILE, json.dumps({**asdict(plan), "about": about}, indent=1) + "\n")
        return self._answered(windows) if stored is not None else {}

    @property
    def whole(self) -> bool:
        """Whether all answers are there, in one file."""
        return self.folder.exists(PREDICTIONS_FILE)

    def plan(self) -> dict[str, Any] | None:
        """Content of ``plan.json``, or None where no evaluation was begun.

        Raises:
            UserError: it is damaged.
        """
        text = self.folder.read_text(PLAN_FILE)
        try:
            return None if text is None else dict(json.loads(text))
        except ValueError as error:
            raise UserError(
                f"{posixpath.join(self.folder.url, PLAN_FILE)} is damaged ({error}): give --overwrite to begin anew."
            ) from error

    def add(self, window: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep the answers to a window."""
        self.folder.write(self._part(window), to_parquet(records))

    def finish(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write all answers, sorted by id, in the place of the parts."""
        self.folder.write(PREDICTIONS_FILE, to_parquet(records))
        self.folder.remove(PARTS_FOLDER)

    def records(self) -> list[dict[str, Any]]:
        """All answers that are there: of a whole evaluation, or of one that was ended early.

        Raises:
            UserError: there are none, or a file is damaged.
        """
        if self.folder.exists(PREDICTIONS_FILE):
            return read_parquet(self.folder, PREDICTIONS_FILE)
        names = [name for name in self.folder.names(PARTS_FOLDER) if name.endswith(".parquet")]
        if not names:
            raise UserError(f"{self.folder.url} holds no answers: run `padt evaluate MODEL DATA --out` with it first.")
        return [record for name in names for record in read_parquet(self.folder, f"{PARTS_FOLDER}/{name}")]

    def _answered(self, windows: Sequence[Sequence[Any]]) -> dict[int, list[dict[str, Any]]]:
        """Answers by window; a window of which one lacks is answered again."""
        ids = [{sample.id for sample in window} for window in windows]
        if self.whole:
            by_id = {record["id"]: record for record in read_parquet(self.folder, PREDICTIONS_FILE)}
            return {
                number: [by_id[one] for one in sorted(window)]
                for number, window in enumerate(ids)
                if window <= set(by_id)
            }
        self.folder.sweep(PARTS_FOLDER)
        there = set(self.folder.names(PARTS_FOLDER))
        parts = {
            number: read_parquet(self.folder, self._part(number))
            for number in range(len(windows))
            if posixpath.basename(self._part(number)) in there
        }
        return {n: part for n, part in parts.items() if sorted(record["id"] for record in part) == sorted(ids[n])}

    @staticmethod
    def _part(window: int) -> str:
        return f"{PARTS_FOLDER}/{window:05d}.parquet"


def to_parquet(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Records as a parquet file of ``SCHEMA``, sorted by id; the same records always give the same bytes."""
    buffer = io.BytesIO()
    table = _table(sorted(records, key=lambda record: record["id"]))
    pq.write_table(table, buffer, compression="zstd", row_group_size=_ROW_GROUP)
    return buffer.getvalue()


def read_parquet(folder: Folder, name: str) -> list[dict[str, Any]]:
    """Records of a file that ``to_parquet`` made.

    Raises:
        UserError: it is missing, damaged or another kind of table.
    """
    place = posixpath.join(folder.url, name)
    try:
        table = pq.read_table(io.BytesIO(folder.read(name)))
        missing = [column for column in SCHEMA.names if column not in table.column_names]
        if missing:
            raise UserError(f"{place} is no file of answers (it lacks {', '.join(missing)}): give predictions.parquet.")
        return _records(table)
    except FileNotFoundError as error:
        raise UserError(f"{place} is not there: check the path.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{place} is damaged ({error}): remove it, and run `padt evaluate` again; it answers what is missing."
        ) from error


def normalised(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records as they come back from a file, sorted by id: what is scored does not depend on where answers were."""
    return _records(_table(sorted(records, key=lambda record: record["id"])))


def _table(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    rows = []
    for record in records:
        prediction = record["prediction"] or {}
        row = {name: record.get(name) for name in _QUESTION.names}
        row |= {name: prediction.get(name) for name in _PREDICTION.names}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _records(table: pa.Table) -> list[dict[str, Any]]:
    records = []
    for row in table.select(SCHEMA.names).to_pylist():
        record = {name: row[name] for name in ("id", "key", "task")}
        record |= {name: row[name] for name in ("item", "sentence") if row["sentence"] is not None}
        answered = row["text"] is not None
        record["prediction"] = {name: row[name] for name in _PREDICTION.names} if answered else None
        if row["error"] is not None:
            record["error"] = row["error"]
        records.append(record)
    return records
