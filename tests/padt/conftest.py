"""Models that the tests of the model library share. Treat them as constant: copy before changing a weight."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from padt.data.processor import PaDTProcessor
from padt.model.modeling import PaDTForConditionalGeneration
from tests.conftest import REPOSITORY, shared_path
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


@pytest.fixture(scope="session")
def toy_model() -> PaDTForConditionalGeneration:
    """The shipped toy model, which finds what a sentence describes in pictures of coloured shapes."""
    from padt.checkpoints.loading import load_model

    return load_model(REPOSITORY / "pipelines" / "toy" / "base", device="cpu")


@pytest.fixture
def shapes() -> Image.Image:
    """A red circle at (10, 12, 60, 62) and a blue square at (95, 70, 150, 125), on paper of 168x140 pixels."""
    picture = Image.new("RGB", (168, 140), (240, 240, 235))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((10, 12, 60, 62), fill=(214, 40, 40))
    pen.rectangle((95, 70, 150, 125), fill=(40, 90, 200))
    return picture
