"""How fast the training reader is: samples a second and core, where the time goes, and how long a consumer waits.

Run it with ``python -m tests.benchmarks.reader``. Each sample decodes, resizes and cuts its own image and draws its own
prompt, answer and mask targets. Pictures are drawn, so the figures depend on nothing but the machine.
"""

import argparse
import cProfile
import io
import logging
import pstats
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from padt.data.image import ResizePolicy
from padt.data.patches import coverage_of_rle, foreground, pack_patches
from padt.data.processor import load_processor
from padt.data.rle import encode
from padt.data.tasks import TaskOptions
from pipelines.loader.augment import AugmentOptions
from pipelines.loader.mixture import SetSpec
from pipelines.loader.plan import Plan, make_plan
from pipelines.loader.reader import ReaderOptions, TrainingReader
from pipelines.loader.sample_source import SampleSource
from tests.jobs.tiny_model import write_tiny_model
from tests.pipelines.mini_set import scene_row, write_set

VIEWS = AugmentOptions(flip=0.5, scale=(0.75, 1.25), crop=0.5)
# What the parts of the work are called in a profile: function -> part.
PARTS = {
    "row": "read the row",
    "sample": "draw the question",
    "open_image": "decode",
    "resize": "resize",
    "token_layout": "tokenise",
    "cut_patches": "cut patches",
    "mask_target": "mask targets",
}


def photo_row(number: int, width: int = 640, height: int = 480, objects: int = 7) -> dict:
    """A row with a picture of photographic detail and blob-shaped objects."""
    rng = np.random.default_rng(number)
    row = scene_row(number)
    base = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    picture = np.asarray(base.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    picture = (picture + rng.integers(-12, 13, picture.shape)).clip(0, 255).astype(np.uint8)
    handle = io.BytesIO()
    Image.fromarray(picture).save(handle, "JPEG", quality=90)
    grid_h, grid_w = ResizePolicy().grid(height, width)
    y, x = np.mgrid[:height, :width]
    entries = []
    for index in range(objects):
        cy, cx, ry, rx = rng.uniform([0, 0, 20, 20], [height, width, height / 4, width / 4])
        angle = np.arctan2(y - cy, x - cx)
        mask = np.hypot((y - cy) / ry, (x - cx) / rx) < 1 + 0.2 * np.sin(7 * angle)
        rows, columns = np.nonzero(mask)
        rle = encode(mask)
        box = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
        patches = pack_patches(foreground(coverage_of_rle(rle, grid_h, grid_w)))
        template = row["objects"][index % len(row["objects"])]
        changes = {"ann_id": index, "box": [float(value) for value in box], "area": float(mask.sum())}
        entries.append({**template, **changes, "patches": patches, "rle": rle})
    size = {"width": width, "height": height, "grid_h": grid_h, "grid_w": grid_w}
    return {**row, **size, "image": {"bytes": handle.getvalue(), "path": f"{number}.jpg"}, "objects": entries}


def rate(plan: Plan, processor, seconds: float) -> tuple[float, float]:
    """Samples a second of wall clock and of processor time, of the work that one reading process does."""
    # Without memory for row groups: in a set of real size the next sample hardly ever lies in one that was just read.
    source = SampleSource(plan, processor, TaskOptions(), cache_bytes=1)
    source.batch(0, 0)
    begun, processor_begun, samples, number = time.perf_counter(), time.process_time(), 0, 0
    while time.perf_counter() - begun < seconds:
        samples += len(source.batch(number, 0))
        number += 1
    return samples / (time.perf_counter() - begun), samples / (time.process_time() - processor_begun)


def parts(plan: Plan, processor, batches: int = 8) -> dict[str, float]:
    """Share of each part of the work in an undisturbed profile."""
    source = SampleSource(plan, processor, TaskOptions(), cache_bytes=1)
    source.batch(0, 0)
    profile = cProfile.Profile()
    profile.runcall(lambda: [source.batch(number, 0) for number in range(batches)])
    stats = pstats.Stats(profile).get_stats_profile()
    names = stats.func_profiles
    return {label: names[name].cumtime / stats.total_tt for name, label in PARTS.items() if name in names}


def waiting(plan: Plan, model: str, batches: int, step: float, options: ReaderOptions) -> tuple[float, float]:
    """Samples a second and share of time waited, of a consumer that needs ``step`` seconds for a batch."""
    reader = TrainingReader(plan, 0, model, TaskOptions(), start=0, stop=batches, options=options)
    samples, begun, waited = 0, 0.0, 0.0
    for number, batch in reader:
        samples += len(batch.keys)
        if number < options.batches_per_task:  # the reading processes have started, and what they read at first is here
            samples, begun, waited = 0, time.perf_counter(), reader.wait_seconds
        time.sleep(step)
    seconds = time.perf_counter() - begun
    return samples / seconds, (reader.wait_seconds - waited) / seconds


@contextmanager
def local_ray(cores: int) -> Iterator[None]:
    """A Ray of this machine alone."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="time of each measurement")
    parser.add_argument("--no-ray", action="store_true", help="leave the measurement with Ray processes out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = write_tiny_model(root / "model")
        processor = load_processor(model)
        urls = {
            "toy (112x112 to 140x112)": write_set(root / "toy", [scene_row(i) for i in range(96)], shard_rows=96),
            "640x480, 7 objects": write_set(root / "photos", [photo_row(i) for i in range(48)], shard_rows=48),
        }
        options = {"seed": 0, "batch_size": 16, "micro_batches": 1, "policy": ResizePolicy()}
        plans = {name: make_plan([SetSpec(url)], **options) for name, url in urls.items()}
        print("samples a second of one core          wall clock   processor time")
        for name, url in urls.items():
            for label, plan in (
                ("", plans[name]),
                (", augmented", make_plan([SetSpec(url)], augment=VIEWS, **options)),
            ):
                wall, cpu = rate(plan, processor, arguments.seconds)
                print(f"  {name + label:36s}{wall:10.0f}{cpu:17.0f}")
        print("share of the time of one sample (profiled)")
        for name, plan in plans.items():
            shares = ", ".join(f"{label} {share:.0%}" for label, share in parts(plan, processor).items())
            print(f"  {name}: {shares}")
        if arguments.no_ray:
            return
        print("one Ray process                        samples/s   waited (consumer: none, then half that rate)")
        with local_ray(2):
            for name, plan in plans.items():
                batches = 160 if "toy" in name else 48
                free, _ = waiting(plan, model, batches, 0.0, ReaderOptions(processes=1, cache_bytes=1))
                _, share = waiting(plan, model, batches // 2, 2 * 16 / free, ReaderOptions(processes=1))
                print(f"  {name:36s}{free:10.0f}{share:11.1%}")


if __name__ == "__main__":
    main()
