"""Before the first step of `instruct`: rows to ids, sizes and rates, all kept in the run's folder.

What is prepared is read back from the folder even by the run that made it, so that a resumed run starts from the same.
"""

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from groundup.common.console import say
from groundup.common.errors import InputError
from groundup.common.settings import Deadline
from groundup.data.conversations import WEIGHT, Conversation, RowCounts, load_conversations
from groundup.data.encoding import ConversationRows, encode_conversations
from groundup.data.sources import check_exists
from groundup.inference.loading import load_model
from groundup.tokenization.chat import ALPACA_TEMPLATE, CHAT_TEMPLATE, INPUT_JOINTS
from groundup.tokenization.folder import CHAT_TOKENS, load_tokenizer
from groundup.tokenization.training import train_bpe
from groundup.training.checkpoint import RunFolder, pretrained_elsewhere
from groundup.training.machine import sizes_of
from groundup.training.optim import FINE_TUNING
from groundup.training.plan import LEAST_DECAY, Given, RowsPlan, make_plan, suitable_minutes, vocabulary
from groundup.training.pretraining_preparation import (
    LONGEST_ROW,
    SMOKE_ROWS,
    evenly,
    row_length,
    write_rows,
    write_texts,
)
from groundup.training.settings import InstructSettings
from groundup.training.verbs import Chosen, preparation

VALIDATION_SHARE = 0.1
LONGEST_CONTEXT = 512  # of a new model, unless it is asked for a longer one
SHORTEST_CONTEXT = 128
PASSES = 8  # over the rows, that a budget is made for where none is given
_TEMPLATES = {"chat": CHAT_TEMPLATE, "alpaca": ALPACA_TEMPLATE}


@dataclass(kw_only=True)
class InstructPlan(RowsPlan):
    """Hold every choice of a run; `stop_ids` end an answer."""

    stop_ids: list[int]


@dataclass
class PreparedInstructions:
    """Hold a run before (or between) its steps, as it lies in its folder."""

    settings: InstructSettings
    plan: InstructPlan
    name: str
    tokenizer: PreTrainedTokenizerFast
    train: ConversationRows
    validation: ConversationRows
    test_rows: int
    work: Path

    def conversations(self, part: str) -> list[Conversation]:
        """Read the messages of `train`, `validation` or `test` (empty without `--split`), in the order of their ids."""
        return read_conversations(self.work / f"{part}.jsonl")


@preparation()
def prepare_instructions(settings: InstructSettings, run: RunFolder, deadline: Deadline) -> Chosen[InstructSettings]:
    """Read the rows, plan, train the tokenizer of a new model, encode.

    Raises `InputError` for data or options that will not do.
    """
    _check(settings)
    tokenizer = None if settings.model is None else load_tokenizer(settings.model)
    template = _template(settings, tokenizer)
    conversations, loaded, sources = load_conversations(settings.data, INPUT_JOINTS.get(template, "\n"))
    for line in loaded.warnings():
        say(line)
    if settings.smoke:
        conversations = [conversations[place] for place in evenly(len(conversations), SMOKE_ROWS)]
    parts = _split(conversations, settings)
    size = sum(len(text.encode()) for text in _texts(parts["train"]))
    if tokenizer is None:
        tokenizer = train_bpe(_texts(parts["train"]), vocabulary(Given.of(settings), size))
    _lay_out(tokenizer, template)
    context, sizes = _limits(settings)
    counts = {part: RowCounts(rows=len(parts[part])) for part in ("train", "validation")}
    rows, stop_ids = {}, frozenset()
    for part in counts:
        rows[part], places, ends = encode_conversations(parts[part], tokenizer, context, counts[part])
        parts[part] = [parts[part][place] for place in places]
        stop_ids |= ends
    for part, what in (("train", "training"), ("validation", "validation")):
        for line in counts[part].warnings(context):
            say(f"{what}: {line}")
    for line in _padding_warnings(tokenizer, stop_ids):
        say(line)
    settings = _with_minutes(settings, size)
    seconds = deadline.after(settings.minutes).seconds_left()
    plan = _plan(settings, rows["train"], context, sizes, size, seconds, stop_ids)
    tested = _look_at_tests(settings, parts["test"], tokenizer, plan.context_length)
    write_texts(run.work, _texts(parts["train"]))
    for part, members in parts.items():
        write_rows(run.work / f"{part}.jsonl", map(dataclasses.asdict, members))
    for part, encoded in rows.items():
        encoded.save(run.work / part)
    numbers = (loaded + counts["train"]).numbers() | {part: len(members) for part, members in parts.items()}
    return settings, plan, tokenizer, {"rows": numbers, "sources": sources} | tested


