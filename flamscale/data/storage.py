"""Bytes in and out of local folders and object stores (any fsspec URL), with atomic writes and retried requests.

In: a path or URL, and bytes. Out: bytes, or one sentence saying which URL failed and what to do. The object store's
address and keys come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...), as for every S3 client.
"""

import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)

from flamscale.errors import DataError

RETRY_TIMEOUT_S = 300.0
"""How long an object store may stay out of reach in mid-run before a read or write gives up (seconds)."""
FIRST_CONTACT_TIMEOUT_S = 15.0
"""How long it may stay out of reach when it is first asked for: a wrong address should be told soon (seconds)."""

_S3_OPTIONS = {
    "config_kwargs": {"retries": {"total_max_attempts": 1}},  # else it takes minutes to give up
    "use_listings_cache": False,  # else a file that came after its folder was listed would be taken for missing
}
_Result = TypeVar("_Result")
_Errors = tuple[type[Exception], ...]


def join(url: str, *parts: str) -> str:
    """Returns `url` with path parts appended, or the parts alone where they make a whole path or URL."""
    path = "/".join(parts)
    return path if path.startswith("/") or "://" in path else f"{url.rstrip('/')}/{path}"


def local_path(url: str) -> str | None:
    """Returns the path of a local file or folder, None for an object store."""
    fs, path = locate(url)
    return path if isinstance(fs, LocalFileSystem) else None


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the file system of a path or URL, and the path in it; raises DataError for a protocol it cannot speak."""
    options = _S3_OPTIONS if url.startswith(("s3://", "s3a://")) else {}
    try:
        return fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise DataError(f"Cannot open {url}: {error}; give a local path or a URL as s3://bucket/folder.") from error


def read_bytes(url: str, timeout_s: float | None = None) -> bytes:
    """Reads a whole file.

    Args:
        url: path or URL.
        timeout_s: how long to retry (seconds); RETRY_TIMEOUT_S if None.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it may not be read, or the store stayed out of reach.
    """
    return _attempt("read", url, lambda fs, path: fs.cat_file(path), timeout_s)


def read_range(url: str, offset: int, size_bytes: int, cancel: threading.Event | None = None) -> bytes:
    """Reads `size_bytes` bytes from `offset` on; fewer come back where the file ends early.

    Raises as `read_bytes`; once `cancel` is set, without further attempts.
    """

    def read(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
        if "s3" in fs.protocol:
            from flamscale.data.signed import read_signed  # slow to import, and of no use to local data

            content = read_signed(fs, path, offset, size_bytes)
            if content is not None:
                return content
        try:
            return fs.cat_file(path, start=offset, end=offset + size_bytes)
        except OSError as error:
            if error.errno == errno.EINVAL and offset >= fs.size(path):  # HTTP 416: the range starts past the end
                return b""
            raise

    return _attempt("read", url, read, cancel=cancel)


def download(url: str, file: str, cancel: threading.Event | None = None) -> None:
    """Copies a whole file to a local one, piece by piece; raises as `read_range`."""
    _attempt("read", url, lambda fs, path: fs.get_file(path, file), cancel=cancel)


def write_bytes(url: str, data: bytes, timeout_s: float | None = None) -> None:
    """Writes a whole file, creating its folder; readers see the old file or the new one, never a part.

    Raises:
        DataError: it may not be written, or the store stayed out of reach for `timeout_s` (RETRY_TIMEOUT_S if None).
    """

    def write(fs: fsspec.AbstractFileSystem, path: str) -> None:
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data)  # an object appears whole or not at all
            return
        with _replacing(path) as partial:
            fs.pipe_file(partial, data)

    _attempt("write", url, write, timeout_s)


def upload(file: str, url: str, cancel: threading.Event | None = None) -> None:
    """Copies a local file to `url`, piece by piece; readers see the old file or the new one, never a part.

    Once `cancel` is set, without further attempts.

    Raises:
        DataError: it may not be written, or the store stayed out of reach for RETRY_TIMEOUT_S.
    """

    def write(fs: fsspec.AbstractFileSystem, path: str) -> None:
        if not isinstance(fs, LocalFileSystem):
            fs.put_file(file, path)  # an object appears whole or not at all
            return
        with _replacing(path) as partial:
            fs.put_file(file, partial)

    _attempt("write", url, write, cancel=cancel)


def find(url: str, timeout_s: float | None = None) -> set[str]:
    """Returns the paths of all files under a folder, relative to it; none where it does not exist.

    Raises:
        DataError: it may not be read, or the store stayed out of reach for `timeout_s` (RETRY_TIMEOUT_S if None).
    """

    def read(fs: fsspec.AbstractFileSystem, path: str) -> set[str]:
        return {name.removeprefix(path).lstrip("/") for name in fs.find(path)}

    return _attempt("read", url, read, timeout_s)


def remove(url: str) -> None:
    """Deletes a file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        _attempt("delete", url, lambda fs, path: fs.rm_file(path))


