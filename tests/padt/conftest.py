"""Models that the tests of the model library share. Treat them as constant: copy before changing a weight."""

from pathlib import Path

import pytest

from padt.model.modeling import PaDTForConditionalGeneration
from padt.processor import PaDTProcessor
from tests.conftest import shared_path
from tests.padt.tiny import released_model, tiny_model, tiny_processor


@pytest.fixture(scope="session")
def random_model() -> PaDTForConditionalGeneration:
    """A random tied model in raster order, whose answers hold many VRTs."""
    return tiny_model()


@pytest.fixture(scope="session")
def trained_model(tmp_path_factory: pytest.TempPathFactory) -> PaDTForConditionalGeneration:
    """The reference fixture's model, whose answers make sense; skipped where the fixture is missing."""
    return released_model(shared_path("reference/fixture"), tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="session", params=["random", "trained"])
def model(request: pytest.FixtureRequest) -> PaDTForConditionalGeneration:
    """Both models, one after the other."""
    return request.getfixturevalue(f"{request.param}_model")


@pytest.fixture(scope="session")
def processor() -> PaDTProcessor:
    """The random model's processor."""
    return tiny_processor()


@pytest.fixture
def fixture_images() -> Path:
    """Pictures of the reference fixture."""
    return shared_path("reference/fixture") / "images"
