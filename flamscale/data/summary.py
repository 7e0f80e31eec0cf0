"""The outcome of an ingest in; a table, summary.json and contact_sheet.png out, so that a person can judge the data."""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flamscale.data import storage
from flamscale.data.decode import decode_frames
from flamscale.data.episode import SPLITS
from flamscale.data.ingest import Outcome
from flamscale.data.manifest import Manifest
from flamscale.data.plan import Candidate
from flamscale.data.sources.webdataset_index import LeftOut
from flamscale.data.work_folder import WorkFolder

SUMMARY, CONTACT_SHEET = "summary.json", "contact_sheet.png"
_COLUMNS, _KEPT_ROWS = 8, 3
_SIDE, _GAP, _TITLE = 112, 4, 18  # pixels


def summarise(outcome: Outcome, duration_s: float) -> dict[str, Any]:
    """Returns all counts by name; `duration_s` is what this start took (seconds)."""
    shards = outcome.manifest.shards
    dropped = {rule: len(items) for rule, items in outcome.plan.dropped.items()}
    return {
        "inputs": outcome.num_parts,
        "inputs unusable": len(outcome.faults),
        **dict(sorted(outcome.tallies.items())),
        "episodes": len(outcome.plan.kept) + sum(dropped.values()),
        **{f"episodes dropped: {rule}": count for rule, count in dropped.items()},
        **{f"episodes kept: {split}": count for split, count in count_episodes(outcome.manifest).items()},
        "frames kept": sum(int(shard.samples.frames.sum()) for shard in shards),
        "shards": len(shards),
        "MiB": round(sum(shard.size_bytes for shard in shards) / 2**20, 1),
        "seconds": round(duration_s, 1),
        "frames/s": round(outcome.num_frames_now / duration_s, 1),
    }


def count_episodes(manifest: Manifest) -> dict[str, int]:
    """Returns the number of episodes in each split."""
    return {split: sum(len(shard) for shard in manifest.shards if shard.split == split) for split in SPLITS}


def print_summary(counts: dict[str, Any], faults: dict[str, str], console: Console, most_faults: int = 10) -> None:
    """Prints the counts as a table, and why the first `most_faults` unusable inputs were left out."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    lines = list(faults.values())[:most_faults]
    if len(faults) > len(lines):
        lines.append(f"{len(faults) - len(lines)} more inputs were left out; {SUMMARY} names them all.")
    for line in lines:
        console.print(f"left out: {line}", soft_wrap=True, markup=False, highlight=False)


def print_left_out(left_out: LeftOut, console: Console) -> None:
    """Prints what an index of tars leaves out, by reason."""
    if left_out.counts:
        table = Table("left out", "count", "first")
        for reason, count in left_out.counts.most_common():
            table.add_row(reason, f"{count:,}", escape(left_out.first[reason]))
        console.print(table)


def describe(manifest: Manifest) -> str:
    """Returns a data set's episodes, frames and size in a line."""
    counts = " + ".join(f"{count} {split}" for split, count in count_episodes(manifest).items())
    frames = sum(int(shard.samples.frames.sum()) for shard in manifest.shards)
    tars = {shard.path: shard.size_bytes for shard in manifest.shards}  # one tar may hold samples of several splits
    return (
        f"{counts} episodes, {frames:,} frames of {manifest.height}x{manifest.width}, {len(tars)} shards, "
        f"{sum(tars.values()) / 2**20:.1f} MiB"
    )


def save(outcome: Outcome, counts: dict[str, Any]) -> None:
    """Writes summary.json and contact_sheet.png beside the tars; the work folder must still be there."""
    out = outcome.manifest.url
    content = {"arguments": outcome.manifest.arguments, "counts": counts, "faults": outcome.faults}
    storage.write_bytes(storage.join(out, SUMMARY), json.dumps(content, indent=2).encode())
    picture = io.BytesIO()
    draw_contact_sheet(outcome).save(picture, format="png")
    storage.write_bytes(storage.join(out, CONTACT_SHEET), picture.getvalue())


def draw_contact_sheet(outcome: Outcome) -> Image.Image:
    """Draws the middle frames of some kept episodes, evenly spread, and of some that each rule dropped."""
    plan, folder = outcome.plan, WorkFolder(out=outcome.manifest.url)
    strips = [_draw_strip("kept", plan.kept, _KEPT_ROWS, folder)]
    strips += [_draw_strip(f"dropped: {rule}", items, 1, folder) for rule, items in plan.dropped.items() if items]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _draw_strip(title: str, items: Sequence[Candidate], num_rows: int, folder: WorkFolder) -> Image.Image:
    count = min(len(items), num_rows * _COLUMNS)
    chosen = [items[int(index)] for index in np.linspace(0, len(items) - 1, count).round()]
    num_rows = -(-count // _COLUMNS)
    step = _SIDE + _GAP
    strip = Image.new("RGB", (_COLUMNS * step + _GAP, _TITLE + num_rows * step), "white")
    ImageDraw.Draw(strip).text((_GAP, _GAP), f"{title} ({count} of {len(items):,})", fill="black")
    for position, item in enumerate(chosen):
        row, column = divmod(position, _COLUMNS)
        strip.paste(_middle_frame(item, folder), (_GAP + column * step, _TITLE + row * step))
    return strip


def _middle_frame(item: Candidate, folder: WorkFolder) -> Image.Image:
    offset, size = item.members["mp4"]
    video = storage.read_range(folder.url(item.piece), item.offset + offset, size)
    frame = Image.fromarray(decode_frames(video, item.frames // 2, 1)[0])
    return frame.resize((_SIDE * frame.width // max(frame.size), _SIDE * frame.height // max(frame.size)))
