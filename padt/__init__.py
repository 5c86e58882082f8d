"""PaDT: a multimodal model that answers with pieces of the picture.

The front doors are :func:`load_model` and the Hugging Face classes. Names are resolved on first use, so that
``import padt`` costs nothing; only torch, transformers, numpy and Pillow are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from padt.config import PaDTConfig as PaDTConfig
    from padt.loading import load_model as load_model
    from padt.loading import load_processor as load_processor
    from padt.model.modeling import PaDTForConditionalGeneration as PaDTForConditionalGeneration
    from padt.processor import PaDTProcessor as PaDTProcessor

__version__ = "0.1.0"

_HOMES = {
    "PaDTConfig": "padt.config",
    "PaDTForConditionalGeneration": "padt.model.modeling",
    "PaDTProcessor": "padt.processor",
    "load_model": "padt.loading",
    "load_processor": "padt.loading",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'padt' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
