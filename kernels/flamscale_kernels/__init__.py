"""Operations that dominate FLAM's compute: slot attention and causal temporal attention over short sequences."""

from flamscale_kernels.reference import slot_attention, slot_attention_masks, temporal_attention

__all__ = ["slot_attention", "slot_attention_masks", "temporal_attention"]
