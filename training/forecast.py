"""The verb `plan`: what a run would choose and take, before a minute is spent on it."""

import math
from dataclasses import dataclass

import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from groundup.common.console import console
from groundup.common.errors import InputError, near
from groundup.common.settings import verb
from groundup.data.sources import load_corpus, text_bytes
from groundup.inference.loading import check_place
from groundup.tokenization.training import bytes_a_token
from groundup.training.checkpoint import pretrained_elsewhere
from groundup.training.machine import BaseSize, cost_of, free_memory, measure_flops, sizes_of
from groundup.training.plan import (
    USED_SHARE,
    Given,
    Plan,
    cost_of_a_token,
    make_plan,
    precision_of,
    suitable_minutes,
)
from groundup.training.pretraining_preparation import LONGEST_ROW, row_length
from groundup.training.settings import PlanSettings, check_options

# The power law nearest to four runs of 3 to 30 minutes on Shakespeare's works (docs/performance.md): bits per byte at a
# compute [FLOP] between them, and the power of the compute by which they fall.
FITTED_FLOP, FITTED_BITS, POWER = 2.0e13, 1.941, 0.053
KEPT_BACK = 0.1  # of the text, for validation


# Model FLOPs per peak FLOPs that a well-made training loop reaches on such cards: 0.46 in Chowdhery et al. 2022
# (section 4.1) with far larger models; a small one reaches less.
USED_SHARE_OF_GPU = 0.35


@dataclass(frozen=True)
class Hardware:
    """Hold what a GPU has: bf16 peak [FLOP/s], memory [bytes], price of an hour [US dollars]."""

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


@dataclass(frozen=True)
class Forecast:
    """Hold what a plan will take: tokens, compute [FLOP], memory [bytes], and what comes of it."""

    plan: Plan
    parameters: int
    trained: int
    tokens: float
    flop: float
    memory: float
    text_tokens: float
    bits_per_byte: float | None  # known of a new model alone
    seconds: float

    @property
    def steps(self) -> int:
        """Return the steps."""
        return max(1, round(self.tokens / self.plan.batch_tokens))

    @property
    def epochs(self) -> float:
        """Return the epochs over the training text."""
        return self.tokens / self.text_tokens


@verb(PlanSettings)
def plan(settings: PlanSettings) -> Forecast:
    """Print what `pretrain` would choose, and what that would take here and on rented cards; return it.

    Raises `InputError` for options that make no sense together.
    """
    forecast = forecast_of(settings)
    console.print(choice_table(forecast))
    console.print(hardware_table(forecast, settings))
    return forecast


def forecast_of(settings: PlanSettings) -> Forecast:
    """Return the plan of `pretrain` for these settings and its cost in compute and memory. Raises `InputError`."""
    if settings.text_bytes is None and not settings.data:
        raise InputError("plan needs the training text: give --data, or its size as --text-bytes")
    if settings.text_bytes is not None and settings.data:
        raise InputError("--data and --text-bytes both give the size of the text: leave one out")
    size = settings.text_bytes or text_bytes(load_corpus(settings.data).train)
    budgets = [name for name in ("minutes", "tokens", "max_steps") if getattr(settings, name) is not None]
    if len(budgets) > 1:
        raise InputError(f"{' and '.join('--' + name.replace('_', '-') for name in budgets)}: give one budget, not two")
    speed = _speed(settings)
    seconds = None if settings.minutes is None else settings.minutes * 60
    flops = None if speed is None else speed / USED_SHARE
    check_options(settings)
    base, given = _base(settings)
    chosen = make_plan(given, size, seconds, flops=flops, tokens=settings.tokens)
    of_a_token = cost_of_a_token(given, chosen.model, chosen.vocab_size, chosen.context_length)
    if base is None:
        parameters, _ = cost_of(chosen.model, chosen.vocab_size, chosen.context_length)
        memory, trained = training_memory(chosen, parameters), parameters
    else:
        parameters, memory = base.parameters, chosen.memory
        trained = base.trained(settings.lora_rank if settings.lora else None)
    speed = speed or USED_SHARE * measure_flops(chosen.precision)
    if settings.tokens is not None:
        tokens = settings.tokens
    elif settings.max_steps is not None:
        tokens = settings.max_steps * chosen.batch_tokens
    else:
        tokens = speed * (seconds or 60 * suitable_minutes(size)) / of_a_token
    text_tokens = size * (1 - KEPT_BACK) / bytes_a_token(chosen.vocab_size)
    return Forecast(
        plan=chosen,
        parameters=parameters,
        trained=trained,
        tokens=tokens,
        flop=tokens * of_a_token,
        memory=memory,
        text_tokens=text_tokens,
        bits_per_byte=expected_bits_per_byte(tokens * of_a_token) if base is None else None,
        seconds=tokens * of_a_token / speed,
    )


