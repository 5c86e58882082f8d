"""Objects365: boxes without masks in COCO's layout, with the repairs that its published files need.

What is known to be wrong with them, and where it is put right:

- names of categories are misspelt or oddly spaced: here;
- width and height of many images are those before the EXIF orientation: ``pipelines.prepare.rows`` measures the image;
- images are missing or cut off: they are rejected one by one;
- files are listed as ``images/v1/patch0/NAME.jpg`` and unpack to ``patch0/NAME.jpg``: ``pipelines.images.contents``
  finds both;
- ``isfake`` marks drawn or printed objects, and ``iscrowd`` groups: groups are kept as crowds, and fakes are kept
  unless they are not wanted.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.dataset.manifest import Category
from pipelines.sources.base import Header, Piece, Reject, annotation_id
from pipelines.sources.coco import CocoSource

# Words of the published names that are misspelt, in lower case.
_MISSPELT = {
    "bakset": "basket",
    "ballon": "balloon",
    "billards": "billiards",
    "buttefly": "butterfly",
    "campel": "camel",
    "dinning": "dining",
    "extention": "extension",
    "hamimelon": "hami melon",
    "hotair": "hot air",
    "measur": "measure",
    "moniter": "monitor",
    "mushroon": "mushroom",
    "noddles": "noodles",
    "teniis": "tennis",
}
# Whole names that are two words where English has one.
_SPLIT = {"meat ball": "meatball", "tea pot": "teapot"}
_WORD = re.compile(r"[A-Za-z]+")
_FAKE = re.compile(r'"isfake"\s*:\s*(?:1|true)\b')


@dataclass(frozen=True)
class Objects365Source:
    """Images and boxes of an Objects365 JSON (``zhiyuan_objv2_train.json`` and its kin).

    Attributes:
        annotations: URL of the JSON.
        drop_fakes: leave out objects that are marked as drawn or printed (``isfake``).
    """

    annotations: str
    drop_fakes: bool = False

    def files(self) -> list[tuple[str, str]]:
        """See ``Source``."""
        return self._boxes.files()

    def header(self) -> Header:
        """See ``Source``."""
        header = self._boxes.header()
        header.categories, renamed = mended(header.categories)
        header.repairs += Counter(category_renamed=renamed)
        return header

    def pieces(self) -> Iterator[Piece | Reject]:
        """See ``Source``."""
        for piece in self._boxes.pieces():
            if self.drop_fakes and isinstance(piece, Piece) and _FAKE.search(piece.text):
                ann_id = annotation_id(json.loads(piece.text).get("id"))
                yield Reject(piece.image_id, "object", "object_fake", "", ann_id)
            else:
                yield piece

    @property
    def _boxes(self) -> CocoSource:
        return CocoSource(self.annotations)


def mended(categories: Sequence[Category]) -> tuple[list[Category], int]:
    """Categories with their names spelt right, and how many had to be changed."""
    right = [Category(category.id, mended_name(category.name)) for category in categories]
    return right, sum(new != old for new, old in zip(right, categories, strict=True))


def mended_name(name: str) -> str:
    """A published category name, spelt and spaced right, with its own capitals: ``Tape Measur/ Ruler`` and the like."""
    spaced = re.sub(r"\s*/\s*", "/", " ".join(name.split()))
    spelt = _WORD.sub(lambda word: _as_written(word.group(), _MISSPELT), spaced)
    return _as_written(spelt, _SPLIT)


def _as_written(text: str, table: dict[str, str]) -> str:
    found = table.get(text.lower())
    if found is None:
        return text
    return found[0].upper() + found[1:] if text[0].isupper() else found
