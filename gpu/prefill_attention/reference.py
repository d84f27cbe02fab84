"""The plain torch reference of prefill_attention: that of paged_attention, whose contract it shares."""

from __future__ import annotations

from gpu.paged_attention.reference import paged_attention as prefill_attention

__all__ = ["prefill_attention"]
