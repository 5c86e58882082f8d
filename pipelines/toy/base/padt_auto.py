"""Lets transformers' auto classes find PaDT; their code is the package `padt` (PaDT on Ray)."""

try:
    from padt import PaDTConfig, PaDTForConditionalGeneration, PaDTProcessor
except ImportError as error:
    raise ImportError(
        "This folder holds a PaDT model, whose code is the Python package `padt` of PaDT on Ray, and that is not "
        "installed here: run `pip install .` in a checkout of PaDT on Ray. It is on no package index."
    ) from error

__all__ = ["PaDTConfig", "PaDTForConditionalGeneration", "PaDTProcessor"]
