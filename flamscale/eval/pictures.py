"""Pictures of rollouts: frames and slot masks of a few clips in, rollout.gif and the contact sheet rollout.png out."""

import colorsys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flamscale.eval.files import replacing
from flamscale.eval.rollout import RolloutPictures

GIF_CELL_PX = 256
"""Side a frame is enlarged to in rollout.gif, by whole factors (pixels)."""
SHEET_CELL_PX = 128
"""Side a frame is enlarged to in rollout.png, by whole factors (pixels)."""
FRAME_MS, LAST_FRAME_MS = 350, 1500
"""How long rollout.gif shows a frame, and its last one (milliseconds)."""

_INK, _FAINT, _PAPER = (25, 25, 25), (120, 120, 120), (255, 255, 255)
_CONTEXT, _PREDICTED = (150, 150, 150), (230, 120, 0)
_GAP, _BORDER, _LINE = 10, 3, 22


def slot_colours(num_slots: int) -> UInt8[np.ndarray, "K 3"]:
    """Returns one distinct colour a slot: hues around the circle, every other one darker where there are many."""
    values = [0.95 if slot % 2 == 0 or num_slots <= 6 else 0.6 for slot in range(num_slots)]
    colours = [colorsys.hsv_to_rgb(slot / num_slots, 0.85, value) for slot, value in enumerate(values)]
    return (np.array(colours) * 255).round().astype(np.uint8)


