"""How preparation grows with cores: the same COCO-like set on one core and on two, in turn.

Ray's start, its workers' start (a first small run warms them up), the plan (which one process makes) and the report are
left out: what is timed is the writing of the shards.

    python -m tests.benchmarks.prepare_cores --images 3000 --rounds 3
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import ray

from pipelines.prepare.run import PrepareOptions, prepare
from tests.benchmarks.prepare_objects import HEIGHT, WIDTH, annotations, photograph

ROWS_PER_SHARD = 500


def write_set(folder: Path, images: int) -> None:
    """``annotations.json`` with seven polygons an image, and the images, all of them links to one photograph."""
    (folder / "images").mkdir(parents=True)
    (folder / "photo.jpg").write_bytes(photograph(0))
    listed, boxes = [], []
    for number, texts in enumerate(annotations(images, seed=0)):
        name = f"{number:06d}.jpg"
        os.link(folder / "photo.jpg", folder / "images" / name)
        listed.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        boxes += [{**json.loads(text), "image_id": number} for text in texts]
    content = {"images": listed, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations.json").write_text(json.dumps(content))


def seconds(folder: Path, out: Path, cores: int) -> float:
    """Time from the plan to the last shard."""
    moments: list[float] = []
    options = PrepareOptions(
        annotations=str(folder / "annotations.json"),
        images=str(folder / "images"),
        out=str(out),
        rows_per_shard=ROWS_PER_SHARD,
        num_cpus=cores,
    )

    def note(_: object) -> None:
        moments.append(time.monotonic())

    prepare(options, on_plan=note, on_progress=note)
    return moments[-1] - moments[0]


def main() -> None:
    """Print seconds and images a second for one and two cores, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as work:
        small, folder = Path(work) / "small", Path(work) / "set"
        write_set(small, 2 * ROWS_PER_SHARD)
        write_set(folder, options.images)
        seconds(small, Path(work) / "warm", 2)
        times: dict[int, list[float]] = {1: [], 2: []}
        for number in range(options.rounds):
            for cores in (1, 2) if number % 2 == 0 else (2, 1):
                times[cores].append(seconds(folder, Path(work) / f"out-{number}-{cores}", cores))
    for cores, taken in times.items():
        median = statistics.median(taken)
        print(f"{cores} core(s): {median:6.1f} s, {options.images / median:7.0f} images/s")
    ratios = [one / two for one, two in zip(times[1], times[2], strict=True)]
    print(
        f"two cores are {statistics.median(ratios):.2f} times as fast (rounds: {[round(each, 2) for each in ratios]})"
    )


if __name__ == "__main__":
    main()
