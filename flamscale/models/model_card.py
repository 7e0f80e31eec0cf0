"""The model card: sizes and, where there are any, the numbers of an evaluation in; the text of README.md out."""

from typing import Any

from flamscale.config import FlamConfig, TokenizerConfig, WorldModelConfig

_TEXT = """---
license: apache-2.0
library_name: flamscale
pipeline_tag: video-to-video
tags:
- flamscale
- world-model
- latent-actions
- object-centric
---

# {title}

{description}

| | |
|---|---|
| frames | {tokenizer.image_size} x {tokenizer.image_size} RGB |
| tokens a frame | {tokenizer.num_tokens}, FSQ levels {tokenizer.fsq_levels} |
| actions of one step | {flam.num_actions} of {flam.action_width} channels |
| parameters, tokenizer included | {num_parameters:,} |

## Use

```python
import flamscale
from transformers import AutoModel

model = AutoModel.from_pretrained("path/to/this/folder").eval()
frames = ...  # uint8 [clips, frames, {tokenizer.image_size}, {tokenizer.image_size}, 3]

{use}
```

The weights are safetensors; nothing is unpickled, no code is downloaded.

## Numbers

{numbers}
{origin}
## Limits

It predicts scenes like those it was trained on.{invented}{unnamed}

## Licence

Apache-2.0.
"""

_INFERRED = """actions = model.infer_actions(frames)  # [clips, frames - 1, {flam.num_actions}, {flam.action_width}]
video = model.rollout(frames, steps=10)  # predicts the last 10 frames from those before, with inferred actions
video.frames, video.masks
actions[:, :, 0] = actions[:, :, 0].flip(0)  # or choose the {whose} actions: here another clip's
video = model.rollout(frames[:, :-10], actions, steps=10)"""
_UNNAMED = """ Latent actions have no names: what an action does, and to what, is to
be read off its effect."""
_INVENTED = """ Its decoder, flow matching in {tokenizer.flow_steps} steps, makes up the
details that tokens leave open: sharp ones need not be true."""
_GIVEN = """actions = ...  # true: [clips, frames - 1, {flam.num_agents} agents at most], below {flam.num_agent_actions}
video = model.rollout(frames[:, :-10], actions, steps=10)  # predicts the last 10 frames from those before
video.frames"""

_FLAM = (
    "Pretrained on video without action labels. A tokenizer turns frames into tokens, a factorizer splits every frame "
    "into {flam.num_slots} slots, an inverse dynamics model infers one latent action a slot between two frames, and a "
    "forward dynamics model predicts the next frame from them (*Factored Latent Action World Models*, arXiv "
    "2602.16229)."
)
_ABLATION = " Beside FLAM it differs in: {changes}."
_MONOLITHIC = (
    "Pretrained on video without action labels. A baseline of FLAM (arXiv 2602.16229). A tokenizer turns frames into "
    "tokens, an inverse dynamics model infers one {flam.action} latent action for the whole scene between two frames, "
    "and a forward dynamics model predicts the next frame from it."
)
_TRUE = (
    "A baseline of FLAM (arXiv 2602.16229), trained on video and the true actions of up to {flam.num_agents} agents. A "
    "tokenizer turns frames into tokens, and a forward dynamics model predicts the next frame from them and the "
    "agents' actions."
)
_ABLATED = ("binding", "coupling", "slots_learn_from", "action", "adaptive_slots")


def model_card(
    tokenizer: TokenizerConfig,
    flam: WorldModelConfig,
    num_parameters: int,
    result: dict[str, Any] | None,
    origin: str = "",
) -> str:
    """Returns the text of the model card; `origin` is a section of its own, such as that of a study."""
    use, whose, unnamed, source = _INFERRED, "scene's", _UNNAMED, "inferred from the true frames"
    if isinstance(flam, FlamConfig):
        title, description, whose = "FLAM: a factored latent action world model", _FLAM, "first slot's"
        changes = [
            f"{name} {getattr(flam, name)}" for name in _ABLATED if getattr(flam, name) != getattr(FlamConfig, name)
        ]
        description += _ABLATION.format(changes=", ".join(changes)) if changes else ""
    elif flam.action == "true":
        title, description = "A world model given true actions", _TRUE
        use, unnamed, source = _GIVEN, "", "as they truly were"
    else:
        title, description = "A monolithic latent action world model", _MONOLITHIC
    return _TEXT.format(
        title=title,
        description=description.format(flam=flam),
        tokenizer=tokenizer,
        flam=flam,
        use=use.format(flam=flam, whose=whose),
        unnamed=unnamed,
        invented=_INVENTED.format(tokenizer=tokenizer) if tokenizer.decoder == "flow" else "",
        num_parameters=num_parameters,
        numbers=_numbers(result, source) if result else "Not evaluated yet.",
        origin=f"\n{origin}\n" if origin else "",
    )


def _numbers(result: dict[str, Any], source: str) -> str:
    rollout, tokenizer = result["rollout"], result["tokenizer"]
    return (
        f"{rollout['rollout_steps']}-step prediction of {rollout['num_clips']} held-out clips from "
        f"{rollout['context_frames']} frames, actions {source}:\n\n"
        "| | PSNR (dB) |\n|---|---:|\n"
        f"| this model | {_decibels(rollout['psnr'])} (SSIM {rollout['ssim']:.3f}) |\n"
        f"| with another clip's actions | {_decibels(rollout['shuffled_actions_psnr'])} |\n"
        f"| copy of the last context frame | {_decibels(rollout['copy_last_psnr'])} |\n"
        f"| median training frame | {_decibels(rollout['median_frame_psnr'])} |\n"
        f"| tokenizer's reconstruction of the same frames | {_decibels(tokenizer['psnr'])} |"
    )


def _decibels(value: float | None) -> str:
    """A result that was read from a file has null for what is no number."""
    return "n/a" if value is None else f"{value:.2f}"