def overlay_masks(frame: UInt8[Tensor, "H W 3"], masks: Float[Tensor, "K h w"]) -> UInt8[Tensor, "H W 3"]:
    """Returns the frame in grey under the slots' colours, each token coloured by its shares of the slots."""
    colours = torch.from_numpy(slot_colours(masks.shape[0])).float()
    tint = torch.einsum("khw,kc->hwc", masks.float(), colours)
    rows, columns = (frame.shape[axis] // masks.shape[axis + 1] for axis in (0, 1))
    tint = tint.repeat_interleave(rows, dim=0).repeat_interleave(columns, dim=1)
    grey = frame.float().mean(dim=-1, keepdim=True)
    return (0.45 * grey + 0.55 * tint).round().to(torch.uint8)


def draw_rollout_gif(path: Path, pictures: RolloutPictures) -> None:
    """Writes an endless animation: a row a clip, columns truth, prediction and slot masks, a legend of the slots."""
    frames = [_gif_frame(pictures, step) for step in range(pictures.truth.shape[1])]
    slots = [tuple(colour) for colour in slot_colours(pictures.masks.shape[2]).tolist()]
    indexed = _share_palette(frames, [_PAPER, _INK, _PREDICTED, *slots])
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    with replacing(path) as partial:
        indexed[0].save(partial, format="GIF", save_all=True, append_images=indexed[1:], duration=durations, loop=0)


def draw_contact_sheet(path: Path, pictures: RolloutPictures) -> None:
    """Writes all frames side by side: a column a step, for every clip rows of truth, prediction and slot masks."""
    num_clips, num_frames = pictures.truth.shape[:2]
    cell = _cell_px(pictures, SHEET_CELL_PX)
    label_px = 110
    pitch = cell + 2 * _BORDER + 4
    clip_px = 3 * pitch + _LINE + _GAP
    width = _GAP + label_px + num_frames * pitch + _GAP
    canvas = Image.new("RGB", (width, _GAP + _LINE + num_clips * clip_px + _LINE + _GAP), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for step in range(num_frames):
        x = _GAP + label_px + step * pitch
        predicted = step - pictures.num_context + 1
        text = f"step +{predicted}" if predicted > 0 else f"context {step + 1}"
        _write(draw, (x + cell // 2, _GAP), text, anchor="ma", colour=_PREDICTED if predicted > 0 else _FAINT)
        for clip in range(num_clips):
            y = _GAP + _LINE + clip * clip_px
            for row, image in enumerate(_cells(pictures, clip, step)):
                _paste(canvas, image, (x, y + row * pitch), cell, _border(row, predicted))
            if predicted > 0:
                decibel = f"{float(pictures.psnr[clip, predicted - 1]):.1f} dB"
                _write(draw, (x + cell // 2, y + 3 * pitch), decibel, anchor="ma", colour=_FAINT)
    for clip in range(num_clips):
        for row, name in enumerate(("truth", "prediction", "slot masks")):
            y = _GAP + _LINE + clip * clip_px + row * pitch + cell // 2
            _write(draw, (_GAP, y), name, anchor="lm")
        _write(draw, (_GAP, _GAP + _LINE + clip * clip_px + 3 * pitch), "PSNR", anchor="la", colour=_FAINT)
    _legend(draw, pictures, (_GAP, canvas.height - _GAP - _LINE), canvas.width)
    with replacing(path) as partial:
        canvas.save(partial, format="PNG")


def _gif_frame(pictures: RolloutPictures, step: int) -> Image.Image:
    num_clips, num_frames = pictures.truth.shape[:2]
    cell = _cell_px(pictures, GIF_CELL_PX)
    pitch = cell + 2 * _BORDER + _GAP
    num_legend_lines = -(-(pictures.masks.shape[2] * _LEGEND_PX) // (3 * pitch))
    height = _GAP + 2 * _LINE + num_clips * (pitch + _LINE) + num_legend_lines * _LINE + _GAP
    canvas = Image.new("RGB", (_GAP + 3 * pitch, height), _PAPER)
    draw = ImageDraw.Draw(canvas)

    predicted = step - pictures.num_context + 1
    if predicted > 0:
        title, colour = f"predicted step {predicted} of {num_frames - pictures.num_context}", _PREDICTED
    else:
        title, colour = f"context frame {step + 1} of {pictures.num_context}: true frames given to the model", _FAINT
    _write(draw, (_GAP, _GAP), title, anchor="la", colour=colour)
    for column, name in enumerate(("truth", "prediction" if predicted > 0 else "context", "slot masks")):
        _write(draw, (_GAP + column * pitch + cell // 2, _GAP + _LINE), name, anchor="ma")
    for clip in range(num_clips):
        y = _GAP + 2 * _LINE + clip * (pitch + _LINE)
        for column, image in enumerate(_cells(pictures, clip, step)):
            _paste(canvas, image, (_GAP + column * pitch, y), cell, _border(column, predicted))
        caption = f"{float(pictures.psnr[clip, predicted - 1]):.1f} dB" if predicted > 0 else "given"
        _write(draw, (_GAP + pitch + cell // 2, y + cell + 2 * _BORDER + 2), caption, anchor="ma", colour=_FAINT)
    _legend(draw, pictures, (_GAP, height - num_legend_lines * _LINE - _GAP // 2), canvas.width)
    return canvas


def _share_palette(frames: list[Image.Image], exact: list[tuple[int, int, int]]) -> list[Image.Image]:
    """Reduces all frames to the same 256 colours, so that none flickers: `exact`, the commonest, the best of the rest.

    Colours are told apart by 6 bits a channel. In the rest each counts once, however small its patch, so that none that
    is rare gets lost.
    """
    shift = np.array([12, 6, 0])
    cells = [((np.asarray(frame) >> 2).astype(np.int32) << shift).sum(axis=-1) for frame in frames]
    counts = np.sum([np.bincount(cell.ravel(), minlength=1 << 18) for cell in cells], axis=0)
    used = counts.nonzero()[0]
    channels = used[:, None] >> shift & 63
    colours = (channels << 2 | channels >> 4).astype(np.uint8)  # 0 stays 0, 63 becomes 255
    kept = np.concatenate([np.array(exact, dtype=np.uint8), colours[counts[used].argsort()[::-1][:16]]])
    rest = Image.fromarray(colours[None]).quantize(256 - len(kept), method=Image.Quantize.MEDIANCUT, kmeans=2)
    palette = np.concatenate([kept, np.array(rest.getpalette(), dtype=np.uint8).reshape(-1, 3)])
    ours, theirs = colours.astype(np.float32), palette.astype(np.float32)
    nearest = np.zeros(1 << 18, dtype=np.uint8)
    nearest[used] = (np.square(theirs).sum(axis=-1) - 2.0 * ours @ theirs.T).argmin(axis=-1)
    images = [Image.fromarray(nearest[cell]) for cell in cells]
    for image in images:
        image.putpalette(palette.tobytes())
    return images


def _cells(pictures: RolloutPictures, clip: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Truth, what the model had or predicted at this step, and the slot masks over that."""
    truth = pictures.truth[clip, step]
    predicted = step - pictures.num_context
    shown = pictures.prediction[clip, predicted] if predicted >= 0 else truth
    return truth, shown, overlay_masks(shown, pictures.masks[clip, step])


_LEGEND_PX = 108


def _legend(draw: ImageDraw.ImageDraw, pictures: RolloutPictures, corner: tuple[int, int], width_px: int) -> None:
    """A coloured square a slot, with its mean share of the pictured tokens."""
    shares = pictures.masks.float().mean(dim=(0, 1, 3, 4)).tolist()
    a_line = max(1, (width_px - corner[0]) // _LEGEND_PX)
    for slot, (colour, share) in enumerate(zip(slot_colours(len(shares)).tolist(), shares, strict=True)):
        x, y = corner[0] + slot % a_line * _LEGEND_PX, corner[1] + slot // a_line * _LINE
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=tuple(colour), outline=_INK)
        _write(draw, (x + 20, y), f"slot {slot + 1}: {share:.0%}", anchor="la")


def _paste(
    canvas: Image.Image, frame: Tensor, corner: tuple[int, int], cell: int, border: tuple[int, int, int]
) -> None:
    image = Image.fromarray(frame.numpy()).resize((cell, cell), Image.Resampling.NEAREST)
    canvas.paste(border, (corner[0], corner[1], corner[0] + cell + 2 * _BORDER, corner[1] + cell + 2 * _BORDER))
    canvas.paste(image, (corner[0] + _BORDER, corner[1] + _BORDER))


def _border(kind: int, predicted: int) -> tuple[int, int, int]:
    return _PREDICTED if predicted > 0 and kind > 0 else _CONTEXT


def _cell_px(pictures: RolloutPictures, target_px: int) -> int:
    size = pictures.truth.shape[2]
    return size * max(1, -(-target_px // size))


def _write(
    draw: ImageDraw.ImageDraw,
    position: tuple[int, int],
    text: str,
    *,
    anchor: str,
    colour: tuple[int, int, int] = _INK,
) -> None:
    draw.text(position, text, fill=colour, font=ImageFont.load_default(15), anchor=anchor)
