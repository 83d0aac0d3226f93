"""Measure how well a model answers what it is asked, by its loss and by what it generates.

Answers are generated greedily, many at a time. For each group of rows, exact match is given with
measures of likeness and three signs of a model that went wrong: it does not stop, repeats itself, or copies an answer
verbatim from training.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.data.conversations import Conversation
from groundup.data.encoding import ConversationRows
from groundup.data.windows import by_size
from groundup.evaluation.likelihood import score_batch
from groundup.evaluation.metrics_json import markdown_table
from groundup.evaluation.standard_metrics import as_compared, chrf, exact_match, ngrams, rouge, units
from groundup.inference.generation import Sampling
from groundup.inference.loading import context_of, evaluating
from groundup.inference.writing import decode_together

BATCH_TOKENS, PADDING = 2**13, 0.2  # scored at once, and the greatest share of padding among them
BATCH_PROMPTS = 64  # answered at once
SAMPLES = 10

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class AnswerLoss:
    """The summed loss [nats] over answer tokens, and how many tokens those are."""

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        """Return the nats per answer token, end tokens included; NaN where there is none."""
        return self.nats / self.tokens if self.tokens else math.nan


@torch.inference_mode()
def answer_loss(
    model: PreTrainedModel, rows: ConversationRows, indices: Sequence[int] | np.ndarray | None = None, pad_id: int = 0
) -> AnswerLoss:
    """Return a model's loss on the answer tokens of rows (all of them, or those of `indices`)."""
    chosen = np.arange(len(rows)) if indices is None else np.asarray(indices)
    chosen = chosen[np.argsort(rows.lengths[chosen], kind="stable")]
    nats, tokens = 0.0, 0
    with evaluating(model):
        for part in by_size(chosen, rows.lengths, BATCH_TOKENS, PADDING):
            batch = (rows.pairs if model.config.is_encoder_decoder else rows.batch)(part, pad_id)
            labels = batch["labels"] if model.config.is_encoder_decoder else batch.pop("labels")
            scored, _ = score_batch(model, batch, labels, use_cache=False)
            nats, tokens = nats + float(scored.sum(dtype=np.float64)), tokens + len(scored)
    return AnswerLoss(nats, tokens)


# ---------------------------------------------------------------------------------------------------------------------
# Generating


@dataclass(frozen=True)
class Answer:
    """The text that a model generated, and whether it ended by itself."""

    text: str
    stopped: bool


@torch.inference_mode()
def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    longest: int,
    progress: Progress | None = None,
) -> list[Answer]:
    """Return the greedy answer to each prompt's ids, of at most `longest` tokens and what the context holds.

    Prompts are answered together in their order. One that fills the context gets an empty answer that did not stop.
    """
    answers = [Answer("", stopped=False)] * len(prompts)
    context = context_of(model) - (0 if model.config.is_encoder_decoder else 1)
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= context]
    with evaluating(model):
        for start in range(0, len(fitting), BATCH_PROMPTS):
            part = [prompts[index] for index in fitting[start : start + BATCH_PROMPTS]]
            room = context + 1 - (0 if model.config.is_encoder_decoder else max(map(len, part)))
            greedy = Sampling(temperature=0, max_new_tokens=min(longest, room), stop_ids=tuple(stop_ids))
            written = decode_together(model, part, [greedy] * len(part))
            for index, (ids, reason) in zip(fitting[start : start + BATCH_PROMPTS], written):
                text = str(tokenizer.decode(ids, skip_special_tokens=True))
                answers[index] = Answer(text, stopped=reason == "stop")
            if progress:
                progress((start + len(part)) / len(fitting), f"{start + len(part):,} answers")
    return answers


# ---------------------------------------------------------------------------------------------------------------------
# Scoring


def score_answers(
    answers: Sequence[Answer], references: Sequence[str], trained: Collection[str] = ()
) -> dict[str, float]:
    """Return measures of answers by name; all but chrF (0 to 100) are shares.

    `exact_match`, `chrf` (Popović 2015) and `rouge_l` (F1; Lin 2004) ignore white space around an answer and how
    Unicode composes its letters. `stopped`: answers that end by themselves. `repetition`: sequences of four units
    (words, marks, letters where there are no blanks) that occur earlier in the same answer (Welleck et al. 2020).
    `copied`: wrong answers that are an answer of `trained`, verbatim.
    """
    texts, right = [as_compared(answer.text) for answer in answers], [as_compared(text) for text in references]
    known = {as_compared(text) for text in trained}
    wrong = [text for text, reference in zip(texts, right, strict=True) if text != reference]
    return {
        **exact_match(texts, right),
        "chrf": chrf(texts, [[reference] for reference in right])["score"],
        "rouge_l": rouge(texts, right, ["rougeL"])["rougeL"],
        "stopped": sum(answer.stopped for answer in answers) / len(answers),
        "repetition": sum(repetition(answer.text) for answer in answers) / len(answers),
        "copied": sum(text in known for text in wrong if text) / len(texts),
    }


def repetition(text: str, length: int = 4) -> float:
    """Return the share of sequences of `length` units that occur earlier in the same text; 0 for a shorter text."""
    sequences = ngrams(units(text), length)
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def answer_rows(
    conversations: Sequence[Conversation], answers: Sequence[Answer], trained: Collection[str], about: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return rows for metrics.json: the measures over all conversations, then of each family where there are several.

    `about` has `dataset`, `split` and `seed`; a family's rows have the dataset `DATASET/FAMILY`.
    """
    families = dict.fromkeys(conversation.family for conversation in conversations)
    groups: list[tuple[dict[str, str], list[int]]] = [({}, list(range(len(conversations))))]
    if len(families) > 1:
        for family in families:
            indices = [index for index, row in enumerate(conversations) if row.family == family]
            name = family or "(no family)"
            groups.append(({"dataset": f"{about['dataset']}/{name}", "family": name}, indices))
    rows = []
    for group, indices in groups:
        measures = score_answers(
            [answers[index] for index in indices], [conversations[index].answer for index in indices], trained
        )
        shared = {**about, **group, "count": len(indices), "baseline": None}
        rows += [{"name": name, "value": value, **shared} for name, value in measures.items()]
    return rows


def sample_table(conversations: Iterable[Conversation], before: Iterable[Answer], after: Iterable[Answer]) -> str:
    """Return a Markdown table of prompts, right answers, and a model's answers before and after training."""
    rows = []
    for conversation, old, new in zip(conversations, before, after):
        cells = (conversation.prompt[-1]["content"] if conversation.prompt else "", conversation.answer)
        texts = [*cells, *(answer.text + ("" if answer.stopped else " …") for answer in (old, new))]
        rows.append([" ".join(text[:400].replace("|", "\\|").split()) for text in texts])
    return markdown_table(["asked", "right", "before", "after"], rows)
