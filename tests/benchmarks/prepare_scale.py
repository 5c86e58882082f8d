"""Preparation of an Objects365-like set at several sizes: seconds and peak memory of every process.

Makes one JSON with ``--images`` images and fifteen boxes an image (as Objects365 v2 has), with every image file a link
to one of a few small JPEGs, runs the preparation in a process of its own, and watches that process and all it starts.

    python -m tests.benchmarks.prepare_scale --images 50000 100000 200000 --work /tmp/scale

From the largest size it reckons the training split of Objects365 v2: the plan by one process, the shards by all cores.
Its images are larger than the ones here, so on many cores the storage that they lie on will set the pace.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

BOXES = 15
CLASSES = 365
WIDTH, HEIGHT = 640, 480
FOLDER_IMAGES = 20_000
WHOLE_IMAGES = 1_742_289

_RUN = """
import sys, time
from pipelines.prepare.run import PrepareOptions, prepare
options = PrepareOptions(
    annotations=sys.argv[1], images=sys.argv[2], out=sys.argv[3], source=sys.argv[4], rows_per_shard=2000,
    num_cpus=int(sys.argv[5]),
)
start = time.monotonic()
manifest = prepare(
    options,
    on_plan=lambda plan: print(f"plan {time.monotonic() - start:.1f}", flush=True),
)
print(f"rows {manifest.counts.rows} objects {manifest.counts.objects}", flush=True)
"""


def write_set(folder: Path, images: int, seed: int) -> None:
    """``annotations.json`` and ``images/patchN/*.jpg``; the JSON is written image by image."""
    rng = np.random.default_rng(seed)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for number in range(8):
        coarse = rng.integers(0, 255, (15, 20, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=40)
        (photos / f"{number}.jpg").write_bytes(buffer.getvalue())
    names = [f"patch{number // FOLDER_IMAGES}/objects365_v1_{number:08d}.jpg" for number in range(images)]
    for number, name in enumerate(names):
        if number % FOLDER_IMAGES == 0:
            (folder / "images" / name).parent.mkdir(parents=True)
        os.link(photos / f"{number % 8}.jpg", folder / "images" / name)
    with (folder / "annotations.json").open("w") as file:
        categories = [{"id": number + 1, "name": f"class {number + 1}"} for number in range(CLASSES)]
        file.write(json.dumps({"categories": categories})[:-1] + ', "images": [')
        for number, name in enumerate(names):
            image = {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, "license": 5, "url": ""}
            file.write((", " if number else "") + json.dumps(image))
        file.write('], "annotations": [')
        # As in the published file, an image's boxes do not lie together.
        for place in range(BOXES):
            corners = rng.uniform((0, 0), (WIDTH - 100, HEIGHT - 100), (images, 2))
            sides = rng.uniform(8, 100, (images, 2))
            classes = rng.integers(1, CLASSES + 1, images)
            for number in range(images):
                (x, y), (w, h) = corners[number].tolist(), sides[number].tolist()
                box = {
                    "id": place * images + number,
                    "image_id": number,
                    "category_id": int(classes[number]),
                    "iscrowd": 0,
                    "isfake": 0,
                    "area": w * h,
                    "isreflected": 0,
                    "bbox": [x, y, w, h],
                }
                file.write((", " if place or number else "") + json.dumps(box))
        file.write("]}")


def watch(process: subprocess.Popen) -> dict[str, int]:
    """Peak resident memory in bytes by kind of process, until the process ends. Shared memory is counted in each."""
    peaks: dict[str, int] = {}
    root = psutil.Process(process.pid)
    while process.poll() is None:
        family = [root]
        try:
            family += root.children(recursive=True)
        except psutil.NoSuchProcess:
            break
        for each in family:
            try:
                peak = _peak(each.pid)
                name = "driver" if each.pid == root.pid else each.name().split(":")[0]
            except (psutil.NoSuchProcess, OSError):
                continue
            peaks[name] = max(peaks.get(name, 0), peak)
        time.sleep(0.5)
    return peaks


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Print a line for each size: file size, seconds of planning and in all, peaks of driver and workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 100_000, 200_000])
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made; emptied after each size")
    parser.add_argument("--source", default="coco")
    parser.add_argument("--num-cpus", type=int, default=2)
    options = parser.parse_args()
    for images in options.images:
        folder = options.work / str(images)
        shutil.rmtree(folder, ignore_errors=True)
        write_set(folder, images, seed=0)
        size = (folder / "annotations.json").stat().st_size
        command = [sys.executable, "-c", _RUN, str(folder / "annotations.json"), str(folder / "images")]
        command += [str(folder / "out"), options.source, str(options.num_cpus)]
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peaks = watch(process)
        seconds = time.monotonic() - start
        assert process.stdout is not None
        said = process.stdout.read().split("\n")
        if process.returncode:
            raise SystemExit(f"the preparation of {images} images failed")
        highest = sorted(peaks.items(), key=lambda peak: -peak[1])[:4]
        memory = ", ".join(f"{name} {peak / 2**20:.0f} MiB" for name, peak in highest)
        steps = ", ".join(filter(None, said))
        print(f"{images} images, {size / 1e6:.0f} MB of JSON: {seconds:.0f} s ({steps}); {memory}", flush=True)
        plan = float(said[0].removeprefix("plan "))
        shutil.rmtree(folder)
    growth = WHOLE_IMAGES / images
    for cores in (16, 64, 256):
        minutes = growth * (plan + (seconds - plan) * options.num_cpus / cores) / 60
        alone = growth * plan / 60
        print(f"Objects365 v2 on {cores} cores: about {minutes:.0f} minutes, {alone:.0f} of them for the plan")


if __name__ == "__main__":
    main()