def _base(settings: PlanSettings) -> tuple[BaseSize | None, Given]:
    """Return the sizes of the model to go on with, by its config alone, and all that is given; None for a new one."""
    if settings.init_from is None:
        return None, Given.of(settings)
    place = check_place(settings.init_from)
    size = BaseSize.of(settings.init_from)
    if size is None:
        raise InputError(f"--init-from {settings.init_from} has no config.json that transformers knows: give a model")
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(str(place), trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config)
    others = {
        "vocab_size": model.config.get_text_config().vocab_size,
        "context_length": row_length(settings, model, LONGEST_ROW),
        "from_elsewhere": pretrained_elsewhere(settings.init_from),
        "main": "adapter" if settings.lora else "matrix",
    }
    return size, Given.of(settings, **others | sizes_of(model))


def _speed(settings: PlanSettings) -> float | None:
    """Return the model FLOPs a second of the hardware asked for, None for this machine, which is measured."""
    if settings.hardware == "here":
        return None
    if settings.hardware not in HARDWARE:
        known = ["here", *HARDWARE]
        raise InputError(
            f"--hardware {settings.hardware}{near(settings.hardware, known)}: there are {', '.join(known)}"
        )
    return HARDWARE[settings.hardware].peak_flops * USED_SHARE_OF_GPU * settings.cards


def expected_bits_per_byte(flop: float) -> float:
    """Return the bits per byte of English prose after this compute, by a power law fitted to runs (Kaplan et al. 2020).

    Other text differs by more than compute does: documentation of code measured 1.4 where prose measured 2.0.
    """
    return FITTED_BITS * (flop / FITTED_FLOP) ** -POWER


def training_memory(chosen: Plan, parameters: int) -> float:
    """Return the bytes that training takes at its peak: weights, gradients, optimizer, activations, torch.

    An activation is kept for every feature of a block that its backward pass needs: about 17 vectors of the width at
    two or four bytes (Korthikanti et al. 2022, section 4.1, without the part that fused attention does not keep). On a
    processor in bf16 that part is at most 17 MB a layer (`machine.LARGEST_WEIGHTS`).
    """
    width, layers = chosen.model["hidden_size"], chosen.model["num_hidden_layers"]
    rows = chosen.micro_batch_rows * chosen.context_length
    activations = rows * layers * width * 17 * (2 if chosen.precision == "bf16" else 4)
    logits = min(rows * chosen.vocab_size, 2**26) * 4 * 2
    states = 4 * parameters * (4 if chosen.optimizer == "adamw" else 3.5)
    return 5e8 + states + activations + logits


