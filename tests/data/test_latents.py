"""Latents of a data set: its clips in its order, the same bytes after a kill, nothing where the video is damaged."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flamscale.config import DataConfig, TokenizerConfig
from flamscale.data.latents import LatentsWriter, latents_url
from flamscale.data.loader import ClipLoader
from flamscale.data.manifest import Manifest
from flamscale.data.mixture import Mixture
from flamscale.errors import ConfigError, DataError
from flamscale.models.tokenizer import Tokenizer, frame_encoder, to_images
from flamscale.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "tokenize_shards.py"


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_latents(data: Manifest, url: str, tokenizer: Tokenizer, **settings: int) -> Manifest:
    side = tokenizer.config.image_size // tokenizer.config.downsample
    writer = LatentsWriter(
        data=data,
        url=url,
        encode=frame_encoder(tokenizer),
        tokenizer_hash=tokenizer.hash,
        grid=(side, side),
        codebook_size=tokenizer.fsq.codebook_size,
        **settings,
    )
    assert sum(done.frames for done in writer.write()) == sum(int(s.samples.frames.sum()) for s in data.shards)
    return Manifest.load(url)


def small_tokenizer(**settings: object) -> Tokenizer:
    torch.manual_seed(0)
    sizes = {"base_channels": 4, "max_channels": 4, "num_residual_blocks": 1, "patch_channels": 4}
    return Tokenizer(TokenizerConfig(image_size=16, downsample=4, feature_channels=4, **sizes, **settings)).eval()


def test_a_killed_run_goes_on_to_the_same_bytes(make_data_set, tmp_path):
    data = make_data_set(str(tmp_path / "data"), (40,) * 60, shard_bytes=15_000)
    assert len(data.shards) > 10
    tokenizer = small_tokenizer()
    (tmp_path / "run").mkdir()
    RunDirectory(tmp_path / "run").save_tokenizer(tokenizer, data.hash)
    write_latents(data, str(tmp_path / "whole"), tokenizer)
    command = [sys.executable, RECIPE, "--data", data.url, "--tokenizer", tmp_path / "run", "--out", tmp_path / "out"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while len(list((tmp_path / "out").glob("unfinished/*/*/manifest.arrow"))) < 2:
            assert process.poll() is None
        process.kill()
    assert not (tmp_path / "out" / "manifest.arrow").exists()
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "train").glob("00000[01].tar")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "frames/s" in done.stdout
    assert there == {path: path.stat().st_mtime_ns for path in there}
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_an_unfinished_set_of_other_latents_is_not_gone_on_with(make_data_set, tmp_path):
    data = make_data_set(str(tmp_path / "data"), (9,) * 12, shard_bytes=5_000)
    write_latents(data, str(tmp_path / "whole"), small_tokenizer())
    work = LatentsWriter.write(
        LatentsWriter(
            data=data, url=str(tmp_path / "out"), encode=frame_encoder(small_tokenizer()), tokenizer_hash="0" * 64,
            grid=(4, 4), codebook_size=1024,
        )
    )  # fmt: skip
    while not list((tmp_path / "out").glob("unfinished/*/*/manifest.arrow")):
        next(work)
    with pytest.raises(ConfigError, match="already holds a data set made from other arguments"):
        write_latents(data, str(tmp_path / "out"), small_tokenizer())


def test_batches_and_threads_change_no_latent(make_data_set, tmp_path):
    data = make_data_set(str(tmp_path / "data"), (5, 9, 3), shard_bytes=30_000)
    for name, settings in (("a", {}), ("b", {"batch_frames": 4, "decode_threads": 3})):
        write_latents(data, str(tmp_path / name), small_tokenizer(), **settings)
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")


def test_latents_in_an_object_store_are_those_of_the_frames(make_data_set, s3_url):
    data = make_data_set(s3_url, (9,) * 6, shard_bytes=10_000)
    tokenizer = small_tokenizer()
    latents = write_latents(data, latents_url(s3_url, tokenizer.hash), tokenizer)
    assert latents.url == f"{s3_url}/latents-{tokenizer.hash[:12]}"
    clip = {"clip_frames": 4, "frame_stride": 2, "clip_hop": 1}
    batch = {"global_batch": 6, "micro_batch": 6, "rank": 0, "world_size": 1, "seed": 3}
    config = DataConfig(prefetch_batches=0)
    with (
        ClipLoader(Mixture((data,)), "train", **clip, **batch, config=config) as videos,
        ClipLoader(Mixture((latents,)), "train", **clip, **batch, config=config) as tokens,
    ):
        for _ in range(4):
            frames, indices = next(videos), next(tokens)
            assert indices.positions.tolist() == frames.positions.tolist()
            assert torch.equal(indices.video, tokenizer.encode(to_images(frames.video)).unflatten(0, (6, 4)))
            assert videos.state() == tokens.state()


def test_a_damaged_video_has_no_latents_and_the_others_keep_their_places(own_data_set, tmp_path, caplog):
    shard = own_data_set.of_split("train")[0]
    content = bytearray(Path(shard.url).read_bytes())
    content[int(shard.samples.members["mp4"].offsets[1]) + 100] ^= 1
    Path(shard.url).write_bytes(content)
    tokenizer = small_tokenizer()
    latents = write_latents(own_data_set, str(tmp_path / "latents"), tokenizer)
    key = shard.samples.key(1)
    assert f"No latents of sample {key} of {shard.url}, which is damaged: Its checksum" in caplog.text
    made = latents.of_split("train")[0]
    assert (made.samples.keys, made.samples.frames.tolist()) == (shard.samples.keys, shard.samples.frames.tolist())
    assert [int(size) == 0 for size in made.samples.members[latents.content].sizes][:3] == [False, True, False]
    clip = {"clip_frames": 3, "frame_stride": 1, "clip_hop": 3}
    batch = {"global_batch": 8, "micro_batch": 8, "rank": 0, "world_size": 1, "seed": 3}
    batches = {}
    for name, data in (("videos", own_data_set), ("latents", latents)):
        config = DataConfig(prefetch_batches=0, max_bad_fraction=0.5)
        with ClipLoader(Mixture((data,)), "train", **clip, **batch, config=config) as loader:
            batches[name] = [next(loader).video for _ in range(loader.num_clips // 8 + 1)]
            (reason,) = loader.bad_samples.values()
    assert "whose video was damaged when latents were made of it" in reason
    for frames, indices in zip(batches["videos"], batches["latents"], strict=True):
        assert torch.equal(indices, tokenizer.encode(to_images(frames)).unflatten(0, (8, 3)))


def test_more_damage_than_allowed_leaves_no_latents(own_data_set, tmp_path):
    for shard in own_data_set.shards:
        Path(shard.url).write_bytes(bytes(shard.size_bytes))
    with pytest.raises(DataError, match=r"^28 of the 28 samples of .* are damaged, more than the allowed"):
        write_latents(own_data_set, str(tmp_path / "latents"), small_tokenizer())
    assert Manifest.find(str(tmp_path / "latents")) is None


@pytest.mark.parametrize(("levels", "dtype"), [((4, 4), np.uint16), ((42, 41, 40), np.int32)])
def test_indices_take_two_bytes_where_they_fit(make_data_set, tmp_path, levels, dtype):
    data = make_data_set(str(tmp_path / "data"), (5,))
    latents = write_latents(data, str(tmp_path / "latents"), small_tokenizer(fsq_levels=levels))
    (shard,) = latents.of_split("train")
    member = shard.samples.members[latents.content]
    with Path(shard.url).open("rb") as tar:
        tar.seek(int(member.offsets[0]))
        content = tar.read(int(member.sizes[0]))
    array = np.load(io.BytesIO(content))
    assert (array.shape, array.dtype) == ((5, 16), dtype)
    assert hashlib.sha256(content).digest() == shard.samples.sha256(0)
