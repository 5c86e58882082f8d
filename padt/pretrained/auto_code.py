"""What lets transformers' auto classes open a folder in a process that has not imported padt: ``trust_remote_code``.

A folder's ``config.json`` and processor files name, under ``auto_map``, classes of a small file beside them. The file
holds no code of the model: it takes the classes from the installed package, and says what to install without it.
"""

import json
from pathlib import Path

CODE_FILE = "padt_auto.py"
_MODULE = Path(CODE_FILE).stem
_MODEL = f"{_MODULE}.PaDTForConditionalGeneration"
_PROCESSOR = {"AutoProcessor": f"{_MODULE}.PaDTProcessor"}
AUTO_MAPS = {
    "config.json": {
        "AutoConfig": f"{_MODULE}.PaDTConfig",
        "AutoModel": _MODEL,
        "AutoModelForImageTextToText": _MODEL,
    },
    "processor_config.json": _PROCESSOR,
    "preprocessor_config.json": _PROCESSOR,
}
"""What each file of a folder names, where the folder has it."""
# Transformers looks for missing packages outside of `try`, and would say `pip install padt`: no index has it.
_CODE = '''"""Lets transformers' auto classes find PaDT; their code is the package `padt` (PaDT on Ray)."""

try:
    from padt import PaDTConfig, PaDTForConditionalGeneration, PaDTProcessor
except ImportError as error:
    raise ImportError(
        "This folder holds a PaDT model, whose code is the Python package `padt` of PaDT on Ray, and that is not "
        "installed here: run `pip install .` in a checkout of PaDT on Ray. It is on no package index."
    ) from error

__all__ = ["PaDTConfig", "PaDTForConditionalGeneration", "PaDTProcessor"]
'''


def add_auto_code(folder: str | Path) -> None:
    """Let the auto classes open a folder: name our classes in those of its files that it has, and write the code file.

    What a file names already under ``auto_map`` is replaced: it would be of another folder, or of the Hub.
    """
    folder = Path(folder)
    for name, classes in AUTO_MAPS.items():
        file = folder / name
        if file.is_file():
            values = {**json.loads(file.read_text(encoding="utf-8")), "auto_map": classes}
            file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CODE_FILE).write_text(_CODE, encoding="utf-8")
