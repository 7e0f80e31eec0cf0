"""The pieces of work that workers do, each committed by a record: a part's episodes encoded, a tar put together.

In: what to make, and a part or a tar's plan. Out: files in the work folder or the data set, and the record of them.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from flamscale.data import storage
from flamscale.data.episode import Episode, Part, Source, Tally
from flamscale.data.manifest import Samples, Shard
from flamscale.data.measure import motion, signature
from flamscale.data.plan import Candidate, Rules
from flamscale.data.shards import join, pack
from flamscale.data.work_folder import WorkFolder, read_pieces
from flamscale.errors import VideoError

PARTS, TARS = "parts", "tars"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to make and how; sent to the processes that do it."""

    source: Source
    """Where episodes come from."""
    out: str
    """Folder or URL of the data set."""
    crf: int
    """How strongly frames are compressed; see `encode_frames`."""
    shard_bytes: int
    """Size at which a tar is closed (bytes)."""
    rules: Rules | None = None
    """Which episodes are dropped; None keeps all."""

    @property
    def folder(self) -> WorkFolder:
        """Where finished pieces lie."""
        return WorkFolder(out=self.out)


def part_name(part: Part) -> str:
    """Returns the name that a part's record is committed under."""
    return f"{part.number:06d}"


def tar_name(path: str) -> str:
    """Returns the name that a tar's record is committed under."""
    return path.removesuffix(".tar").replace("/", "-")


def encode_part(job: Job, part: Part) -> dict[str, Any]:
    """Reads a part, writes the tar blocks of its episodes in pieces of at least `shard_bytes`, and records them."""
    name = part_name(part)
    rows: list[dict[str, Any]] = []
    tallies: Counter[str] = Counter()
    fault = ""
    piece, blocks, size_bytes = 0, list[bytes](), 0
    try:
        for item in job.source.read(part):
            if isinstance(item, Tally):
                tallies[item.what] += item.count
                continue
            sample, content = pack(item, job.crf)
            file = f"{PARTS}/{name}-{piece:06d}.blocks"
            place = {"part": part.number, "piece": file, "offset": size_bytes}
            rows.append(asdict(sample) | place | _look_at(item, measured=job.rules is not None))
            blocks.append(content)
            size_bytes += len(content)
            if size_bytes >= job.shard_bytes:
                storage.write_bytes(job.folder.url(file), b"".join(blocks))
                piece, blocks, size_bytes = piece + 1, [], 0
        if blocks:
            storage.write_bytes(job.folder.url(file), b"".join(blocks))
    except VideoError as error:
        rows, fault = [], str(error)
    record = {"name": name, "input": part.name, "samples": rows, "tallies": dict(tallies), "fault": fault}
    job.folder.commit(PARTS, name, record)
    return record


def _look_at(episode: Episode, *, measured: bool) -> dict[str, Any]:
    """What a `Candidate` has beyond its sample and place."""
    height, width = episode.frames.shape[1:3]
    found: dict[str, Any] = {"fps": episode.fps, "height": height, "width": width}
    if measured:
        found |= {"motion": motion(episode.frames), "signature": f"{signature(episode.frames):x}"}
    return found


def write_tar(job: Job, tar: tuple[str, list[Candidate]]) -> dict[str, Any]:
    """Puts together the tar of a path and its samples, and records its row of the manifest."""
    path, samples = tar
    blocks = read_pieces([(job.folder.url(item.piece), item.offset, item.size_bytes) for item in samples])
    content, shard = join(path, samples, blocks)
    storage.write_bytes(storage.join(job.out, path), content)
    name = tar_name(path)
    place = {"path": shard.path, "split": shard.split, "size_bytes": shard.size_bytes, "sha256": shard.sha256}
    record = {"name": name, "shard": place, "samples": shard.samples.to_json()}
    job.folder.commit(TARS, name, record)
    return record


def read_shard(record: dict[str, Any]) -> Shard:
    """Returns the row of the manifest that a tar's record holds."""
    return Shard.of(**record["shard"], samples=Samples.from_json(record["samples"]))
