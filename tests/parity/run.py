"""Runs every comparison on one fixture folder."""

import logging
import tempfile
from pathlib import Path

import torch

from padt.checkpoints.loading import load_model
from padt.errors import UserError
from tests.parity.decoder import compare_decoder
from tests.parity.fixture import Fixture
from tests.parity.generation import compare_generation
from tests.parity.language import compare_language
from tests.parity.parsing import compare_parsing
from tests.parity.table import Report
from tests.parity.training import compare_training
from tests.parity.vision import compare_vision

logger = logging.getLogger(__name__)

PARTS = (compare_vision, compare_language, compare_decoder, compare_training, compare_generation, compare_parsing)


def run_parity(root: str | Path) -> Report:
    """Load the fixture's weights through the front door, in fp32 on CPU, and compare everything that it holds.

    A part that raises is a failed line of the table, so that the others are still seen.

    Raises:
        UserError: the folder is no fixture, or its model does not load.
    """
    fixture = Fixture(root)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="padt-parity-") as folder:
        model = load_model(fixture.assemble_model(Path(folder)), dtype=torch.float32, device="cpu")
    report.part = "config"
    report.equal("order of features", model.config.feature_order, "reference")
    report.equal("id of the first VRT", model.config.vrt_offset, fixture.vocabulary)
    for compare in PARTS:
        try:
            compare(fixture, model, report)
        except (UserError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, OSError) as error:
            logger.exception("%s could not be compared", compare.__name__)
            report.fail(compare.__name__, f"raised {type(error).__name__}: {error}")
    return report
