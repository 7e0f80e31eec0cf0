"""What each process writes down about its part of a checkpoint: files in; the hashes of all processes' files out."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def receipt(rank: int) -> str:
    """Returns the name of the file in which a process says what it hashed."""
    return f"hashes-{rank:05d}.json"


def is_receipt(name: str) -> bool:
    """Whether a file of a checkpoint is a process's receipt."""
    return name.startswith("hashes-")


def merge_receipts(contents: Iterable[bytes]) -> dict[str, str]:
    """Returns the hash of every file of a checkpoint, by its name."""
    merged: dict[str, str] = {}
    for content in contents:
        merged |= json.loads(content)
    return merged


def hash_file(path: Path) -> str:
    """Returns a file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, values: Any) -> None:
    """Writes a file, through to the disk."""
    with path.open("w") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
