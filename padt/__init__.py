"""PaDT: a multimodal model that answers with pieces of the picture.

The front doors are :func:`load_model` and the Hugging Face classes. Names are resolved on first use, so that
``import padt`` costs nothing; only torch, transformers, numpy and Pillow are needed.

``AutoConfig``, ``AutoModelForImageTextToText`` and ``AutoProcessor`` of transformers serve our own saves once PaDT is
registered with them: by ``import padt`` where transformers has been imported before, else by the first use of any name
of this package but ``Prediction`` (which needs neither torch nor transformers), such as ``padt.register()``.
Without that they open a folder with ``trust_remote_code=True`` (``padt.pretrained.auto_code``).
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from padt.checkpoints.export import export as export
    from padt.checkpoints.loading import load_model as load_model
    from padt.checkpoints.loading import save_model as save_model
    from padt.data.processor import PaDTProcessor as PaDTProcessor
    from padt.data.processor import load_processor as load_processor
    from padt.inference.results import Prediction as Prediction
    from padt.model.modeling import PaDTForConditionalGeneration as PaDTForConditionalGeneration
    from padt.model.modeling import register as register
    from padt.pretrained.config import PaDTConfig as PaDTConfig

__version__ = "0.1.0"

_HOMES = {
    "PaDTConfig": "padt.pretrained.config",
    "PaDTForConditionalGeneration": "padt.model.modeling",
    "PaDTProcessor": "padt.data.processor",
    "Prediction": "padt.inference.results",
    "export": "padt.checkpoints.export",
    "load_model": "padt.checkpoints.loading",
    "load_processor": "padt.data.processor",
    "register": "padt.model.modeling",
    "save_model": "padt.checkpoints.loading",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'padt' has no attribute {name!r}")
    if name != "Prediction":
        import_module("padt.model.modeling").register()
    return getattr(import_module(_HOMES[name]), name)


# Who has imported transformers has paid for torch already, and may ask its auto classes next.
if "transformers.models.auto.modeling_auto" in sys.modules:
    import_module("padt.model.modeling").register()
