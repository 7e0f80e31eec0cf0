"""Writes our samples' bytes in a peer's own format; runs in the peer's environment."""

import sys
from collections.abc import Iterator
from pathlib import Path

from flamscale.data.manifest import Manifest

CHUNK_BYTES = 2**22


def contents(url: str, content: str) -> Iterator[bytes]:
    """Yields the bytes of every sample."""
    for shard in Manifest.load(url).of_split("train"):
        tar = Path(shard.url).read_bytes()
        member = shard.samples.members[content]
        for start, size in zip(member.offsets, member.sizes, strict=True):
            yield tar[start : start + size]


def write_streaming(source: str, target: str, content: str) -> None:
    """Writes MDS shards with the checksum that streaming offers."""
    from streaming_peer import streaming  # which it makes importable

    with streaming.MDSWriter(
        out=target, columns={"content": "bytes"}, hashes=["sha1"], size_limit=CHUNK_BYTES
    ) as writer:
        for item in contents(source, content):
            writer.write({"content": item})


def write_litdata(source: str, target: str, content: str) -> None:
    """Writes litData's optimised chunks."""
    import litdata

    items = list(contents(source, content))
    litdata.optimize(items.__getitem__, list(range(len(items))), target, chunk_bytes=CHUNK_BYTES, num_workers=1)


def main() -> None:
    """Writes: the command line names the format (mds or litdata), the source, the target and the files' extension."""
    form, *arguments = sys.argv[1:]
    {"mds": write_streaming, "litdata": write_litdata}[form](*arguments)
