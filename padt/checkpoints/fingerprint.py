"""What tells one model folder from another: the content of its files."""

import hashlib
from pathlib import Path

# What makes up a model; pictures, markers and notes beside it may change freely.
MODEL_FILES = (".json", ".safetensors", ".jinja", ".txt", ".model")


def model_files(folder: Path) -> list[Path]:
    """The files that make a model, in the order of their names."""
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in MODEL_FILES)


def fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of a model's files; the same for a copy elsewhere."""
    digest = hashlib.sha256()
    for file in model_files(folder):
        with file.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{file.name}\0{content}\n".encode())
    return digest.hexdigest()
