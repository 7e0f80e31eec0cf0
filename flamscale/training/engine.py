"""What the training loop asks of an engine, and the engine of a single process.

In: an objective (a module whose `forward(**inputs)` returns a loss and its terms), inputs, a learning rate.
Out: loss terms, gradient norms, updated parameters, and files that bring model and optimiser back bit for bit.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flamscale.config import StageConfig
from flamscale.training.engine_state import (
    MOMENTS,
    check_frozen,
    key,
    open_state,
    read_frozen,
    trainable,
    write_frozen,
    write_state,
)
from flamscale.training.optimizer import build_optimizer, set_learning_rate


class Engine(Protocol):
    """Holds an objective and its optimiser on one device of one or many processes."""

    rank: int
    """This process among world_size."""
    world_size: int
    device: torch.device
    module: nn.Module
    """The objective; with ZeRO-3 its parameters are whole only inside forward."""

    def forward_backward(self, inputs: dict[str, Tensor], accumulation: int) -> dict[str, Tensor]:
        """Runs one of a step's `accumulation` micro-batches; returns its detached loss terms, the loss as "loss"."""

    def step(self, learning_rate: float) -> Float[Tensor, ""]:
        """Clips, updates the parameters and drops the gradients; returns the gradients' norm before clipping."""

    def evaluate(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the loss terms of a micro-batch in eval mode, without gradients."""

    def mean(self, metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Averages scalars over all processes and brings them to the host; every process passes the same names."""

    def barrier(self) -> None:
        """Returns when every process has called it."""

    def save(self, folder: Path) -> None:
        """Writes this process's part of model and optimiser into an existing folder, as in `engine_state`."""

    def load(self, folder: Path) -> None:
        """Restores, bit for bit, what any engine's processes saved there."""

    def full_state_dict(self) -> dict[str, Tensor]:
        """Returns the objective's whole state dict on the CPU of rank 0, {} elsewhere; all processes must call it."""

    def close(self) -> None:
        """Drops gradients, optimiser state and hooks; the engine is of no use afterwards."""


def stack_scalars(metrics: Mapping[str, Tensor | float], device: torch.device) -> Float[Tensor, " n"]:
    """Returns the metrics' values as one float64 vector, in the order of their names."""
    values = [torch.as_tensor(metrics[name], device=device).detach().double() for name in sorted(metrics)]
    return torch.stack(values) if values else torch.empty(0, device=device, dtype=torch.float64)


def with_loss(loss: Tensor, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the loss to its terms, all detached."""
    return {"loss": loss.detach()} | {name: value.detach() for name, value in metrics.items()}


class TorchEngine:
    """Engine of one process on one device.

    bf16 means autocast: parameters, gradients and optimiser states stay fp32.
    """

    def __init__(self, objective: nn.Module, config: StageConfig, device: torch.device, seed: int) -> None:
        torch.manual_seed(seed)
        self.rank, self.world_size, self.device = 0, 1, torch.device(device)
        self.module = objective.to(self.device)
        self._config = config
        self._optimizer = build_optimizer(self.module, config)
        self._parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            return self.module(**inputs)

    def forward_backward(self, inputs: dict[str, Tensor], accumulation: int) -> dict[str, Tensor]:
        loss, metrics = self._forward(inputs)
        (loss / accumulation).backward()
        return with_loss(loss, metrics)

    def step(self, learning_rate: float) -> Float[Tensor, ""]:
        norm = clip_gradients(self._parameters, self._config.grad_clip)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def evaluate(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.module.eval()
        with torch.no_grad():
            loss, metrics = self._forward(inputs)
        self.module.train()
        return with_loss(loss, metrics)

    def mean(self, metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
        return dict(zip(sorted(metrics), stack_scalars(metrics, self.device).tolist(), strict=True))

    def barrier(self) -> None:
        pass

    def save(self, folder: Path) -> None:
        parameters, state = trainable(self.module), self._optimizer.state
        tensors = {key("parameter", name): parameter for name, parameter in parameters.items()}
        for moment in MOMENTS:  # a parameter that has had no gradient has none
            for name, parameter in parameters.items():
                tensors[key(moment, name)] = state[parameter].get(moment, torch.zeros_like(parameter))
        steps = [state[parameter]["step"] for parameter in parameters.values() if state[parameter]]
        write_state(folder, self.rank, tensors, steps[0] if steps else torch.zeros(()))
        write_frozen(folder, self._frozen())

    def load(self, folder: Path) -> None:
        parameters, frozen = trainable(self.module), read_frozen(folder)
        with open_state(folder) as read:
            self.module.load_state_dict(frozen | {name: read(key("parameter", name)) for name in parameters})
            for name, parameter in parameters.items():
                moments = {moment: read(key(moment, name)).to(self.device, copy=True) for moment in MOMENTS}
                self._optimizer.state[parameter] = moments | {"step": read.step.to(self.device, copy=True)}
        check_frozen(self._frozen(), frozen, folder)

    def _frozen(self) -> dict[str, Tensor]:
        parameters = trainable(self.module)
        return {name: value for name, value in self.module.state_dict().items() if name not in parameters}

    def full_state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach().to("cpu", copy=True) for name, value in self.module.state_dict().items()}

    def close(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> Float[Tensor, ""]:
    """Scales the gradients down to an L2 norm of max_norm (0: leaves them); returns their norm, still on the device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
