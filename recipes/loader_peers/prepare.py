"""The data sets of benchmark_loader.py: videos, pre-tokenised latents, and one shard to be damaged."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np

from flamscale.data.encode import LOSSLESS_CRF
from flamscale.data.manifest import VIDEO, Manifest, Members, Samples, Shard
from flamscale.data.shards import ShardWriter
from flamscale.data.sources.multigrid import MultigridSource

LATENTS = "latent-benchmark.npy"


def write_videos(url: str, num_samples: int, sample_frames: int, size: int, shard_bytes: int) -> None:
    """Writes MultiGrid episodes as shards, all of the train split, unless they are there."""
    if Manifest.find(url) is not None:
        return
    source = MultigridSource(size=size, episode_frames=sample_frames, episodes=num_samples)
    with ShardWriter(
        url, name="benchmark", source="multigrid", arguments={}, crf=LOSSLESS_CRF, shard_bytes=shard_bytes
    ) as writer:
        for episode in source:
            writer.write(type(episode)(**vars(episode) | {"split": "train"}))


def write_latents(url: str, num_shards: int, shard_samples: int, sample_frames: int, num_tokens: int) -> None:
    """Writes random codebook indices uint16 [F, N] in the form of pre-tokenised shards, unless they are there."""
    if Manifest.find(url) is not None:
        return
    chance = np.random.default_rng(0)
    shards = []
    for number in range(num_shards):
        keys = [f"{number:03d}-{sample:05d}" for sample in range(shard_samples)]
        contents = []
        for _ in keys:
            buffer = io.BytesIO()
            np.save(buffer, chance.integers(1024, size=(sample_frames, num_tokens), dtype=np.uint16))
            contents.append(buffer.getvalue())
        shards.append(_write_tar(Path(url), f"train/{number:06d}.tar", keys, contents, sample_frames))
    side = int(num_tokens**0.5)
    Manifest(
        name="benchmark",
        source="random",
        content=LATENTS,
        fps=10.0,
        height=side,
        width=side,
        arguments={"manifest_hash": "0" * 64},
        shards=tuple(shards),
    ).save(url)


def _write_tar(folder: Path, path: str, keys: list[str], contents: list[bytes], sample_frames: int) -> Shard:
    offsets = []
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for key, content in zip(keys, contents, strict=True):
            item = tarfile.TarInfo(f"{key}.{LATENTS}")
            item.size = len(content)
            offsets.append(tar.offset + tarfile.BLOCKSIZE)
            tar.addfile(item, io.BytesIO(content))
    samples = Samples.of(
        keys=keys,
        frames=[sample_frames] * len(keys),
        sha256=[hashlib.sha256(content).hexdigest() for content in contents],
        members={LATENTS: Members(offsets=np.array(offsets), sizes=np.array([len(content) for content in contents]))},
    )
    whole = file.read_bytes()
    return Shard.of(
        path=path, split="train", size_bytes=len(whole), sha256=hashlib.sha256(whole).hexdigest(), samples=samples
    )


def corrupt_tar(url: str) -> None:
    """Overwrites the tar header of the video in the middle of the first shard."""
    shard = Manifest.load(url).of_split("train")[0]
    member = shard.samples.members[VIDEO]
    with Path(shard.url).open("r+b") as file:
        file.seek(int(np.sort(member.offsets)[len(shard) // 2]) - tarfile.BLOCKSIZE)
        file.write(b"\xff" * tarfile.BLOCKSIZE)


def corrupt_index(file: Path) -> None:
    """Overwrites where the middle sample starts: MDS shards and litData chunks alike begin with a count and offsets."""
    with file.open("r+b") as chunk:
        count = int(np.fromfile(chunk, np.uint32, 1)[0])
        chunk.seek(4 * (1 + count // 2))
        chunk.write(b"\xff" * 4)
