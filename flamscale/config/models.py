"""The models: tokenizer (stage 1), and FLAM or a baseline in its place (stage 2)."""

from dataclasses import dataclass
from typing import Literal

from flamscale.config.checks import require


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Stage 1 model: frame -> N patch tokens of C channels -> frame (Eq. 1)."""

    architecture: Literal["impala", "magvit"] = "impala"
    """impala: IMPALA encoder with LAPO-style decoder, for simulated video; magvit: MAGVIT-v2 style, for real video."""
    image_size: int = 128
    """Height and width of a frame (pixels)."""
    downsample: int = 16
    """Pixels a token covers along each side (a power of two)."""
    base_channels: int = 32
    """Channels of the first encoder level (count); deeper levels double it up to max_channels."""
    max_channels: int = 256
    """Channels of the deepest levels (count)."""
    num_residual_blocks: int = 2
    """Residual blocks a level (count)."""
    patch_channels: int = 256
    """Hidden channels of the patch-wise path beside the convolutions (count)."""
    feature_channels: int = 128
    """Channels C of the features the decoder and FLAM see (count)."""
    fsq_levels: tuple[int, ...] = (4, 4, 4, 4, 4)
    """Quantisation levels of each FSQ dimension; their product is the codebook size."""
    decoder: Literal["regression", "flow"] = "regression"
    """regression: draws the mean of what the tokens leave open, which is blurred; flow: draws one such frame, by flow
    matching in flow-steps passes (beyond the paper, not measured yet)."""
    flow_steps: int = 10
    """Steps from noise to a frame (count, 1 to 20). Without effect on another decoder."""

    def __post_init__(self) -> None:
        require(
            self.downsample >= 2 and self.downsample & (self.downsample - 1) == 0,
            f"tokenizer.downsample must be a power of two from 2 up, got {self.downsample}.",
        )
        require(
            self.image_size > 0 and self.image_size % self.downsample == 0,
            f"tokenizer.image-size must be divisible by tokenizer.downsample, got {self.image_size} and "
            f"{self.downsample}; make shards of another size, or choose another down-sampling.",
        )
        for name in ("base_channels", "max_channels", "num_residual_blocks", "patch_channels", "feature_channels"):
            value = getattr(self, name)
            require(value >= 1, f"tokenizer.{name.replace('_', '-')} must be at least 1, got {value}.")
        require(
            bool(self.fsq_levels) and min(self.fsq_levels) >= 2,
            f"tokenizer.fsq-levels must each be at least 2, got {self.fsq_levels}.",
        )
        require(
            1 <= self.flow_steps <= 20,
            f"tokenizer.flow-steps must lie between 1 and 20, got {self.flow_steps}: training looks no closer "
            "at the frame.",
        )

    @property
    def num_tokens(self) -> int:
        """Tokens N of one frame."""
        return (self.image_size // self.downsample) ** 2


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig:
    """What FLAM and its baselines have in common: blocks, latent actions, and how far a rollout looks back."""

    width: int = 256
    """Model width D of slots and tokens (channels)."""
    action_width: int = 64
    """Width A of one latent action (channels); the paper keeps K*A = D."""
    action_levels: tuple[int, ...] = (4, 4, 4, 4)
    """Levels of each dimension of a quantised latent action; their product is the number of codes. Without effect on
    others."""
    num_heads: int = 8
    """Attention heads of every transformer block (count)."""
    num_blocks: int = 2
    """Blocks in each of IDM, FDM and, if there is one, aggregator (count)."""
    history_frames: int = 7
    """Frames, the current one included, that a rollout looks back on (count); fewer than a clip has."""
    mlp_ratio: int = 4
    """Hidden width of every MLP over its model width (ratio)."""
    activation_checkpointing: bool = False
    """Recompute the factorizer's iterations in the backward pass: less memory, about a third more compute."""
    kernels: Literal["auto", "triton", "reference"] = "auto"
    """Slot attention, slot update and temporal attention: auto (Triton on CUDA, else torch), triton (that, or an
    error), reference (torch)."""
    attention: Literal["sdpa", "flash-attn"] = "sdpa"
    """All other attention by sdpa (torch) or flash-attn (half precision on CUDA; extra gpu)."""

    def __post_init__(self) -> None:
        for name in (
            "width",
            "action_width",
            "num_heads",
            "num_blocks",
            "history_frames",
            "mlp_ratio",
        ):
            value = getattr(self, name)
            require(value >= 1, f"flam.{name.replace('_', '-')} must be at least 1, got {value}.")
        require(
            self.width % (2 * self.num_heads) == 0,
            f"flam.width must be divisible by twice flam.num-heads, got {self.width} and {self.num_heads}.",
        )
        require(
            bool(self.action_levels) and min(self.action_levels) >= 2,
            f"flam.action-levels must each be at least 2, got {self.action_levels}.",
        )


