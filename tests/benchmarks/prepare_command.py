"""The whole command ``padt prepare coco`` beside a plain loop over the same photographs, in both currencies.

The plain loop is the script that a person would write who knows the libraries: one process reads the JSON, decodes each
photograph to see that it is whole, paints every mask and shrinks it straight to the patch grid, and writes the rows to
Parquet. The command does the same and besides finds what is broken, hashes files and looks, and writes report and
manifest. Both are processes of their own, from their start to the end of the last process that they began; processor
time is that of all of them together. Wall clock says how long a person waits, processor time what a cluster bills.

Photographs and annotations are those of a COCO folder (``train2017``, ``val2017``, ``annotations``), listed again and
again under new names until there are enough.

    python -m tests.benchmarks.prepare_command --coco ../shared/samples/coco --photographs 3040 --rounds 3
"""

import argparse
import ctypes
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pycocotools import mask as coco_mask

from padt.data.image import PATCH, ResizePolicy

_ROWS_PER_FILE = 500
_PR_SET_CHILD_SUBREAPER = 36


class Cost(NamedTuple):
    """Seconds of wall clock, and of all processors together."""

    wall: float
    processor: float


def write_set(coco: Path, folder: Path, photographs: int) -> None:
    """``annotations.json`` and ``images/``: hard links to the photographs of a COCO folder, over and over."""
    (folder / "images").mkdir(parents=True)
    listed, boxes, categories = [], [], []
    sources = []
    for split in ("train2017", "val2017"):
        content = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
        categories = content["categories"]
        by_image = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        sources += [(coco / split / image["file_name"], image, by_image[image["id"]]) for image in content["images"]]
    for number in range(photographs):
        path, image, annotations = sources[number % len(sources)]
        copy = folder / "photographs" / path.name
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
        name = f"{number:07d}.jpg"
        os.link(copy, folder / "images" / name)
        listed.append({**image, "id": number, "file_name": name})
        boxes += [{**each, "id": len(boxes) + place, "image_id": number} for place, each in enumerate(annotations)]
    content = {"images": listed, "annotations": boxes, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def plain_loop(folder: Path, out: Path) -> None:
    """Prepare the set as a script would, one photograph and one annotation after the other."""
    content = json.loads((folder / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_image = defaultdict(list)
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    out.mkdir(parents=True)
    policy, rows = ResizePolicy(), []
    for number, image in enumerate(content["images"], start=1):
        encoded = (folder / "images" / image["file_name"]).read_bytes()
        Image.open(io.BytesIO(encoded)).convert("RGB")
        objects = [
            _plain_object(each, image["width"], image["height"], names, policy) for each in by_image[image["id"]]
        ]
        rows.append(
            {"key": str(image["id"]), "image": {"bytes": encoded, "path": image["file_name"]}, "objects": objects}
        )
        if len(rows) == _ROWS_PER_FILE or number == len(content["images"]):
            pq.write_table(pa.Table.from_pylist(rows), out / f"{number:07d}.parquet", compression="zstd")
            rows = []


def _plain_object(annotation: dict, width: int, height: int, names: dict[int, str], policy: ResizePolicy) -> dict:
    parts = annotation["segmentation"]
    rle = coco_mask.frPyObjects(parts, height, width)
    rle = coco_mask.merge(rle) if isinstance(rle, list) else rle
    rows, columns = policy.grid(height, width)
    painted = Image.fromarray(coco_mask.decode(rle) * 255)
    share = np.asarray(painted.resize((columns, rows), Image.Resampling.BOX)) / 255
    x, y, w, h = annotation["bbox"]
    return {
        "label": names[annotation["category_id"]],
        "box": [x / width, y / height, (x + w) / width, (y + h) / height],
        "patches": np.packbits(share >= 1 / PATCH, bitorder="little").tobytes(),
        "rle": rle["counts"].decode(),
    }


def cost_of(command: list[str]) -> Cost:
    """Run a command to the end of all processes that it has begun.

    Times are read of each living descendant, ten times a second: who starts daemons may drop the times of those that
    end, and what outlives its parent is handed to this process (Linux), so that none is missed.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    me, begun = psutil.Process(), time.monotonic()
    seen: dict[tuple[int, float], float] = {}
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = None
    while children := me.children(recursive=True):
        for child in children:
            try:
                times = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            seen[child.pid, child.create_time()] = times.user + times.system
        if wall is None and running.poll() is not None:
            wall = time.monotonic() - begun
        if wall is not None:
            _bury_orphans()
        time.sleep(0.1)
    if running.wait():
        raise SystemExit(f"{' '.join(command)} failed with status {running.returncode}")
    return Cost(wall or time.monotonic() - begun, sum(seen.values()))


def _bury_orphans() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def main() -> None:
    """Print seconds of both, and the ratios of neighbouring runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--photographs", type=int, default=3040)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", nargs=2, type=Path, metavar=("SET", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain_loop(*options.plain)
        return
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "set"
        write_set(options.coco, folder, options.photographs)
        here = [sys.executable, "-m", "tests.benchmarks.prepare_command", "--coco", str(options.coco)]
        costs: dict[str, list[Cost]] = {"plain loop": [], "padt prepare": []}
        for number in range(options.rounds):
            out = Path(work) / f"out-{number}"
            commands = {
                "plain loop": [*here, "--plain", str(folder), str(out / "plain")],
                "padt prepare": [
                    *(sys.executable, "-m", "jobs.cli.main", "prepare", "coco"),
                    *("-a", str(folder / "annotations.json"), "-i", str(folder / "images"), "-o", str(out / "set")),
                ],
            }
            for name in sorted(commands, reverse=number % 2 == 1):
                costs[name].append(cost_of(commands[name]))
            shutil.rmtree(out)
    for name, found in costs.items():
        wall, processor = (statistics.median(each[place] for each in found) for place in (0, 1))
        print(
            f"{name:12} {wall:6.1f} s, {options.photographs / wall:5.0f} photographs/s, "
            f"{processor:6.1f} s of processor time"
        )
    pairs = list(zip(costs["plain loop"], costs["padt prepare"], strict=True))
    throughput = statistics.median(plain.wall / ours.wall for plain, ours in pairs)
    processor = statistics.median(ours.processor / plain.processor for plain, ours in pairs)
    print(f"padt prepare has {throughput:.2f} times the throughput at {processor:.2f} of the processor time")


if __name__ == "__main__":
    main()
