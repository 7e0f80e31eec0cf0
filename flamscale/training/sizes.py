"""What a stage needs, found without running it: a config in; its objective on fake tensors, and its memory, out.

Fake tensors have shapes and no content, so that the real objective of any size runs on a laptop in seconds.
"""

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flamscale.config import FlamConfig, PretrainConfig, StageConfig
from flamscale.models.build import build_world_model
from flamscale.models.lpips import Lpips, Network
from flamscale.models.tokenizer import Tokenizer
from flamscale.training.objectives import FlamObjective, TokenizerObjective

Stage = Literal["tokenizer", "flam"]
STAGES: tuple[Stage, ...] = ("tokenizer", "flam")

MEMORY_FORMULA = (
    "Bytes, for P parameters in fp32 on W workers: parameters 4P (ZeRO-3: 4P/W), gradients 4P (ZeRO-2 and 3: 4P/W), "
    "AdamW 8P (ZeRO-1 to 3: 12P/W, with a copy of the parameters), activations: what autograd keeps of a batch. "
    "Not counted: buffers of communication and allocator, the CUDA context, stage 2's frozen tokenizer, and partial "
    "gradients of weights that are used several times (up to 4P, while activations go: a matter of small batches)."
)


@dataclass(frozen=True)
class StageSize:
    """Memory of one stage on one device (bytes)."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All together (bytes): the peak of a step; with a single micro-batch, gradients come while activations go."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def stage_config(config: PretrainConfig, stage: Stage) -> StageConfig:
    """Returns a stage's settings."""
    return config.tokenizer_stage if stage == "tokenizer" else config.flam_stage


def build_objective(config: PretrainConfig, stage: Stage, lpips: Network = "vgg16") -> nn.Module:
    """Returns a stage's objective with new weights; `lpips` is the network of its LPIPS term, if it has one."""
    if stage == "flam":
        return FlamObjective(build_world_model(config.flam, config.tokenizer), config.flam_stage)
    perceptual = Lpips(lpips) if config.tokenizer_stage.lpips_weight > 0 else None
    return TokenizerObjective(Tokenizer(config.tokenizer), config.tokenizer_stage, perceptual)


def empty_inputs(config: PretrainConfig, stage: Stage, num_clips: int) -> dict[str, Tensor]:
    """Returns the objective's arguments for a micro-batch of `num_clips`, with any content."""
    tokenizer, model = config.tokenizer, config.flam
    num_frames = stage_config(config, stage).clip_frames
    if stage == "tokenizer":
        size, num_images = tokenizer.image_size, num_clips * num_frames
        inputs = {"images": torch.empty(num_images, 3, size, size), "weights": torch.empty(num_images, 1, size, size)}
        if tokenizer.decoder == "flow":
            inputs |= {"noise": torch.empty(num_images, 3, size, size), "times": torch.empty(num_images)}
        return inputs
    inputs = {
        "features": torch.empty(num_clips, num_frames, tokenizer.num_tokens, tokenizer.feature_channels),
        "noise": torch.empty(num_clips, num_frames - 1, model.num_actions, model.action_width),
        "beta": torch.empty(()),
    }
    if model.action == "true":
        inputs["actions"] = torch.zeros(num_clips, num_frames - 1, model.num_agents, dtype=torch.int64)
    if isinstance(model, FlamConfig) and model.adaptive_slots:
        inputs |= {"slot_noise": torch.empty(num_clips, model.num_slots), "slot_cost": torch.empty(())}
    return inputs


def stage_size(config: PretrainConfig, stage: Stage) -> StageSize:
    """Returns the memory of a stage on one device, by MEMORY_FORMULA; LPIPS is taken to be VGG16, which needs most."""
    settings = stage_config(config, stage)
    with FakeTensorMode():
        objective = build_objective(config, stage)
        activations = activation_bytes(
            objective, empty_inputs(config, stage, settings.micro_batch), settings.precision == "bf16"
        )
    states = state_bytes(count_parameters(objective), config.cluster.num_workers, config.cluster.zero_stage)
    return StageSize(*states, activations=activations)


def clip_bytes(config: PretrainConfig, stage: Stage) -> int:
    """Returns the bytes that a micro-batch's peak rises by with each clip, in forward and backward pass together.

    More than `activation_bytes` a clip where few layers make large tensors: their gradients come on top for a moment.
    """
    autocast = stage_config(config, stage).precision == "bf16"
    peaks = []
    for num_clips in (1, 2):
        with FakeTensorMode():
            objective, inputs = build_objective(config, stage), empty_inputs(config, stage, num_clips)
            with LiveBytes() as live:
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss, _ = objective(**inputs)
                loss.backward()
        peaks.append(live.peak)
    return peaks[1] - peaks[0]


def activation_bytes(objective: nn.Module, inputs: dict[str, Tensor], autocast: bool) -> int:
    """Returns the bytes that autograd keeps of one forward pass, under bf16 autocast or not."""
    with count_saved_bytes(objective) as saved, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _ = objective(**inputs)  # alive until its activations are counted
        num_bytes = saved()
    del loss
    return num_bytes


def state_bytes(num_parameters: int, num_workers: int, zero_stage: int) -> tuple[int, int, int]:
    """Bytes of parameters, gradients and optimiser on one device, by MEMORY_FORMULA."""
    shares = [num_workers if zero_stage >= least else 1 for least in (3, 2, 1)]
    bytes_each = (4, 4, 12 if zero_stage else 8)
    parameters, gradients, optimizer = (
        num_parameters * size // share for size, share in zip(bytes_each, shares, strict=True)
    )
    return parameters, gradients, optimizer


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module (count)."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextlib.contextmanager
def count_saved_bytes(module: nn.Module) -> Iterator[Any]:
    """Yields a function that returns the bytes autograd has kept inside the block, the module's parameters left out."""
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(value.untyped_storage().nbytes() for key, value in kept.items() if key not in own)


class LiveBytes(TorchDispatchMode):
    """Counts, inside its `with` block, the bytes of those living tensors that were made there."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._known:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        self._known.add(key)
        self._live += num_bytes
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._drop, key, num_bytes)

    def _drop(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self._live -= num_bytes
