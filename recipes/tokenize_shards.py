#!/usr/bin/env python
"""Writes a data set's latents, a trained tokenizer's indices of every frame, so that stage 2 decodes and encodes none.

Command: python recipes/tokenize_shards.py --data data/quickstart --tokenizer runs/quickstart
    python recipes/pretrain_large.py --data data/quickstart --tokenizer-from runs/quickstart \\
        --data.latents data/quickstart/latents-0123456789ab --out runs/more
    A run that was killed goes on with the next shard when it is started again.
Hardware and hours: any; a CPU core does about 1,100 frames of 64x64 a second.
Expected: a data set of latents beside the clips, named by the tokenizer's hash; stage 2 learns from it what it would
learn from the video, and refuses latents of other clips or by another tokenizer.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flamscale import command_line
from flamscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which clips, by which tokenizer, and where the latents go."""

    data: str
    """Folder or s3:// URL of the data set: the one that holds manifest.arrow."""
    tokenizer: str
    """Run directory with a finished stage 1, or its model/ folder."""
    out: str = ""
    """Folder or s3:// URL to write to; latents-<the tokenizer's hash> under the data set if not given."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What to encode on."""
    max_bad_fraction: float = 0.01
    """Share of samples that may turn out damaged (0 to 1); one always may, unless this is 0."""
    batch_frames: int = 256
    """Frames encoded at once (count)."""
    decode_threads: int = 1
    """Samples decoded at once (count)."""

    def __post_init__(self) -> None:
        for name in ("batch_frames", "decode_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"max-bad-fraction must lie between 0 and 1, got {self.max_bad_fraction}.")


def main(arguments: Sequence[str]) -> None:
    """Writes the latents, or finds that they are already there."""
    chosen = command_line.parse(Arguments, arguments, description=__doc__ or "")
    import torch

    from flamscale.data.latents import LatentsWriter, latents_url
    from flamscale.data.manifest import VIDEO, Manifest
    from flamscale.models.tokenizer import frame_encoder
    from flamscale.run_directory import find_tokenizer

    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda needs a GPU that torch can use, and there is none; leave it out.")
    data, tokenizer = Manifest.load(chosen.data), find_tokenizer(chosen.tokenizer).tokenizer
    size, side = tokenizer.config.image_size, tokenizer.config.image_size // tokenizer.config.downsample
    if data.content == VIDEO and (data.height, data.width) != (size, size):
        raise ConfigError(
            f"The tokenizer in {chosen.tokenizer} needs frames of {size} x {size} pixels, those in {chosen.data} are "
            f"{data.width} x {data.height}; make shards with --size {size}."
        )
    out = chosen.out or latents_url(chosen.data, tokenizer.hash)
    writer = LatentsWriter(
        data=data,
        url=out,
        tokenizer_hash=tokenizer.hash,
        encode=frame_encoder(tokenizer.to(chosen.device)),
        grid=(side, side),
        codebook_size=tokenizer.fsq.codebook_size,
        batch_frames=chosen.batch_frames,
        decode_threads=chosen.decode_threads,
        max_bad_fraction=chosen.max_bad_fraction,
    )
    if Manifest.find(out) is not None:
        print(f"{out} already holds these latents; nothing to do.")
        return
    started, num_encoded = time.perf_counter(), 0
    num_frames = sum(int(shard.samples.frames.sum()) for shard in data.shards)
    columns = (TextColumn("frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("frames", total=num_frames)
        for done in writer.write():
            num_encoded += done.frames * done.encoded
            progress.advance(task, done.frames)
    seconds = time.perf_counter() - started
    print(f"Wrote latents of {num_frames:,} frames to {out} in {seconds:.1f} s, {num_encoded / seconds:,.0f} frames/s.")
    latents = Manifest.load(out)
    files = [shard.samples.members[latents.content].sizes for shard in latents.shards]
    videos_mib = sum(int(shard.samples.members[VIDEO].sizes.sum()) for shard in data.shards) / 2**20
    latents_mib = sum(int(sizes.sum()) for sizes in files) / 2**20
    num_damaged = sum(int((sizes == 0).sum()) for sizes in files)
    print(
        f"{latents_mib:.1f} MiB, the videos {videos_mib:.1f} MiB: {latents_mib / videos_mib:.2f} of their size; "
        f"{num_damaged} damaged samples left out."
    )


if __name__ == "__main__":
    command_line.run(main)
