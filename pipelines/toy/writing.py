"""Toy scenes as files in the formats of COCO, RefCOCO and RIC, so that they take the same road as real data."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from padt.data import rle
from padt.errors import UserError, look_up
from pipelines.io.storage import Folder
from pipelines.toy.language import choose_expressions, grounded_captions
from pipelines.toy.scenes import CLASS_NAMES, Scene, SceneOptions, draw_scene, scene_rng

SPLITS = ("train", "val", "test", "talk")
"""Splits by number: scenes of different splits are independent draws."""

# With gaps and not from 1, as COCO's: category ids are no indices.
_IDS = (2, 3, 5, 8, 9, 12)
_CATEGORY_IDS = {name: number for names in CLASS_NAMES.values() for number, name in zip(_IDS, names, strict=False)}
_VERSION = "2"
_LICENCE = {"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
_QUALITY = 92
_IDS_PER_IMAGE = 10


@dataclass(frozen=True)
class ToyFiles:
    """Where a written split lies.

    Attributes:
        folder: the folder that holds everything.
        images: folder of the JPEG files.
        instances: COCO instances.
        refs: RefCOCO's pickle; it refers to ``instances``.
        captions: RIC: the instances again, with captions on the images.
        num_images: number of scenes.
        num_objects: number of annotated shapes.
        num_sentences: number of referring sentences.
        num_captions: number of captions.
    """

    folder: Path
    images: Path
    instances: Path
    refs: Path
    captions: Path
    num_images: int
    num_objects: int
    num_sentences: int
    num_captions: int


def split_scene(
    split: str, number: int, *, seed: int, options: SceneOptions | None = None
) -> tuple[Scene, list[tuple[str, int]], list[str]]:
    """Scene ``number`` of a split, its referring sentences with their shapes, and its captions, without any file.

    Returns:
        The scene; ``(sentence, index of its shape)`` pairs; captions with ``<box_id: N/>`` tags of the ids that
        ``write_dataset`` gives.

    Raises:
        UserError: the split is unknown.
    """
    rng = scene_rng(seed, _split_number(split), number)
    scene = draw_scene(rng, options)
    sentences = [(each.text, each.shape) for each in choose_expressions(scene, rng)]
    ids = [_annotation_id(number, index) for index in range(len(scene.shapes))]
    return scene, sentences, grounded_captions(scene, ids, rng)


def write_dataset(
    out_dir: str | os.PathLike,
    *,
    scenes: int,
    seed: int,
    split: str,
    options: SceneOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> ToyFiles:
    """Write a split as ``images/*.jpg``, ``instances.json``, ``refs(toy).p`` and ``ric_instances.json``.

    The folder appears when it is complete. A folder that already holds this very split is left as it is.

    Args:
        out_dir: local folder to make.
        scenes: number of images.
        seed: together with the split and a scene's number it decides everything about the scene.
        split: one of ``SPLITS``.
        options: what scenes look like.
        progress: called with the number of scenes done, after each.

    Raises:
        UserError: a value is out of range, or the folder holds something else.
    """
    if scenes < 1 or seed < 0:
        raise UserError(f"scenes {scenes} and seed {seed} are not usable: give scenes >= 1 and seed >= 0.")
    out_dir, options = Path(out_dir), options or SceneOptions()
    info = {
        "description": f"toy: drawn shapes, {scenes} scenes of split {split}, seed {seed}, {options}",
        "version": _VERSION,
        "contributor": "padt prepare toy",
    }
    _split_number(split)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        return _already_there(out_dir, info)

    def fill(building: Path) -> None:
        (building / "images").mkdir(parents=True)
        instances, refs = _write_images(building / "images", info, scenes, seed, split, options, progress)
        captions = {image["id"]: image.pop("captions") for image in instances["images"]}
        _write_json(building / "instances.json", instances)
        with_captions = [{**image, "captions": captions[image["id"]]} for image in instances["images"]]
        _write_json(building / "ric_instances.json", {**instances, "images": with_captions})
        # Protocol 2 is what the published RefCOCO files use.
        (building / "refs(toy).p").write_bytes(pickle.dumps(refs, protocol=2))

    Folder(str(out_dir.absolute())).publish(fill, "instances.json")
    return _files(out_dir)


def _write_images(folder, info, scenes, seed, split, options, progress) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    sentence_id = 0
    for number in range(scenes):
        scene, sentences, captions = split_scene(split, number, seed=seed, options=options)
        file_name = f"{number:06d}.jpg"
        # Without chroma subsampling: on shapes of 30 pixels it would blur the colours that sentences speak of.
        Image.fromarray(scene.image).save(folder / file_name, quality=_QUALITY, subsampling=0)
        images.append(
            {
                "license": _LICENCE["id"],
                "file_name": file_name,
                "height": scene.height,
                "width": scene.width,
                "id": number + 1,
                "captions": captions,
            }
        )
        for index in range(len(scene.shapes)):
            annotation = _annotation(scene, number, index)
            annotations.append(annotation)
            ref = _ref(annotation, len(refs), sentence_id, split, [text for text, shape in sentences if shape == index])
            if ref["sentences"]:
                refs.append(ref)
                sentence_id += len(ref["sentences"])
        if progress is not None:
            progress(number + 1)
    instances = {
        "info": info,
        "licenses": [_LICENCE],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"supercategory": "shape", "id": _CATEGORY_IDS[name], "name": name} for name in CLASS_NAMES[options.classes]
        ],
    }
    return instances, refs


def _annotation(scene: Scene, number: int, index: int) -> dict[str, Any]:
    shape = scene.shapes[index]
    x0, y0, x1, y1 = shape.box
    return {
        "segmentation": rle.encode(shape.mask),
        "area": float(shape.area),
        "iscrowd": 0,
        "image_id": number + 1,
        "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
        "category_id": _CATEGORY_IDS[shape.category],
        "id": _annotation_id(number, index),
    }


def _ref(annotation, ref_id: int, first_sentence: int, split: str, texts: list[str]) -> dict[str, Any]:
    sentences = [
        {"tokens": text.split(), "raw": text.capitalize(), "sent_id": first_sentence + position, "sent": text}
        for position, text in enumerate(texts)
    ]
    number, ann_id = annotation["image_id"] - 1, annotation["id"]
    return {
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "file_name": f"{number:06d}_{ann_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": annotation["image_id"],
        "split": split,
        "sentences": sentences,
        "category_id": annotation["category_id"],
    }


def _annotation_id(number: int, index: int) -> int:
    return (number + 1) * _IDS_PER_IMAGE + index + 1


def _split_number(split: str) -> int:
    return look_up("Split", split, {name: number for number, name in enumerate(SPLITS)})


def _already_there(folder: Path, info: dict[str, str]) -> ToyFiles:
    instances = folder / "instances.json"
    if not instances.is_file() or json.loads(instances.read_text())["info"] != info:
        raise UserError(
            f"{folder} exists and does not hold this split ({info['description']}): "
            "give another folder, or delete this one."
        )
    return _files(folder)


def _files(folder: Path) -> ToyFiles:
    captions = json.loads((folder / "ric_instances.json").read_text())
    refs = pickle.loads((folder / "refs(toy).p").read_bytes())
    return ToyFiles(
        folder=folder,
        images=folder / "images",
        instances=folder / "instances.json",
        refs=folder / "refs(toy).p",
        captions=folder / "ric_instances.json",
        num_images=len(captions["images"]),
        num_objects=len(captions["annotations"]),
        num_sentences=sum(len(ref["sentences"]) for ref in refs),
        num_captions=sum(len(image["captions"]) for image in captions["images"]),
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")))