def open_instructions(run: RunFolder) -> PreparedInstructions:
    """Read back what `prepare_instructions` left."""
    recipe, settings, plan = run.read(InstructSettings, InstructPlan)
    return PreparedInstructions(
        settings=settings,
        plan=plan,
        name=recipe["name"],
        tokenizer=load_tokenizer(run.work / "tokenizer"),
        train=ConversationRows.open(run.work / "train"),
        validation=ConversationRows.open(run.work / "validation"),
        test_rows=recipe.get("eval_rows", recipe["rows"].get("test", 0)),
        work=run.work,
    )


def _check(settings: InstructSettings) -> None:
    if settings.split and (len(settings.split) != 3 or abs(sum(settings.split) - 1) > 1e-6):
        raise InputError(f"--split {settings.split}: give three shares that sum to 1, as [0.85, 0.1, 0.05]")
    if settings.split and settings.eval_data:
        raise InputError("--split and --eval-data both give a test set: leave one out")
    if settings.model is not None and settings.architecture == "encoder-decoder":
        raise InputError("--architecture encoder-decoder makes a new model: leave --model out")
    if settings.model is not None and settings.pretrain_share != InstructSettings.pretrain_share:
        raise InputError("--pretrain-share is for a new model: leave it out, or --model")
    check_exists(settings.eval_data)


def _look_at_tests(
    settings: InstructSettings, split_off: list[Conversation], tokenizer: PreTrainedTokenizerFast, context: int
) -> dict[str, Any]:
    """Return the sources of `--eval-data` for the recipe; report what is wrong with its rows before training.

    Nothing else of them is looked at now. Raises `InputError` for rows that nothing can be measured on.
    """
    if settings.eval_data:
        joint = INPUT_JOINTS.get(str(tokenizer.chat_template), "\n")
        tests, counts, sources = load_conversations(settings.eval_data, joint, held_out=True)
    else:
        tests, counts, sources = split_off, RowCounts(rows=len(split_off)), []
    if tests:
        try:
            encode_conversations(tests, tokenizer, context, counts)
        except InputError as error:
            raise InputError(f"the test rows: {error}") from error
    return {"eval_sources": sources, "eval_rows": len(tests)} if sources else {}


def _template(settings: InstructSettings, tokenizer: PreTrainedTokenizerFast | None) -> str:
    """Return the chat template asked for, else the tokenizer's own, else a layout that needs no new tokens."""
    if settings.layout is not None:
        return _TEMPLATES[settings.layout]
    if tokenizer is None:
        return CHAT_TEMPLATE
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ALPACA_TEMPLATE


