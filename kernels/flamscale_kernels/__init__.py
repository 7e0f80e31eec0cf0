"""Operations that dominate FLAM's compute: slot attention, slot update, causal attention over short sequences."""

from flamscale_kernels.reference import slot_attention_masks
from flamscale_kernels.slot_attention import slot_attention
from flamscale_kernels.slot_update import slot_update
from flamscale_kernels.temporal_attention import temporal_attention, temporal_attention_packed

__all__ = [
    "slot_attention",
    "slot_attention_masks",
    "slot_update",
    "temporal_attention",
    "temporal_attention_packed",
]
