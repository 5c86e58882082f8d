"""`padt export-data`: a prepared set in the formats of other tools."""

import logging

from pipelines.exports.base import Exported
from pipelines.exports.run import export_data

logger = logging.getLogger(__name__)


def run_export_data(url: str, out: str, *, to: str = "coco", images: bool = True) -> Exported:
    """Write a prepared set as COCO's JSON or as the released JSON lines.

    Args:
        url: folder of the set.
        out: folder to make.
        to: ``coco`` or ``released``.
        images: write the images too.

    Raises:
        UserError: see ``pipelines.exports.run.export_data``.
    """
    exported = export_data(url, out, to, images)
    for each in exported.lost:
        logger.warning("%s: %s", out, each)
    return exported
