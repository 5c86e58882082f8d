"""A prepared set in other formats: COCO's JSON (with RefCOCO's and RIC's additions), or the released JSON lines.

Rows are streamed: what is held in memory is one row group, whatever the size of the set.
"""

from padt.errors import ImageError, UserError, look_up
from pipelines.dataset.manifest import open_set
from pipelines.exports.base import Exported, ExportedSet, images_of_row
from pipelines.exports.coco import write_coco
from pipelines.exports.released import write_released
from pipelines.io.images import read_image
from pipelines.io.storage import Folder

FORMATS = {"coco": write_coco, "released": write_released}


def export_data(url: str, out: str, to: str = "coco", images: bool = True) -> Exported:
    """Write a prepared set in another format.

    ``coco``: ``instances.json``, where there are such ``captions.json`` (COCO's) or captions in ``instances.json``
    (RIC's, with tags), and ``refs.p`` (RefCOCO's). Ids are those of the set; an image id that is a whole number is
    written as one. ``released``: ``ovd.jsonl``, ``rec.jsonl`` and ``ric.jsonl``, one question in each line, and
    ``chat.jsonl`` for conversations.

    Args:
        url: folder of the set.
        out: folder to make; any URL that fsspec opens.
        to: one of ``FORMATS``.
        images: write the images to ``images/``; otherwise the files only name them.

    Raises:
        UserError: there is no finished set, ``out`` holds something, the format is unknown or cannot hold the set, or
            an image cannot be read.
    """
    write = look_up("Format", to, FORMATS)
    manifest, folder = open_set(url), Folder(out)
    if (
        folder.path() == Folder(url).path()
        or folder.names()
        or (folder.exists() and not folder.fs.isdir(folder.path()))
    ):
        raise UserError(f"{out} exists and is not empty: give a new folder as --out.")
    if manifest.counts.conversations and to == "coco":
        raise UserError(f"{url} holds conversations, for which COCO's format has no place: use --to released.")
    source, exported = ExportedSet(url, manifest), Exported(out)
    if images:
        exported.files["images/"] = _write_images(source, folder)
    write(source, folder, exported)
    return exported


def _write_images(source: ExportedSet, folder: Folder) -> int:
    written: set[str] = set()
    for row in source.rows("image.bytes", "more_images"):
        for image, name in zip(images_of_row(row), source.file_names(row), strict=True):
            # Many conversations may be about one picture.
            if name in written:
                continue
            content = image["bytes"]
            if content is None:
                try:
                    content = read_image(image["path"])
                except ImageError as error:
                    raise UserError(f"The image of {row['key']} cannot be read ({error}): mend its place.") from error
            folder.write(f"images/{name}", content)
            written.add(name)
    return len(written)
