"""What this machine holds; and machines that one does not have: how fast they multiply, what they hold and cost.

Peaks are those of the makers' data sheets, in bf16 without sparsity; prices are medians of on-demand offers.
"""

from dataclasses import dataclass

import psutil
import torch

from groundup.common.errors import InputError

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

LEAST_BYTES = 12  # of a parameter in training, in fp32: itself, its gradient and Muon's momentum; AdamW keeps one more


def free_memory() -> int:
    """What the memory of all graphics cards, or else the processor's with its swap, has room for [bytes]."""
    if torch.cuda.is_available():
        return sum(torch.cuda.mem_get_info(card)[0] for card in range(torch.cuda.device_count()))
    return psutil.virtual_memory().available + psutil.swap_memory().free


def require_memory(parameters: int) -> None:
    """Raise `InputError` for a model that cannot be trained here, however small its batch is."""
    needed, free = LEAST_BYTES * parameters, free_memory()
    if needed > free:
        raise InputError(
            f"training {parameters / 1e6:,.0f} million parameters needs at least {needed / 1e9:,.1f} GB of memory, and "
            f"{free / 1e9:,.1f} GB are free: make the model smaller (--hidden-size, --num-hidden-layers, --vocab-size)"
        )
