"""A run's copy in an object store: files of the run directory in; the same files under a URL out, behind training.

A folder counts through one file in it (meta.json of a checkpoint), which goes up last and is deleted first: a process
killed at any moment leaves no half checkpoint that would be taken for a whole one. While the store is out of reach,
training goes on, the local files stay, and copying is tried again.
"""

import logging
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flamscale.data import storage
from flamscale.errors import DataError
from flamscale.training.retention import META, Retention, delete, step_of

_LOG = logging.getLogger(__name__)
_COMMITTING = (META, "tokenizer.json")
_PAUSE_S = 10.0  # from a failure to the next attempt


@dataclass(frozen=True)
class Job:
    """A file or folder of the run directory to copy."""

    path: Path
    retention: Retention | None = None
    """What else is kept in the folder of a checkpoint."""


class Mirror:
    """The copy of one run directory; one process of a run has one.

    Args:
        root: the run directory.
        url: where its copy lies, a folder in an object store.
        along: files and folders that are copied with every checkpoint.
    """

    def __init__(self, root: Path, url: str, along: Iterable[Path] = ()) -> None:
        self.root = Path(root)
        self.url = url
        self._along = [Job(path) for path in along]
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._sending: Job | None = None
        self._doomed: set[Path] = set()
        self._closed = False
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None

    def send(self, *paths: Path) -> None:
        """Copies files and folders of the run directory, some time after it returns."""
        self._add([Job(path) for path in paths])

    def send_checkpoint(self, path: Path, retention: Retention) -> None:
        """Copies a committed checkpoint, then drops what is no longer kept in the store."""
        self._add([*self._along, Job(path, retention)])  # or a run that goes on from it could lack its last records

    def delete(self, checkpoint: Path) -> None:
        """Deletes a checkpoint here and does not copy it any more; one that is being copied goes when that is done."""
        with self._changed:
            self._waiting = deque(job for job in self._waiting if job.path != checkpoint)
            if self._sending is not None and self._sending.path == checkpoint:
                self._doomed.add(checkpoint)
                return
        delete(checkpoint)

    def wait(self) -> None:
        """Returns once all that is to be copied is; tries for as long as it takes."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and self._sending is None)

    def close(self, timeout_s: float) -> list[str]:
        """Waits for all that is to be copied.

        Args:
            timeout_s: after which it gives up (seconds).

        Returns:
            Names of what could not be copied, relative to the run directory.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._cancel.set()
            self._thread.join(1.0)
        with self._changed:
            left = [job for job in (self._sending, *self._waiting) if job is not None]
        return [str(job.path.relative_to(self.root)) for job in left]

    def files(self) -> set[str]:
        """Returns the paths of all files of the copy, relative to its folder."""
        return storage.find(self.url, storage.FIRST_CONTACT_TIMEOUT_S)

    def newest_checkpoint(self, folder: str, files: set[str]) -> int | None:
        """Returns the step of the newest committed checkpoint in a folder of the copy.

        Args:
            folder: its path in the copy.
            files: of the copy.
        """
        return max(_committed(PurePosixPath(file).relative_to(folder) for file in _below(folder, files)), default=None)

    def fetch(self, name: str, files: set[str]) -> None:
        """Brings a file or folder of the copy back to the run directory, whole or not at all.

        Args:
            name: its path in the copy.
            files: of the copy.

        Raises:
            DataError: the store stayed out of reach, or a name leads out of the run directory.
        """
        target = self.root / name
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for file in [name] if name in files else sorted(_below(name, files)):
            if ".." in PurePosixPath(file).parts:
                raise DataError(f"{self.url} holds {file}, which would lead out of {self.root}; delete it there.")
            local = partial / PurePosixPath(file).relative_to(name)
            local.parent.mkdir(parents=True, exist_ok=True)
            storage.download(storage.join(self.url, file), str(local))
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(partial, target)

    def _add(self, jobs: list[Job]) -> None:
        with self._changed:
            self._waiting.extend(job for job in jobs if job not in self._waiting)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                job = self._sending = self._waiting.popleft()
            try:
                self._copy(job)
                failed = False
            except DataError as error:
                failed = True
                _LOG.warning("%s The run goes on; copying %s is tried again.", error, job.path.name)
            with self._changed:
                self._sending = None
                if job.path in self._doomed:
                    self._doomed.remove(job.path)
                    delete(job.path)
                elif failed:
                    self._put_back(job)
                self._changed.notify_all()
            if failed and self._cancel.wait(_PAUSE_S):
                return

    def _put_back(self, job: Job) -> None:
        """Has a job that failed tried again."""
        self._waiting.append(job)  # what came meanwhile is newer, and goes first

    def _copy(self, job: Job) -> None:
        files = [job.path] if job.path.is_file() else sorted(path for path in job.path.rglob("*") if path.is_file())
        committing = [file for file in files if file.name in _COMMITTING]
        if committing and all(map(self._has, committing)):
            return
        for file in committing:
            storage.remove(self._url(file))
        for file in [file for file in files if file not in committing] + committing:
            storage.upload(str(file), self._url(file), self._cancel)
        if job.retention is not None:
            self._drop_old(job.path.parent, job.retention)

    def _drop_old(self, folder: Path, retention: Retention, rests: bool = True) -> None:
        """Deletes checkpoints that are not kept from the store and, if `rests`, those that were never committed."""
        url = self._url(folder)
        files = {PurePosixPath(file) for file in storage.find(url)}
        committed = _committed(files)
        dropped = retention.drops(committed)
        for name in sorted({file.parts[0] for file in files}):
            step = step_of(name)
            if step is not None and (step in dropped or (rests and step not in committed)):
                storage.remove(storage.join(url, name, META))
                storage.remove_folder(storage.join(url, name))

    def _has(self, file: Path) -> bool:
        """Whether the copy has the same file."""
        try:
            return storage.read_bytes(self._url(file)) == file.read_bytes()
        except FileNotFoundError:
            return False

    def _url(self, path: Path) -> str:
        return storage.join(self.url, path.relative_to(self.root).as_posix())


def _below(folder: str, files: Iterable[str]) -> list[str]:
    return [file for file in files if file.startswith(f"{folder}/")]


def _committed(files: Iterable[PurePosixPath]) -> set[int]:
    """Returns the steps of the checkpoints that are whole, of files relative to the folder of checkpoints."""
    steps = {step_of(file.parts[0]) for file in files if file.parts[1:] == (META,)}
    return {step for step in steps if step is not None}
