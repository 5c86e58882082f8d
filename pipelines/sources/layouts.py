"""What a JSON file is that was given where COCO's instances belong: told by its keys, with what to do about it."""

from collections.abc import Collection
from typing import Any

_EXPORT = "export the project in COCO's format there"

# Keys of the object that the file is; the first line whose keys are all there counts.
_OBJECTS = (
    ({"shapes", "imagePath"}, f"It looks like LabelMe's or X-AnyLabeling's file of a single picture: {_EXPORT}."),
    ({"_via_img_metadata"}, f"It looks like a project of VIA: {_EXPORT} (Annotation, Export Annotations)."),
    ({"_via_settings"}, f"It looks like a project of VIA: {_EXPORT} (Annotation, Export Annotations)."),
    ({"conversations"}, "It looks like the JSON lines of PaDT's authors: use `padt prepare released`."),
    ({"answer_template"}, "It looks like the JSON lines of PaDT's authors: use `padt prepare released`."),
    ({"metainfo", "data_list"}, "It looks like MMEngine's own layout: take the COCO file that it was made from."),
    ({"items", "categories"}, "It looks like Datumaro's layout: convert it (`datum convert -f coco_instances`)."),
    ({"item", "annotations"}, f"It looks like a file of V7 Darwin: {_EXPORT}."),
    ({"image", "annotations"}, f"It looks like a file of V7 Darwin: {_EXPORT}."),
    ({"classes", "labels"}, "It looks like FiftyOne's labels: export them as COCODetectionDataset."),
    ({"type", "features"}, "It looks like GeoJSON: convert it to COCO's format, in pixels of the pictures."),
)
# Keys of the first entry of the list that the file is.
_LISTS = (
    ({"image_id", "category_id"}, "It looks like COCO results, the answers of a model: give the instances JSON."),
    ({"sentences"}, "It looks like references: give it as --references, beside the instances JSON."),
    ({"conversations"}, "It looks like conversations: use `padt prepare messages`."),
    ({"messages"}, "It looks like conversations: use `padt prepare messages`."),
    ({"data", "annotations"}, f"It looks like Label Studio's own JSON: {_EXPORT}."),
    ({"data", "completions"}, f"It looks like Label Studio's own JSON: {_EXPORT}."),
    ({"image", "annotations"}, "It looks like CreateML's layout: convert it to COCO's."),
    ({"data_row"}, f"It looks like Labelbox's own JSON: {_EXPORT}."),
    ({"segments_info"}, "It looks like panoptic segments: give the instances JSON."),
)
PANOPTIC = "It is a panoptic file, whose objects are drawn in pictures of their own: give instances_*.json."


def object_hint(sections: Collection[str], first: Any = None) -> str:
    """What the JSON object with these keys is, with a blank before it; empty where that cannot be told.

    Args:
        sections: its keys.
        first: first entry of its ``annotations``, or value of its first key.
    """
    held = set(sections)
    if isinstance(first, dict) and {"filename", "regions"} <= set(first):
        return f" It looks like annotations of VIA: {_EXPORT} (Annotation, Export Annotations)."
    drawn = isinstance(first, dict) and {"bbox", "segmentation"} & set(first)
    if {"images", "annotations"} <= held and not drawn:
        return " It looks like a captions file: give it as --captions, beside the instances JSON."
    return next((f" {hint}" for keys, hint in _OBJECTS if keys <= held), "")


def list_hint(first: Any) -> str:
    """What the JSON list with this first entry is, with a blank before it; empty where that cannot be told."""
    held = set(first) if isinstance(first, dict) else set()
    return next((f" {hint}" for keys, hint in _LISTS if keys <= held), "")