def remove_folder(url: str) -> None:
    """Deletes a folder and all in it, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        _attempt("delete", url, lambda fs, path: fs.rm(path, recursive=True))


def check_writable(url: str) -> None:
    """Raises DataError unless files can be created under the folder `url`."""
    probe = join(url, f".write-test-{uuid.uuid4().hex}")
    write_bytes(probe, b"", FIRST_CONTACT_TIMEOUT_S)
    remove(probe)


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    """Yields the name of a file that takes the place of `path` in the end, unless the body fails."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def _attempt(
    verb: str,
    url: str,
    action: Callable[[fsspec.AbstractFileSystem, str], _Result],
    timeout_s: float | None = None,
    cancel: threading.Event | None = None,
) -> _Result:
    """Runs `action`; errors of an object store that may pass are retried with exponential back-off."""
    fs, path = locate(url)
    cancel = cancel or threading.Event()
    passing, _ = _store_errors(fs)
    retry = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, passing) or (bool(passing) and _busy(error))),
        wait=wait_random_exponential(multiplier=0.2, max=10.0),
        stop=stop_any(stop_when_event_set(cancel), stop_after_delay(timeout_s or RETRY_TIMEOUT_S)),
        sleep=sleep_using_event(cancel),
        reraise=True,
    )
    with explained(verb, url, fs):
        return retry(action, fs, path)


@contextlib.contextmanager
def explained(verb: str, url: str, fs: fsspec.AbstractFileSystem) -> Iterator[None]:
    """Turns every storage error of its body into a DataError that names `url`, but a missing file to be read."""
    passing, lasting = _store_errors(fs)
    known: _Errors = (OSError, *passing, *lasting)
    try:
        yield
    except known as error:
        if isinstance(error, FileNotFoundError):
            if verb != "write":
                raise
            reason = "its bucket or drive does not exist; create it first."
        elif isinstance(error, PermissionError):
            reason = "permission denied; check the folder's rights or the object store's keys."
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            reason = "the disk is full; free some space or choose another folder."
        else:
            reason = f"{error}; check that the address is right and reachable."
        raise DataError(f"Cannot {verb} {url}: {reason}") from error


def _busy(error: BaseException) -> bool:
    """Whether an OSError stands for a busy or failing server (HTTP 5xx), as s3fs translates it."""
    return isinstance(error, OSError) and error.errno in (errno.EIO, errno.EBUSY, errno.EREMOTEIO)


def _store_errors(fs: fsspec.AbstractFileSystem) -> tuple[_Errors, _Errors]:
    """Returns an object store client's own errors: those that may pass, and those that will not. Local: none."""
    if isinstance(fs, LocalFileSystem):
        return (), ()
    from aiohttp import ClientError as HttpError  # both slow to import, and of no use to local data
    from botocore import exceptions as boto

    passing = (boto.HTTPClientError, boto.ConnectionError, ConnectionError, TimeoutError, HttpError)
    return passing, (boto.BotoCoreError, boto.ClientError)