@dataclass(frozen=True, kw_only=True)
class FlamConfig(DynamicsConfig):
    """Stage 2 model: factorizer, IDM, FDM and aggregator on frozen features (Eq. 2-5), or one of its ablations."""

    model: Literal["flam"] = "flam"
    """What these settings are of; --model chooses."""
    num_slots: int = 4
    """Slots K, the number of factors the scene is split into (count)."""
    slot_iterations: int = 3
    """Slot-attention iterations I of the factorizer, each followed by temporal attention (count)."""
    binding: Literal["temporal-attention", "previous-frame"] = "temporal-attention"
    """What binds a slot to its entity: temporal-attention (Eq. 3), or previous-frame (ablation: no attention over time,
    a frame's slots start from those of the frame before)."""
    coupling: Literal["factored", "global"] = "factored"
    """What the IDM and FDM see for a slot: factored (its own next value and action, Eq. 4-5), or global (ablation: all
    slots' next values and actions)."""
    slots_learn_from: Literal["prediction", "reconstruction"] = "prediction"
    """What trains the factorizer: prediction (with all else, Eq. 6), or reconstruction alone (SlotFormer, PlaySlot)."""
    action: Literal["gaussian", "quantized", "none"] = "gaussian"
    """Latent action of a slot: gaussian (Eq. 4), quantized (one of the codes of action-levels), none (SlotFormer)."""
    adaptive_slots: bool = False
    """Each clip keeps some of the slots, chosen by its first frame, and leaves out the others (AdaSlot, arXiv
    2406.09196); num-slots is then the most it can keep, and flam-stage.slot-cost what keeping one costs."""

    def __post_init__(self) -> None:
        require(self.num_slots >= 1, f"flam.num-slots (K) must be at least 1, got {self.num_slots}.")
        require(self.slot_iterations >= 1, f"flam.slot-iterations must be at least 1, got {self.slot_iterations}.")
        require(
            not self.adaptive_slots or self.slots_learn_from == "prediction",
            "flam.adaptive-slots needs flam.slots-learn-from prediction, got reconstruction (SlotFormer, PlaySlot: "
            "their number of slots is fixed); leave it out.",
        )
        require(
            not self.adaptive_slots or self.attention == "sdpa",
            f"flam.adaptive-slots needs flam.attention sdpa, got {self.attention}, which cannot leave slots out.",
        )
        super().__post_init__()

    @property
    def num_actions(self) -> int:
        """Latent actions of one step."""
        return self.num_slots


@dataclass(frozen=True, kw_only=True)
class MonolithicConfig(DynamicsConfig):
    """In place of FLAM: a model with one action a step for the whole scene, and no slots."""

    model: Literal["monolithic"] = "monolithic"
    """What these settings are of; --model chooses."""
    action: Literal["gaussian", "quantized", "true"] = "gaussian"
    """Action of the scene: gaussian (AdaWorld) or quantized, one of the codes of action-levels (Genie), both inferred;
    or true, made of the true actions of all agents, which the data set's labels tell."""
    num_agents: int = 0
    """Agents that have a true action each, at most (count); 0 where actions are inferred."""
    num_agent_actions: int = 0
    """Values of one agent's true action, numbered from 0 (count); 0 where actions are inferred."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_agents", "num_agent_actions"):
            value, flag = getattr(self, name), f"flam.{name.replace('_', '-')}"
            require(self.action != "true" or value >= 1, f"{flag} must be at least 1 for true actions, got {value}.")
            require(
                self.action == "true" or value == 0,
                f"{flag} {value} cannot take effect where actions are inferred; leave it out, or train --model "
                "true-actions.",
            )
        require(
            not self.activation_checkpointing,
            "flam.activation-checkpointing cannot take effect in a monolithic model, which has no factorizer; leave it "
            "out.",
        )

    @property
    def num_actions(self) -> int:
        """Latent actions of one step."""
        return 1

    @property
    def coupling(self) -> Literal["global"]:
        """Every token sees all others and the action."""
        return "global"


WorldModelConfig = FlamConfig | MonolithicConfig
"""Stage 2's model: FLAM, or a baseline in its place."""
