"""Where camera sources find their files: --input in; paths or URLs out, in order of name."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from flamscale.data import storage
from flamscale.errors import DataError

_COPY_BYTES = 2**25  # how much of a remote file is fetched at a time


def expand(entry: str) -> list[str]:
    """Returns the entries of a .txt list (one path or URL a line, # for a comment), any other entry as it is."""
    if PurePosixPath(entry).suffix.lower() != ".txt":
        return [entry]
    try:
        lines = storage.read_bytes(entry).decode().splitlines()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DataError(
            f"Expected a text file with one path or URL a line at {entry}, which cannot be read ({error}): check "
            f"--input."
        ) from error
    entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [absolute(entry) for entry in entries]


def absolute(place: str) -> str:
    """Returns a URL as it is and a path as one that does not depend on the working folder."""
    return place if "://" in place else os.path.abspath(place)


def find_files(entry: str) -> list[tuple[str, int]]:
    """Returns (path or URL, bytes) of a file, or of all files under a folder, in order of name."""
    fs, path = storage.locate(entry)
    with storage.explained("read", entry, fs):
        if fs.isfile(path):
            return [(_full(fs, path), fs.size(path))]
        found = fs.find(path, detail=True)
    return [(_full(fs, name), int(item["size"] or 0)) for name, item in sorted(found.items())]


def find_folders(entry: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (path or URL, file names) of a folder and all its subfolders, without holding all names at once."""
    fs, path = storage.locate(entry)
    with storage.explained("read", entry, fs):
        for folder, _, names in fs.walk(path):
            if names:
                yield _full(fs, folder), sorted(names)


@contextlib.contextmanager
def local_file(url: str) -> Iterator[str]:
    """Gives a local path to a file: its own, or that of a copy which lasts as long as the block.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it may not be read, or the store stayed out of reach.
    """
    fs, path = storage.locate(url)
    if isinstance(fs, LocalFileSystem):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=PurePosixPath(path).suffix) as copy:
        with storage.explained("write", copy.name, LocalFileSystem()):
            offset = 0
            while True:
                content = storage.read_range(url, offset, _COPY_BYTES)
                copy.write(content)
                offset += len(content)
                if len(content) < _COPY_BYTES:
                    break
            copy.flush()
        yield copy.name


def _full(fs: AbstractFileSystem, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path)
