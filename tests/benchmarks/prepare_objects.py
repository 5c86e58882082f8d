"""Objects prepared in a second on one core: this project's rows beside the straightforward way.

The straightforward way is what a script would do for each annotation: paint the mask of the original image, shrink it
straight to the grid of patches, and keep the run-length mask. Both ways start from the same JSON text and end with box,
foreground patches and run-length mask. This project's side also decodes the image to check it; shards and processes are
left out of both. The straightforward way counts in 256 shades, so that patches on the border of 1/28 may differ.

    python -m tests.benchmarks.prepare_objects --images 40 --rounds 5
"""

import argparse
import io
import json
import math

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from padt.data.image import ResizePolicy
from padt.data.patches import unpack_patches
from pipelines.prepare.rows import RowContext, build_row
from pipelines.sources.base import ImageEntry, Piece
from tests.benchmarks.common.measure import interleaved

WIDTH, HEIGHT = 640, 480
OBJECTS = 7


def outlines(rng: np.random.Generator) -> list[float]:
    """A closed outline of 24 corners somewhere in the image, as COCO's polygons are: pixels, two decimals."""
    centre = rng.uniform((60, 60), (WIDTH - 60, HEIGHT - 60))
    radius = rng.uniform(12, 150) * rng.uniform(0.6, 1.0, size=24)
    angles = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    corners = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.clip(corners, 0, (WIDTH, HEIGHT)).round(2).reshape(-1).tolist()


def annotations(count: int, seed: int) -> list[list[str]]:
    """For each image the JSON text of its annotations."""
    rng = np.random.default_rng(seed)
    images = []
    for image in range(count):
        texts = []
        for place in range(OBJECTS):
            outline = outlines(rng)
            x, y = outline[0::2], outline[1::2]
            box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
            area = box[2] * box[3] / 2
            value = {"id": image * OBJECTS + place, "category_id": 1, "bbox": box, "area": area}
            value["segmentation"] = [outline]
            texts.append(json.dumps(value))
        images.append(texts)
    return images


def photograph(seed: int) -> bytes:
    """A JPEG with about as many bytes as a photograph of COCO (its decoding counts on this project's side)."""
    coarse = np.random.default_rng(seed).integers(0, 255, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def straightforward(texts: list[str], policy: ResizePolicy) -> list[tuple[list[float], np.ndarray, dict]]:
    """Box, foreground patches and mask of each annotation, one after the other, by painting and shrinking."""
    rows, columns = policy.grid(HEIGHT, WIDTH)
    objects = []
    for text in texts:
        value = json.loads(text)
        mask = coco_mask.merge(coco_mask.frPyObjects(value["segmentation"], HEIGHT, WIDTH))
        painted = Image.fromarray(coco_mask.decode(mask) * 255)
        share = np.asarray(painted.resize((columns, rows), Image.Resampling.BOX)) / 255
        x, y, w, h = value["bbox"]
        box = [x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT]
        objects.append((box, (share >= 1 / 28).reshape(-1), mask))
    return objects


def main() -> None:
    """Print objects a second and core of both ways, and on how many objects their patches agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    policy = ResizePolicy()
    images = annotations(options.images, options.seed)
    context = RowContext("bench", "train", {1: "thing"}, policy)
    content = photograph(options.seed)

    def ours() -> list[dict]:
        built = []
        for index, texts in enumerate(images):
            entry = ImageEntry(str(index), f"{index}.jpg", WIDTH, HEIGHT)
            result = build_row(entry, "", content, [Piece(str(index), "object", text) for text in texts], context)
            assert result.row is not None and not result.rejects
            built.append(result.row)
        return built

    def theirs() -> list[list]:
        return [straightforward(texts, policy) for texts in images]

    ratio = interleaved(ours, theirs, options.rounds, warm_up=1)
    objects = options.images * OBJECTS
    print(f"{objects} objects, {OBJECTS} polygons an image of {WIDTH}x{HEIGHT} ({len(content) / 1e3:.0f} kB), one core")
    print(f"  this project    {objects / ratio.first_ms * 1000:8.0f} objects/s")
    print(f"  straightforward {objects / ratio.second_ms * 1000:8.0f} objects/s")
    print(f"  {ratio}")
    same = total = 0
    for row, objects_of_image in zip(ours(), theirs(), strict=True):
        cells = row["grid_h"] * row["grid_w"]
        for item, (_, patches, mask) in zip(row["objects"], objects_of_image, strict=True):
            total += 1
            same += bool((unpack_patches(item["patches"], cells) == patches).all())
            assert item["rle"]["counts"] == mask["counts"].decode()
    print(f"  same patches for {same} of {total} objects, same masks for all")


if __name__ == "__main__":
    main()
