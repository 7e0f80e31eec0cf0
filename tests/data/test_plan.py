"""The plan: what rules drop, how the rest is split, and how large tars get."""

import random
from dataclasses import replace

import pytest

from flamscale.data.plan import DUPLICATE, STATIC, Candidate, Rules, make_plan
from flamscale.errors import DataError

RULES = Rules(static_threshold=0.5, duplicate_bits=12)
BITS = random.Random(0)


def candidate(part: int, index: int, **changes: object) -> Candidate:
    item = Candidate(
        key=f"video-{part:06d}-{index:06d}",
        split="",
        frames=32,
        video_sha256="",
        size_bytes=1000,
        members={"mp4": (512, 400)},
        part=part,
        piece="",
        offset=0,
        fps=10.0,
        height=64,
        width=64,
        motion=1.0,
        signature=f"{BITS.getrandbits(256):x}",
    )
    return replace(item, **changes)


def splits(candidates: list[Candidate]) -> list[tuple[int, str]]:
    kept = make_plan(candidates, RULES, 10**9).kept
    return [(item.part, item.split) for item in sorted(kept, key=lambda item: item.key)]


def test_a_long_part_is_split_in_itself_and_short_ones_together() -> None:
    candidates = [candidate(part, index) for part, count in ((0, 4), (1, 12), (2, 6)) for index in range(count)]
    pooled = iter(["train"] * 8 + ["validation", "test"])
    expected = [(0, next(pooled)) for _ in range(4)]
    expected += [(1, split) for split in ["train"] * 10 + ["validation", "test"]]
    expected += [(2, next(pooled)) for _ in range(6)]
    assert splits(candidates) == expected


def test_splits_that_a_source_gives_are_kept() -> None:
    candidates = [candidate(0, index, split="test" if index % 2 else "train") for index in range(20)]
    assert [split for _, split in splits(candidates)] == ["train", "test"] * 10


def test_splits_follow_from_what_is_kept() -> None:
    candidates = [candidate(0, index, motion=0.0 if index < 10 else 1.0) for index in range(20)]
    assert [split for _, split in splits(candidates)] == ["train"] * 8 + ["validation", "test"]


def test_static_episodes_are_dropped() -> None:
    candidates = [candidate(0, 0), candidate(0, 1, motion=0.49), candidate(0, 2, motion=0.5)]
    plan = make_plan(candidates, RULES, 10**9)
    assert plan.dropped[STATIC] == [candidates[1]]
    assert len(make_plan(candidates, replace(RULES, static_threshold=0.0), 10**9).kept) == 3
    assert len(make_plan(candidates, None, 10**9).kept) == 3


@pytest.mark.parametrize("max_bits", [0, 1, 12, 20, 64])
def test_near_copies_are_found_at_every_distance_up_to_the_limit_and_none_beyond(max_bits: int) -> None:
    draw = random.Random(max_bits)
    for distance in {0, max_bits // 2, max_bits, max_bits + 1}:
        for _ in range(20):
            bits = draw.getrandbits(256)
            copy = bits
            for bit in draw.sample(range(256), distance):
                copy ^= 1 << bit
            items = [candidate(0, 0, signature=f"{bits:x}"), candidate(1, 0, signature=f"{copy:x}")]
            plan = make_plan(items, replace(RULES, duplicate_bits=max_bits), 10**9)
            assert plan.dropped[DUPLICATE] == (items[1:] if distance <= max_bits else [])


def test_copies_can_be_kept() -> None:
    items = [candidate(0, index, signature="0") for index in range(3)]
    assert len(make_plan(items, replace(RULES, duplicate_bits=-1), 10**9).kept) == 3


def test_tars_are_closed_at_their_size_in_order() -> None:
    items = [candidate(0, index) for index in range(30)]
    plan = make_plan(items, RULES, 2500)
    assert [len(tar) for path, tar in plan.tars.items() if path.startswith("train")] == [3] * 8
    assert [*plan.tars][:2] == ["train/000000.tar", "train/000001.tar"]
    assert [item.key for item in plan.kept] == [item.key for item in items]


def test_nothing_left_is_told_with_the_reasons() -> None:
    with pytest.raises(DataError, match=r"Not one episode is left of 2 \(2 static, 0 duplicate\): give longer or"):
        make_plan([candidate(0, index, motion=0.0) for index in range(2)], RULES, 10**9)


def test_frames_of_two_sizes_are_refused() -> None:
    with pytest.raises(DataError, match=r"Expected frames of 64x64 pixels .* got 32x64 in sample video-000001-000000"):
        make_plan([candidate(0, 0), candidate(1, 0, height=32)], RULES, 10**9)
