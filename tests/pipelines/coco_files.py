"""Small COCO files for tests, in all the forms that users' files have, and what preparation made of them."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipelines.prepare.execute import execute_here
from pipelines.prepare.run import PrepareOptions, prepare

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "traffic light"}]


def image_bytes(width=120, height=90, orientation=None, kind="JPEG", seed=0):
    """An encoded image; ``orientation`` is the EXIF value (6: shown turned by a quarter)."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def annotation(ann_id, image_id, box=(10, 20, 60, 40), **fields):
    """An annotation with a rectangle as its polygon."""
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": 3,
        "bbox": list(box),
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [polygon],
        **fields,
    }


def write_coco(folder: Path, count=10, per_image=2, annotations=None, images=None, **sections) -> Path:
    """Write ``images/*.jpg`` and ``instances.json`` and return the folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    listed = []
    for number in range(1, count + 1):
        name = f"{number:04d}.jpg"
        (folder / "images" / name).write_bytes(image_bytes(seed=number))
        listed.append({"id": number, "file_name": name, "width": 120, "height": 90})
    if annotations is None:
        annotations = [
            annotation(10 * number + place, number) for number in range(1, count + 1) for place in range(per_image)
        ]
    content = {
        "images": listed if images is None else images,
        "annotations": annotations,
        "categories": CATEGORIES,
        **sections,
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def options_for(folder, out, **more):
    """Options for the files of ``write_coco``, three images a shard."""
    more.setdefault("rows_per_shard", 3)
    return PrepareOptions(
        annotations=str(folder / "instances.json"), images=str(folder / "images"), out=str(out), **more
    )


def coco_options(samples, split, out, **more):
    """Options for the real COCO samples."""
    notes = samples / "coco" / "annotations"
    return PrepareOptions(
        annotations=str(notes / f"instances_{split}2017.json"),
        captions=str(notes / f"captions_{split}2017.json"),
        images=str(samples / "coco" / f"{split}2017"),
        out=str(out),
        split=split,
        **{"rows_per_shard": 16, **more},
    )


def prepare_here(options, **more):
    """Prepare in this process, without Ray."""
    return prepare(options, execute=execute_here, **more)


def rows_of(out):
    """All rows of a set, in order."""
    return [row for path in sorted((out / "shards").iterdir()) for row in pq.read_table(path).to_pylist()]


def rejects_of(out):
    """All rejects of a set."""
    paths = sorted((out / "rejected").iterdir()) if (out / "rejected").exists() else []
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def content_of(out):
    """Every file of a set with its hash."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
