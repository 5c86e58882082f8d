"""Small prepared data sets for tests: toy scenes written straight into shards, without Ray and without raw files."""

import hashlib
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from padt.data.image import ResizePolicy
from padt.data.patches import coverage_of_rle, foreground, pack_patches
from padt.data.rle import encode
from pipelines.dataset.manifest import Category, Counts, Manifest, ResizeLimits, ShardInfo, fingerprint
from pipelines.dataset.schema import SCHEMA_VERSION, SHARD_SCHEMA
from pipelines.dedup.hashes import content_hash, look_hash
from pipelines.toy.scenes import KINDS
from pipelines.toy.writing import _IDS_PER_IMAGE, split_scene

_TAG = re.compile(r"<box_id: (\d+)/>")


def scene_row(number: int, *, name: str = "mini", seed: int = 0, masks: bool = True, texts: bool = True) -> dict:
    """One row of schema 1 of a toy scene."""
    scene, sentences, captions = split_scene("train", number, seed=seed)
    policy = ResizePolicy()
    grid_h, grid_w = policy.grid(scene.height, scene.width)
    handle = io.BytesIO()
    Image.fromarray(scene.image).save(handle, "PNG")
    objects = []
    for index, shape in enumerate(scene.shapes):
        rle = encode(shape.mask)
        box = [shape.box[0] / scene.width, shape.box[1] / scene.height]
        box += [shape.box[2] / scene.width, shape.box[3] / scene.height]
        objects.append(
            {
                "ann_id": index,
                "category_id": KINDS.index(shape.kind) + 1,
                "label": shape.kind,
                "box": box,
                "area": float(shape.mask.sum()),
                "iscrowd": False,
                "patches": pack_patches(foreground(coverage_of_rle(rle, grid_h, grid_w))),
                "rle": rle if masks else None,
            }
        )
    references = [
        {"ref_id": i, "sent_id": i, "text": text, "objects": [shape]} for i, (text, shape) in enumerate(sentences)
    ]
    return {
        "key": f"{name}/train/{number}",
        "source": name,
        "split": "train",
        "image_id": str(number),
        "image": {"bytes": handle.getvalue(), "path": f"{number}.png"},
        "width": scene.width,
        "height": scene.height,
        "grid_h": grid_h,
        "grid_w": grid_w,
        "objects": objects,
        "references": references if texts else [],
        "captions": [_caption(text) for text in captions] if texts else [],
        "sha256": content_hash(handle.getvalue()),
        "look": look_hash(Image.fromarray(scene.image)),
    }


def _caption(text: str) -> dict:
    objects: list[int] = []

    def placeholder(match: re.Match) -> str:
        objects.append((int(match[1]) - 1) % _IDS_PER_IMAGE)
        return f"<|Obj_{len(objects) - 1}|>"

    return {"text": _TAG.sub(placeholder, text), "objects": objects}


def write_set(folder: Path, rows: list[dict], *, shard_rows: int = 10, name: str = "mini") -> str:
    """Write rows as a prepared set and return its path."""
    (folder / "shards").mkdir(parents=True)
    policy, shards = ResizePolicy(), []
    for number, start in enumerate(range(0, len(rows), shard_rows)):
        part = rows[start : start + shard_rows]
        path = folder / "shards" / f"{number:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(part, schema=SHARD_SCHEMA), path, row_group_size=4)
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        shards.append(ShardInfo(path=f"shards/{path.name}", rows=len(part), bytes=len(content), sha256=digest))
    categories = tuple(Category(i + 1, kind) for i, kind in enumerate(KINDS))
    objects = sum(len(row["objects"]) for row in rows)
    Manifest(
        schema_version=SCHEMA_VERSION,
        tool_version="test",
        name=name,
        splits=("train",),
        images_mode="copy",
        resize_policy=ResizeLimits(factor=policy.factor, min_pixels=policy.min_pixels, max_pixels=policy.max_pixels),
        categories=categories,
        counts=Counts(
            rows=len(rows),
            objects=objects,
            objects_with_patches=objects,
            references=sum(len(row["references"]) for row in rows),
            captions=sum(len(row["captions"]) for row in rows),
            input={},
            rejected={},
            rejects={},
            repairs={},
        ),
        sources=(),
        shards=tuple(shards),
        plan="test",
        fingerprint=fingerprint(policy, categories, tuple(shards), name),
    ).write(str(folder))
    return str(folder)


def write_mini_set(folder: Path, scenes: int = 24, *, seed: int = 0, name: str = "mini", **options) -> str:
    """Draw scenes and write them as a prepared set."""
    return write_set(folder, [scene_row(i, name=name, seed=seed, **options) for i in range(scenes)], name=name)
