"""How well an encoder fills in what is hidden from it."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from groundup.data.tokens import TokenStream
from groundup.data.windows import IGNORED, Masking, SlidingWindow
from groundup.evaluation.scoring import LanguageScore
from groundup.inference.loading import device_of, evaluating

NOTE = "a masked token is seen from both sides: the sum is no likelihood of the text, so there are no bits per byte"


@torch.inference_mode()
def score_masked(
    model: PreTrainedModel,
    stream: TokenStream,
    context_length: int,
    masking: Masking,
    *,
    batch_rows: int = 16,
    limit_tokens: int | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> LanguageScore:
    """Sum an encoder's negative log likelihood of the tokens that `masking` hides in disjoint windows.

    The same tokens are hidden each time. `limit_tokens` scores about so many positions only, in whole windows spread
    evenly over the stream; `progress` is called with the share done and the loss so far as a text.
    """
    windows = SlidingWindow(stream, max(1, min(context_length, len(stream) - 1)))
    wanted = len(windows) if limit_tokens is None else min(len(windows), -(-limit_tokens // context_length))
    chosen = np.arange(wanted) * len(windows) // max(1, wanted)
    nats, tokens, correct, device = 0.0, 0, 0, device_of(model)
    with evaluating(model):
        for first in range(0, wanted, batch_rows):
            numbers = chosen[first : first + batch_rows]
            batch = masking.apply(windows.batch(numbers)["input_ids"], numbers)
            hidden = batch["labels"] != IGNORED  # (B, T)
            logits = model(input_ids=batch["input_ids"].to(device)).logits
            logits, targets = logits[hidden.to(logits.device)].float(), batch["labels"][hidden].to(logits.device)
            nats += functional.cross_entropy(logits, targets, reduction="sum").item()
            correct += int((logits.argmax(-1) == targets).sum())
            tokens += len(targets)
            if progress:
                progress(min(1.0, (first + batch_rows) / wanted), f"{nats / max(tokens, 1):.3f} nats/token")
    return LanguageScore(nats, tokens, correct, None, context_length, NOTE)
