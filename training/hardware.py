"""Machines that one does not have: how fast they multiply, what they hold and what they cost.

Peaks are those of the makers' data sheets, in bf16 without sparsity; prices are medians of on-demand offers.
"""

from dataclasses import dataclass

# Model FLOPs per peak FLOPs that a well-made training loop reaches on such cards: 0.46 in Chowdhery et al. 2022
# (section 4.1) with far larger models; a small one reaches less.
USED_SHARE_OF_GPU = 0.35


@dataclass(frozen=True)
class Hardware:
    """A card: bf16 peak [FLOP/s], memory [bytes], price of an hour [US dollars]."""

    name: str
    peak_flops: float
    memory: float
    dollars_an_hour: float


# Prices as of May 2026: aimultiple.com/gpu-index (H100), mercatus-ai.com/blog/cloud-gpu-pricing (H200, A100: the middle
# of its ranges), gputracker.dev/blog (RTX 4090).
HARDWARE = {
    "h200": Hardware("NVIDIA H200", 989e12, 141e9, 4.00),
    "h100": Hardware("NVIDIA H100 SXM", 989e12, 80e9, 2.95),
    "a100": Hardware("NVIDIA A100 80 GB", 312e12, 80e9, 1.50),
    "rtx4090": Hardware("NVIDIA RTX 4090", 165e12, 24e9, 0.34),
}
