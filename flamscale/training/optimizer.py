"""AdamW, its parameter groups and its learning rate: a module, a step and a StageConfig in."""

import math

import torch
from torch import nn

from flamscale.config import StageConfig

RATIO = "learning_rate_ratio"


def learning_rate(step: int, config: StageConfig) -> float:
    """Returns the learning rate of optimiser step `step`, counted from 0; no scheduler state to save.

    Linear warm-up over `warmup_steps`, then constant, or a cosine that reaches min_lr_ratio x peak at the last step.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps + 1) / max(config.num_steps - config.warmup_steps, 1)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * cosine)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Groups the trainable parameters by weight decay (matrices only) and by learning rate.

    As few groups as there are differences: every group costs ZeRO collectives of its own. A parameter's attribute
    `learning_rate_ratio`, where an objective set it, scales its learning rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((decay, getattr(parameter, RATIO, 1.0)), []).append(parameter)
    return [{"params": params, "weight_decay": decay, RATIO: ratio} for (decay, ratio), params in groups.items()]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every parameter group to `rate` times the group's ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[RATIO]


def build_optimizer(module: nn.Module, config: StageConfig) -> torch.optim.AdamW:
    """Returns AdamW over the module's trainable parameters; the engine sets its learning rate before every step."""
    groups = parameter_groups(module, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.adam_betas, fused=True)