def choice_table(forecast: Forecast) -> Table:
    """Return the table of every choice, and why."""
    chosen = forecast.plan
    table = Table(box=None, pad_edge=False, show_header=False, title="What pretrain would choose", title_justify="left")
    rows = [
        ("vocabulary", f"{chosen.vocab_size:,} tokens", chosen.reasons["vocabulary"]),
        (
            "model",
            f"{chosen.model['num_hidden_layers']} layers, {chosen.model['hidden_size']} wide: "
            f"{forecast.parameters / 1e6:,.1f} M parameters",
            chosen.reasons["size"],
        ),
        ("trained", f"{forecast.trained / 1e6:,.1f} M parameters", ""),
        ("context", f"{chosen.context_length:,} tokens", chosen.reasons["context"]),
        ("batch", f"{chosen.batch_tokens:,} tokens a step", chosen.reasons["batch"]),
        ("precision", chosen.precision, chosen.reasons["precision"]),
        ("optimizer", chosen.optimizer, ""),
        ("decay", f"{chosen.weight_decay:g}", chosen.reasons["weight_decay"]),
        ("compiled", "yes" if chosen.compiled else "no", chosen.reasons["compiled"]),
        ("training", f"{forecast.steps:,} steps, {_tokens(forecast.tokens)}", chosen.reasons["compute"]),
        ("time", _duration(forecast.seconds), "of training, without start, validation and scores"),
        ("epochs", f"{forecast.epochs:.1f}", _epochs_in_words(forecast)),
        ("memory", f"{forecast.memory / 1e9:.1f} GB", _memory_in_words(forecast)),
    ]
    if forecast.bits_per_byte is not None:
        prose = "on English prose, from four runs of 3 to 30 minutes; less on plainer text"
        rows.append(("bits per byte", f"about {forecast.bits_per_byte:.2f}", prose))
    for row in rows:
        table.add_row(*row)
    return table


def _tokens(count: float) -> str:
    return f"{count / 1e6:,.1f} M tokens" if count >= 1e6 else f"{count:,.0f} tokens"


def _memory_in_words(forecast: Forecast) -> str:
    """Return what the memory is for, and what was chosen to need no more than there is."""
    chosen = forecast.plan
    words = f"weights, optimizer, {chosen.micro_batch_rows * chosen.context_length:,} tokens at a time"
    words += ", activations computed again" if chosen.checkpointed else ""
    words += f", frozen matrices in {chosen.base_precision}" if chosen.base_precision != "fp32" else ""
    free = free_memory()
    return words if forecast.memory <= free else f"{words}: more than the {free / 1e9:.1f} GB that are free here"


def _epochs_in_words(forecast: Forecast) -> str:
    if forecast.epochs > 4:
        return "text seen more than four times teaches little (Muennighoff et al. 2023): more text, or a smaller model"
    return "" if forecast.epochs >= 1 else "the budget ends before all of the text is seen"


def hardware_table(forecast: Forecast, settings: PlanSettings) -> Table:
    """Return the table of the same training on rented GPUs: how many hold it, hours and dollars."""
    table = Table(box=None, pad_edge=False, title="\nThe same on other hardware", title_justify="left")
    for column in ("card", "cards", "time", "US dollars"):
        table.add_column(column, justify="left" if column == "card" else "right")
    for name, card in HARDWARE.items():
        cards = settings.cards if name == settings.hardware else max(1, math.ceil(forecast.memory / card.memory))
        seconds = forecast.flop / (card.peak_flops * USED_SHARE_OF_GPU * cards)
        price = settings.dollars_an_hour if name == settings.hardware else None
        dollars = (price or card.dollars_an_hour) * cards * seconds / 3600
        table.add_row(f"{card.name}  (--hardware {name})", str(cards), _duration(seconds), f"{dollars:,.2f}")
    return table


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def trainable_tokens(given: Given, context_length: int, seconds: float) -> float:
    """Return on how many tokens a model that there is can be trained in so many seconds, by this machine's speed."""
    model = {"num_hidden_layers": given.num_hidden_layers, "hidden_size": given.hidden_size}
    speed = USED_SHARE * measure_flops(precision_of(given))
    return speed * seconds / cost_of_a_token(given, model, 0, context_length)
