"""What a data set in the making has so far: OUT/.making, gone once the data set is complete.

Records (JSON) say what is done; each is one atomic write after the work it stands for, so that a kill at any moment
loses at most the pieces of work it hit.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from flamscale.data import storage
from flamscale.errors import ConfigError, DataError

_FOLDER = ".making"
_JOB = "job.json"


@dataclass(frozen=True, kw_only=True)
class WorkFolder:
    """The folder .making of one data set."""

    out: str
    """Folder or URL of the data set."""

    def url(self, *parts: str) -> str:
        """Returns the address of a file in the folder."""
        return storage.join(self.out, _FOLDER, *parts)

    def begin(self, job: dict[str, Any]) -> None:
        """Begins, or continues what was begun with the same `job`.

        Raises:
            ConfigError: another job was begun here.
            DataError: nothing can be written there.
        """
        try:
            begun = json.loads(storage.read_bytes(self.url(_JOB), storage.FIRST_CONTACT_TIMEOUT_S))
        except FileNotFoundError:
            storage.write_bytes(self.url(_JOB), json.dumps(job).encode(), storage.FIRST_CONTACT_TIMEOUT_S)
            return
        wanted = json.loads(json.dumps(job))
        different = sorted(name for name in begun.keys() | wanted.keys() if begun.get(name) != wanted.get(name))
        if different:
            was, now = ({name: state.get(name) for name in different} for state in (begun, wanted))
            raise ConfigError(
                f"{self.out} holds a data set half made with other {' and '.join(different)} ({was}, now {now}): start "
                f"again as it was begun to finish it, choose another --out, or delete {self.url()} to start anew."
            )

    def commit(self, stage: str, name: str, record: dict[str, Any]) -> None:
        """Writes the record that a piece of work is done."""
        storage.write_bytes(self.url(stage, f"{name}.json"), json.dumps(record).encode())

    def records(self, stage: str) -> dict[str, dict[str, Any]]:
        """Returns the records of a stage by the names they were committed under."""
        fs, path = storage.locate(self.url(stage))
        with storage.explained("read", self.url(stage), fs):
            names = [name for name in fs.find(path) if name.endswith(".json")]
            contents: dict[str, bytes] = fs.cat(names) if names else {}
        return {PurePosixPath(name).stem: json.loads(content) for name, content in sorted(contents.items())}

    def remove(self) -> None:
        """Deletes the folder with all that is in it."""
        fs, path = storage.locate(self.url())
        with contextlib.suppress(FileNotFoundError), storage.explained("delete", self.url(), fs):
            fs.rm(path, recursive=True)


def read_pieces(pieces: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Reads many (url, offset, size), in order; neighbours in one file come by one request."""
    contents: list[bytes] = []
    first = 0
    for last in range(len(pieces)):
        url, offset, _ = pieces[first]
        _, end, size = pieces[last]
        if last + 1 == len(pieces) or pieces[last + 1][0] != url or pieces[last + 1][1] < end:
            content = storage.read_range(url, offset, end + size - offset)
            if len(content) != end + size - offset:
                raise DataError(f"Expected {end + size} bytes in {url}, found fewer: delete its folder and start anew.")
            contents += [content[start - offset :][:count] for _, start, count in pieces[first : last + 1]]
            first = last + 1
    return contents
