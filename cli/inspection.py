"""Inspect a model on a text: its tokens, the predictions, the loss of each token, and the attention.

All of this comes from one forward pass. The attention weights come from the "eager" kernel, because the fast kernels do
not compute them.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.inference.generation import encode_prompt
from groundup.inference.loading import context_of, device_of, evaluating, require_known
from groundup.tokenization.report import BYTE_OF_LETTER, is_byte_level

LONGEST = 256  # tokens looked at: the attention maps grow with the square
CANDIDATES = 10  # likeliest next tokens shown at each position


@dataclass(frozen=True)
class Candidate:
    """A possible next token, with its probability."""

    text: str
    probability: float


@dataclass(frozen=True)
class Token:
    """A token of a text with its loss and rank, which are None for the first token, since nothing predicts it."""

    id: int
    text: str
    loss: float | None
    """Nats: the negative logarithm of the probability that the model gave it."""
    rank: int | None
    """1 where it was the likeliest."""
    expected: list[Candidate]
    """The likeliest tokens to come after this one, likeliest first."""


@dataclass(frozen=True)
class Inspection:
    """The tokens of a text, the model's predictions and its attention."""

    tokens: list[Token]
    attention: np.ndarray | None
    """(layers, heads, T, T), 0 to 255: how much of its attention each token (row) gives to each other (column); None
    for a model that has no such weights."""
    left_out: int
    """Tokens at the end of the text that were not looked at."""

    @property
    def loss(self) -> float | None:
        """Return the mean loss [nats per token] of all tokens but the first, or None if there is only one."""
        losses = [token.loss for token in self.tokens if token.loss is not None]
        return sum(losses) / len(losses) if losses else None


class Lens:
    """A model and its tokenizer, for inspection. The weights are shared with the model, not copied.

    A second module with the same weights computes the attention, so that the model can generate text at the same time.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, shared)
        self.model.set_attn_implementation("eager")
        self.tokenizer = tokenizer
        self._is_byte_level = is_byte_level(tokenizer)

    @torch.inference_mode()
    def look(self, text: str) -> Inspection:
        """Inspect a text, encoded as a prompt: at most its first `LONGEST` tokens, and at most the model's context.

        Raises `InputError` for an empty text where the tokenizer has no token to begin one with, and for ids that the
        model does not know.
        """
        ids = encode_prompt(self.tokenizer, text)
        require_known(self.model, max(ids))
        kept = ids[: min(LONGEST, context_of(self.model))]
        read = torch.tensor([kept], device=device_of(self.model))
        with evaluating(self.model):
            outputs = self.model(input_ids=read, use_cache=False, output_attentions=True)
        maps = [weights for weights in outputs.attentions or () if weights is not None]
        attention = torch.stack([(layer[0] * 255).round().byte().cpu() for layer in maps]).numpy() if maps else None
        return Inspection(self._tokens(kept, outputs.logits[0].float().cpu()), attention, len(ids) - len(kept))

    def _tokens(self, ids: list[int], logits: torch.Tensor) -> list[Token]:
        """Return the tokens; their losses, ranks and candidates come from `logits` (T, V)."""
        targets = torch.tensor(ids[1:], dtype=torch.long)
        losses = functional.cross_entropy(logits[:-1], targets, reduction="none").tolist()
        ranks = (logits[:-1] > logits[:-1].gather(1, targets[:, None])).sum(1).add(1).tolist()
        probabilities, likeliest = logits.softmax(-1).topk(min(CANDIDATES, logits.shape[1]))
        return [
            Token(
                token,
                self.text_of(token),
                loss,
                rank,
                [Candidate(self.text_of(one), p) for one, p in zip(row_ids, row)],
            )
            for token, loss, rank, row_ids, row in zip(
                ids, [None, *losses], [None, *ranks], likeliest.tolist(), probabilities.tolist()
            )
        ]

    def text_of(self, token: int) -> str:
        """Return the text of a token with its spaces; bytes that are no whole character become ⟨E2 82⟩."""
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # an id beyond the vocabulary: embeddings are padded to a round number
            return f"⟨{token}⟩"
        if not self._is_byte_level or not BYTE_OF_LETTER.keys() >= set(piece):
            return str(piece).replace("▁", " ")
        raw = bytes(BYTE_OF_LETTER[letter] for letter in piece)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return f"⟨{raw.hex(' ').upper()}⟩"
