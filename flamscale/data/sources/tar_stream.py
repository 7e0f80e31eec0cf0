"""A tar's bytes in, front to back and once; its members out, with what damage leaves of them.

The standard library's reader stops at the first header it cannot read, and all behind it is lost. This one goes on at
the next block that is a header, so that a damaged header hides its own member and no other.
"""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK = tarfile.BLOCKSIZE
_CHUNK_BYTES = 1 << 20
_MAX_EXTENSION_BYTES = 1 << 20  # of a long name or of extended attributes


@dataclass(frozen=True)
class Member:
    """One file in a tar."""

    name: str
    offset: int
    """First byte of its content in the tar."""
    size: int
    """Bytes its header announces."""
    content: bytes | None
    """Its bytes, where they were wanted and the tar has them all."""
    complete: bool
    """Whether the tar has them all."""


class TarStream:
    """Iterates over the regular files of an uncompressed tar.

    Args:
        file: the tar, read from its present position to its end.
        wanted: says by name whose content to keep.

    Attributes:
        size_bytes: bytes read so far.
        num_damaged: places where a header should be and none can be read.
    """

    def __init__(self, file: BinaryIO, wanted: Callable[[str], bool]) -> None:
        self.size_bytes = 0
        self.num_damaged = 0
        self._file = file
        self._wanted = wanted
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Checksum (hex) of what was read so far."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[Member]:
        name, size = "", None  # what an extension header says of the member that follows it
        for header in self._headers():
            if header is None:  # a damaged one: what was said before it is about a member that cannot be found
                name, size = "", None
            elif header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                content = self._read_padded(min(header.size, _MAX_EXTENSION_BYTES))
                self._skip(header.size - len(content))
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    name = _text(content.rstrip(b"\0"))
                else:
                    records = _pax_records(content)
                    name = _text(records.get(b"path", b""))
                    size = int(records[b"size"]) if records.get(b"size", b"").isdigit() else None
            else:
                size = header.size if size is None else size
                if header.isreg():
                    yield self._read_member(name or header.name, size)
                elif header.type not in tarfile.SUPPORTED_TYPES or header.type == tarfile.GNUTYPE_LONGLINK:
                    self._skip(size)  # folders and links have a size at times, but no content
                name, size = "", None

    def _read_member(self, name: str, size: int) -> Member:
        offset = self.size_bytes
        if not self._wanted(name):
            self._skip(size)
            return Member(name, offset, size, None, self.size_bytes >= offset + size)
        content = self._read_padded(size)
        return Member(name, offset, size, content if len(content) == size else None, len(content) == size)

    def _headers(self) -> Iterator[tarfile.TarInfo | None]:
        """Yields every header, and None once for each stretch of blocks that should begin with one and does not."""
        lost = False
        while len(block := self._read(_BLOCK)) == _BLOCK:
            if not block.strip(b"\0"):
                continue  # the end of the archive, or of the first of several put together
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
            except tarfile.HeaderError:
                header = None
            plain = header is not None and header.size >= 0
            if plain and (not lost or block[257:262] == b"ustar"):  # content may look like a header without this mark
                lost = False
                yield header
            elif not lost:
                lost = True
                self.num_damaged += 1
                yield None
        if block and not lost:
            self.num_damaged += 1

    def _read(self, size: int) -> bytes:
        """Reads `size` bytes, or what is left."""
        parts = []
        while size and (part := self._file.read(min(size, _CHUNK_BYTES))):
            self._digest.update(part)
            self.size_bytes += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _read_padded(self, size: int) -> bytes:
        """Reads content and what fills up its last block."""
        content = self._read(size)
        self._read(-size % _BLOCK)
        return content

    def _skip(self, size: int) -> None:
        """Reads past content without keeping it."""
        left = size + -size % _BLOCK
        while left and (part := self._read(min(left, _CHUNK_BYTES))):
            left -= len(part)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """Reads "length keyword=value" lines of an extended header, up to the first that makes no sense."""
    records = {}
    while content:
        digits, _, _ = content.partition(b" ")
        if not digits.isdigit() or not len(digits) < int(digits) <= len(content):
            break
        keyword, _, value = content[len(digits) + 1 : int(digits) - 1].partition(b"=")
        records[keyword] = value
        content = content[int(digits) :]
    return records
