"""Arrays that pip packages ship as pickles: a file with a known checksum in, its nested dict of NumPy arrays out.

Nothing but arrays is ever unpickled, so that no file can run code; the package itself is not imported.
"""

import hashlib
import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any

from flamscale.errors import CheckpointError, ConfigError

ALLOWED = {"numpy": ("ndarray", "dtype"), "numpy.core.multiarray": ("_reconstruct",)}


def find_in_package(package: str, file: str, kind: str, install: str) -> Path:
    """Returns a file inside an installed package; raises ConfigError, which tells how to install it, if it is not.

    Args:
        package: as it would be imported.
        file: path inside the package.
        kind: whose weights are wanted, for messages.
        install: the command that installs the package, for messages.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"The {kind} weights come with {package.replace('_', '-')}, which is not installed; {install}, or "
            f"--checkpoint."
        )
    return Path(spec.submodule_search_locations[0]) / file


def read_pickled_arrays(path: Path, sha256: str, kind: str, origin: str, install: str) -> dict[str, Any]:
    """Returns the arrays of a file.

    Args:
        path: the file.
        sha256: checksum it must have (hex).
        kind: whose weights are wanted, for messages.
        origin: which file of which package it should be, for messages.
        install: the command that installs the package, for messages.

    Raises:
        ConfigError: the file cannot be read.
        CheckpointError: it has another checksum, or holds anything but arrays.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Expected {kind} weights at {path}, found none ({error.strerror}); {install}.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CheckpointError(
            f"Expected {origin} (sha256 {sha256[:12]}) in {path}, found another or a damaged file ({found[:12]}); "
            f"{install}."
        )
    return _ArrayUnpickler(content, install).load()


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, install: str) -> None:
        super().__init__(io.BytesIO(content))
        self._install = install

    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(
            f"Expected nothing but NumPy arrays in the .ckpt, found {module}.{name}; {self._install}."
        )