def _lay_out(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    """Give the tokenizer the template, and the special tokens that ours names."""
    tokenizer.chat_template = template
    if template == CHAT_TEMPLATE and (missing := [t for t in CHAT_TOKENS if t not in tokenizer.get_vocab()]):
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    if template == ALPACA_TEMPLATE and tokenizer.eos_token is None:
        raise InputError("--layout alpaca needs an end-of-text token, the tokenizer has none: take --layout chat")


def _split(conversations: list[Conversation], settings: InstructSettings) -> dict[str, list[Conversation]]:
    """Split the conversations for training, validation and testing; what is held out is not trained on.

    Whole prompts are kept back where there are enough different ones, else whole rows: new answers to known prompts.
    """
    if settings.split:
        borders = [int(len(conversations) * share) for share in settings.split[:2]]
        train, test = conversations[: borders[0]], conversations[borders[0] : sum(borders)]
        validation = _fresh(conversations[sum(borders) :], train)
    else:
        back = _kept_back(conversations, settings.seed)
        train = [row for row, kept in zip(conversations, back) if not kept]
        validation, test = [row for row, kept in zip(conversations, back) if kept], []
    if not train or not validation:
        different = len({(row.key, row.answer) for row in conversations})
        raise InputError(
            f"{len(conversations):,} rows, {different:,} of them different, are too few to hold some out for "
            "validation: give more different rows"
        )
    return {"train": train, "validation": validation, "test": test}


def _kept_back(conversations: list[Conversation], seed: int) -> list[bool]:
    """Return which rows are held out: a tenth, by chance, and never one of two that are alike."""
    order = np.argsort(np.random.default_rng(seed).permutation(len(conversations)))
    wanted = math.ceil(VALIDATION_SHARE * len(conversations))
    prompts = [row.key for row in conversations]
    by_prompt = _whole_groups(prompts, order, wanted)
    if 2 * sum(by_prompt) >= wanted:
        return by_prompt
    say(
        f"{len(conversations):,} rows have {len(set(prompts)):,} different prompts: the prompts of the held-out rows "
        "are in training too, with other answers"
    )
    rows = [(row.key, row.answer) for row in conversations]
    by_row, sizes = _whole_groups(rows, order, wanted), Counter(rows)
    if not any(by_row) and len(sizes) > 1:  # all stand there too often for a tenth
        fewest = min(sizes, key=lambda row: sizes[row])
        return [row == fewest for row in rows]
    return by_row


def _whole_groups(keys: Sequence[Hashable], order: Iterable[int], wanted: int) -> list[bool]:
    """Return a mask of at most `wanted` rows, drawn in `order`, that holds all rows of a key or none."""
    sizes, chosen, left = Counter(keys), set(), wanted
    for place in order:
        if keys[place] not in chosen and sizes[keys[place]] <= left:
            chosen.add(keys[place])
            left -= sizes[keys[place]]
    return [key in chosen for key in keys]


def _fresh(rows: list[Conversation], train: list[Conversation]) -> list[Conversation]:
    """Return the rows whose prompts are not in training; if less than half, those whose answers are not."""
    asked, answered = {row.key for row in train}, {(row.key, row.answer) for row in train}
    fresh = [row for row in rows if row.key not in asked]
    if 2 * len(fresh) < len(rows):
        fresh = [row for row in rows if (row.key, row.answer) not in answered]
        say(f"most of the {len(rows):,} validation rows have prompts that are in training too, with other answers")
    if len(fresh) < len(rows):
        say(f"{len(rows) - len(fresh):,} of {len(rows):,} held-out rows are in training too: left out")
    return fresh


def _limits(settings: InstructSettings) -> tuple[int, dict[str, Any]]:
    """Return the longest row in tokens, and the sizes of the model to teach; a new one has none yet."""
    if settings.model is None:
        return settings.context_length or LONGEST_CONTEXT, {}
    model, _ = load_model(settings.model, trust_remote_code=settings.trust_remote_code)
    return row_length(settings, model, LONGEST_ROW), sizes_of(model)


def _padding_warnings(tokenizer: PreTrainedTokenizerFast, stop_ids: Iterable[int]) -> list[str]:
    """Return warnings about a padding token that is also an end token."""
    pad: Any = tokenizer.pad_token_id
    if pad is None or pad not in stop_ids:
        return []
    return [
        f"the padding token {tokenizer.pad_token} ends answers, too: here it is trained all the same, but trainers "
        "that leave padding out by its id would never teach the model to stop"
    ]


def _with_minutes(settings: InstructSettings, text_bytes: int) -> InstructSettings:
    """Return the settings with a budget; one made here ends earlier when the validation loss stops falling."""
    if settings.has_budget:
        return settings
    minutes = 10.0 if settings.model is not None else max(1.0, suitable_minutes(PASSES * text_bytes))
    say(f"no budget given: training until the validation loss stops falling, at most {minutes:g} minutes")
    return dataclasses.replace(settings, minutes=minutes)


def _plan(
    settings: InstructSettings,
    rows: ConversationRows,
    context: int,
    sizes: dict[str, Any],
    text_bytes: int,
    seconds: float | None,
    stop_ids: Iterable[int],
) -> InstructPlan:
    """Choose sizes and rates by the plan of pretraining: gentler rates for a model that was trained before."""
    if settings.model is None and settings.context_length is None:
        context = max(SHORTEST_CONTEXT, -(-int(rows.lengths.max()) // 64) * 64)
    given = Given.of(
        settings,
        context_length=context,
        weight_decay=LEAST_DECAY if settings.weight_decay is None else settings.weight_decay,
        **({} if settings.model is None else _fine_tuning(settings, settings.model)),
        **sizes,
    )
    plan = make_plan(given, text_bytes, seconds)
    plan.require_memory(settings.model, settings.lora)
    return InstructPlan(
        **plan.for_rows(),
        batch_rows=max(1, min(len(rows), round(plan.batch_tokens / rows.lengths.mean()))),
        stop_ids=sorted(stop_ids),
    )


def _fine_tuning(settings: InstructSettings, model: str) -> dict[str, Any]:
    """Return what the plan must know of a model that was trained before, for its rates."""
    elsewhere = pretrained_elsewhere(model)
    return {
        "from_elsewhere": elsewhere,
        "share": 1.0 if elsewhere else FINE_TUNING,
        "main": "adapter" if settings.lora else "matrix",
    }


def _texts(conversations: Iterable[Conversation]) -> Iterable[str]:
    """Return the bare text of each conversation: what a tokenizer and a first pretraining learn from.

    An answer of weight 0 is not in it: it is not to be learnt.
    """
    return ("\n".join(message["content"] for message in row.messages if WEIGHT not in message) for row in conversations)


def read_conversations(path: Path) -> list[Conversation]:
    """Return the conversations of a file of rows, one JSON object a line."""
    with path.open(encoding="utf-8") as file:
        return [Conversation(**json.loads(line)) for line in itertools.filterfalse(str.isspace, file)]
