"""Whether a model looks at the token it is to predict: its numbers would be wonderful and mean nothing."""

import torch
from transformers import PreTrainedModel

from groundup.common.errors import InputError
from groundup.inference.loading import context_of, device_of, evaluating

TOLERANCE = 1e-3  # between logits of the same positions, relative to their spread


@torch.inference_mode()
def check_causal(model: PreTrainedModel) -> None:
    """Raise `InputError` if what stands later in a text changes a model's prediction: then it sees the answer.

    Two texts with the same first half are read whole; the logits of that half must be the same.
    """
    length = max(2, min(32, context_of(model)))
    vocab_size = model.config.get_text_config().vocab_size
    ids = torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    half = length // 2
    ids[1, :half] = ids[0, :half]
    with evaluating(model):
        logits = model(input_ids=ids.to(device_of(model)), use_cache=False).logits[:, :half].float()
    difference = (logits[0] - logits[1]).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, logits.std().item()):
        raise InputError(
            f"the model's prediction changes by {difference:.2g} with the text that follows: it sees the token it is "
            "to predict, so its numbers would mean nothing; give a causal model"
        )
