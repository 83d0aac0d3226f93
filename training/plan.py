"""Choose every size of a run from the amount of text and a budget: vocabulary, model, rows, batch, rates.

The choice depends on data, options and the kind of processor; under a budget in minutes also on the machine's speed,
which is measured for a moment. All of it lands in recipe.yaml before the first step.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from groundup.common.console import say
from groundup.common.errors import InputError, near
from groundup.common.settings import Settings
from groundup.modeling import GroundupConfig
from groundup.modeling.configuration_groundup import PRESETS
from groundup.tokenization.training import bytes_a_token, suitable_vocab_size
from groundup.training.machine import (
    BaseSize,
    bf16_is_native,
    compiler_found,
    cost_of,
    measure_flops,
    require_memory,
    suitable_micro_batch,
)
from groundup.training.optim import learning_rates, question_rate

NOMINAL_FLOPS = 1.2e11  # per second: what two laptop cores give; stands in for the clock where none is part of a budget
USED_SHARE = 0.55  # of the measured matrix-multiply speed that a training step of a small model reaches
DEFAULT_MINUTES = 10.0


@dataclass(frozen=True)
class Size:
    """Hold a model's size and the compute [FLOP] from which on it is the best choice (docs/experiments.md)."""

    hidden_size: int
    num_hidden_layers: int
    context_length: int
    from_flop: float


SIZES = (
    Size(64, 2, 64, 0),
    Size(96, 2, 128, 2e12),
    Size(128, 3, 128, 8e12),
    Size(128, 3, 256, 2.5e13),
    Size(192, 4, 512, 8e13),
    Size(256, 5, 512, 2.5e14),
    Size(384, 6, 512, 1.2e15),
    Size(512, 8, 512, 8e15),
    Size(768, 12, 1024, 8e16),
)
WORTH_COMPILING = 120.0  # seconds of training: compiling takes up to 20, and makes a step a third faster
# Weights forget their past within this share of a pass over the text: the best time constant of decay, in passes, does
# not depend on the sizes (Wang and Aitchison 2024). Measured on texts seen several times: docs/experiments.md.
FORGETTING = 0.3
LEAST_DECAY, MOST_DECAY = 0.1, 3.0
OFTEN = 5.0  # passes over the text foreseen, from which on a smaller vocabulary is better (docs/experiments.md)
_OF_THE_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id")
_SIZES = ("hidden_size", "num_hidden_layers")
_NOT_CHOSEN = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), "tokenizer") | {
    "vocab_size": "tokenizer (--vocab-size)",
    "is_decoder": "kind of model",
    "is_encoder_decoder": "kind of model (--architecture of `instruct`)",
    "add_cross_attention": "kind of model (--architecture of `instruct`)",
    "decoder_start_token_id": "kind of model",
}
SMOKE_SIZE = Size(64, 2, 64, 0)
# Of a model that there is: so many updates at least, by smaller steps, where the time is short; in fewer, LoRA does not
# come to its best, and the larger the steps, the less (Schulman et al. 2025).
ENOUGH_UPDATES = 100
LEAST_BYTES = 12  # of a parameter in training, in fp32: itself, its gradient and Muon's momentum; AdamW keeps one more


@dataclass(frozen=True, kw_only=True)
class Given:
    """Hold what is given of a run; the plan chooses what is None. Names and meanings are those of the settings.

    A model that is not `from_scratch` has its sizes already, of which `weights` are those that each token is multiplied
    with (`sizes_of`), and they decay little; for what depends on who trained it, and on what of it is trained,
    see `learning_rates`. Where `base` names it, its memory is foreseen.
    """

    vocab_size: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    context_length: int | None = None
    preset: str | None = None
    model_config: dict[str, Any] = field(default_factory=dict)
    objective: str = "clm"
    from_scratch: bool = True
    weights: int = 0
    lora: bool = False
    batch_tokens: int | None = None
    micro_batch_rows: int | None = None
    optimizer: str | None = None
    from_elsewhere: bool = False
    share: float = 1.0
    new_head: bool = False
    main: str = "matrix"
    learning_rate: float | None = None
    learning_rate_scale: float = 1.0
    weight_decay: float | None = None
    precision: str = "auto"
    compile: str = "auto"
    smoke: bool = False
    base: str | None = None
    lora_rank: int = 16
    lora_dora: bool = False
    base_precision: str = "fp32"
    gradient_checkpointing: bool = False

    @classmethod
    def of(cls, settings: Settings, **others: Any) -> "Given":
        """Return what a verb's settings give, with `others` in place of theirs."""
        known = {each.name: getattr(settings, each.name) for each in fields(cls) if hasattr(settings, each.name)}
        return cls(**known | others)


@dataclass(kw_only=True)
class Optimization:
    """Hold how gradients become updates: precision, optimizer, learning rates by kind of parameter, their schedule.

    `warmup` and `decay` are shares of the budget; `clip` is the greatest norm of a gradient, None for any; `compiled`
    says that the blocks go through torch.compile, `checkpointed` that they compute activations again on the way back.
    `from_elsewhere` says that the model was pretrained by somebody else, in `base_precision` its frozen matrices are
    held, and `memory` is what training takes [bytes].
    """

    precision: str
    optimizer: str
    rates: dict[str, float]
    weight_decay: float
    warmup: float
    decay: float
    clip: float | None = None
    compiled: bool = False
    from_elsewhere: bool = False
    base_precision: str = "fp32"
    checkpointed: bool = False
    memory: float = 0.0

    def require_memory(self, base: str | None = None, lora: bool = False) -> None:
        """Raise `InputError` where this machine has no room to train a new model, or the one named, or its adapter."""
        what = f"training {self.memory / LEAST_BYTES / 1e6:,.0f} million parameters"
        cure = "make the model smaller (--hidden-size, --num-hidden-layers, --vocab-size)"
        if base is not None:
            what = f"fine-tuning {base}" + (" with --lora" if lora else "")
            cure = "give a smaller model or a shorter --context-length" if lora else "train an adapter with --lora"
        require_memory(self.memory, what, cure)


@dataclass(kw_only=True)
class Plan(Optimization):
    """Hold every choice of a pretraining run, with the reasons in words."""

    vocab_size: int
    model: dict[str, Any]
    context_length: int
    batch_tokens: int
    micro_batch_rows: int
    reasons: dict[str, str] = field(default_factory=dict)

    def for_rows(self) -> dict[str, Any]:
        """Return what a run on rows of different lengths takes of this plan: fields of `RowsPlan`."""
        same = (
            "precision", "optimizer", "from_elsewhere", "rates", "weight_decay", "warmup", "decay", "clip", "model",
            "context_length", "base_precision", "checkpointed", "memory",
        )  # fmt: skip
        tokens = self.micro_batch_rows * self.context_length
        return {name: getattr(self, name) for name in same} | {"micro_batch_tokens": tokens}


@dataclass(kw_only=True)
class RowsPlan(Optimization):
    """Hold what runs on rows of different lengths choose alike; `model`: a new model's fields of `GroundupConfig`."""

    context_length: int
    batch_rows: int
    micro_batch_tokens: int
    model: dict[str, Any]


def suitable_minutes(text_bytes: float) -> float:
    """Return a budget for a text when none is given [minutes]: one for 1 MB, ten from 30 MB on."""
    return round(min(DEFAULT_MINUTES, max(0.5, (text_bytes / 1e6) ** 0.7)), 1)


def make_plan(
    given: Given, text_bytes: float, seconds: float | None, *, flops: float | None = None, tokens: float | None = None
) -> Plan:
    """Choose what is not given for a training text of `text_bytes`.

    Args:
        seconds: training time under a budget in minutes, else None: then nothing is measured.
        flops: speed of the hardware [FLOP/s], where it is not this machine's.
        tokens: a budget in tokens to see, in place of one in time.

    Raises:
        InputError: for bf16 where the processor has no instructions for it, and for sizes that contradict each other.
    """
    precision = precision_of(given)
    if seconds is None:
        flop = NOMINAL_FLOPS * 60 * suitable_minutes(text_bytes)
    else:
        flop = USED_SHARE * (flops or measure_flops(precision)) * seconds
    vocab_size = vocabulary(given, text_bytes)
    size = SMOKE_SIZE if given.smoke else _size(flop, tokens, vocab_size)
    model = _model_fields(given, size)
    longest = model.get("max_position_embeddings")
    context_length = given.context_length or model.pop("max_position_embeddings", size.context_length)
    if longest is not None and context_length > longest:
        if {"max_position_embeddings", "n_positions"} & set(given.model_config):
            raise InputError(f"--context-length {context_length} is more than --model-config's {longest} positions")
        del model["max_position_embeddings"]  # a preset's
    seen = tokens or flop / cost_of_a_token(given, model, vocab_size, context_length)
    if seen * bytes_a_token(vocab_size) / text_bytes > OFTEN:
        vocab_size = vocabulary(given, text_bytes, seen_often=True)
        seen = tokens or flop / cost_of_a_token(given, model, vocab_size, context_length)
    batch_tokens = given.batch_tokens or (1024 if given.smoke else _batch(given, seen))
    rows = max(1, batch_tokens // context_length)
    optimizer = given.optimizer or ("adamw" if given.from_elsewhere else "muon")
    rates = _rates(given, optimizer, model["hidden_size"])
    steps_of_a_pass = text_bytes / bytes_a_token(vocab_size) / (rows * context_length)
    how = {"optimizer": optimizer, "precision": precision, "context_length": context_length}
    return Plan(
        vocab_size=vocab_size,
        model=model,
        context_length=context_length,
        batch_tokens=rows * context_length,
        precision=precision,
        optimizer=optimizer,
        from_elsewhere=given.from_elsewhere,
        rates=rates,
        weight_decay=_weight_decay(given, optimizer, rates, steps_of_a_pass),
        warmup=0.0 if optimizer == "muon" else 0.05,
        decay=0.6,
        clip=1.0 if optimizer == "adamw" else None,
        compiled=_compiled(given, seconds),
        reasons=_reasons(given, size, text_bytes, seconds, flop) | ({"compute": "as given"} if tokens else {}),
        **_room(given, model, vocab_size, rows, how),
    )


def _room(given: Given, model: dict[str, Any], vocab_size: int, most: int, how: dict[str, Any]) -> dict[str, Any]:
    """Choose the rows of a micro-batch, and what else keeps a model to go on with within the memory that is free."""
    length = how["context_length"]
    tokens = suitable_micro_batch(model["hidden_size"], given.lora, given.base_precision)
    rows = min(most, given.micro_batch_rows or max(1, tokens // length))
    held = ["fp32", "bf16", "int8"] if given.base_precision == "auto" else [given.base_precision]
    size = None if given.base is None else BaseSize.of(given.base)
    if size is None:
        usual = {"base_precision": held[0], "checkpointed": given.gradient_checkpointing, "micro_batch_rows": rows}
        return usual | {"memory": 0.0 if given.base else LEAST_BYTES * cost_of(model, vocab_size, length)[0]}
    return size.within(
        rows=[rows] if given.micro_batch_rows else [rows >> halved for halved in range(rows.bit_length())],
        held=held if given.lora and not given.lora_dora else held[:1],
        checkpointed=[True] if given.gradient_checkpointing else [False, True],
        lora_rank=given.lora_rank if given.lora else None,
        how=how,
    )


def vocabulary(given: Given, text_bytes: float, most: int = 16384, *, seen_often: bool = False) -> int:
    """Return the size of a new tokenizer's vocabulary for a text, at most `most` where none is given."""
    if given.vocab_size is not None:
        return given.vocab_size
    return 512 if given.smoke else min(suitable_vocab_size(text_bytes, seen_often=seen_often), most)


def _size(flop: float, tokens: float | None, vocab_size: int) -> Size:
    """Return the largest size that is worth the compute, or worth the tokens at its own cost of each."""

    def compute(size: Size) -> float:
        model = {"hidden_size": size.hidden_size, "num_hidden_layers": size.num_hidden_layers}
        return flop if tokens is None else tokens * cost_of(model, vocab_size, size.context_length)[1]

    return [size for size in SIZES if size.from_flop <= compute(size)][-1]


def _reasons(given: Given, size: Size, text_bytes: float, seconds: float | None, flop: float) -> dict[str, str]:
    """Return the reasons of the choices; for what was given, that it was."""
    reasons = {
        "compute": f"{flop:.2g} FLOP for {'the time given' if seconds is not None else 'an ordinary budget'}",
        "size": f"{size.hidden_size} wide and {size.num_hidden_layers} deep is the best for that compute",
        "context": "the longer a model trains, the more context it learns to use",
        "vocabulary": f"about the square root of {text_bytes:,.0f} bytes of text",
        "batch": "grows with the tokens seen, to the power 0.38",
        "precision": "the processor multiplies bf16 in hardware" if bf16_is_native() else "no bf16 in hardware",
        "weight_decay": "weights forget within a third of an epoch, so that the text is not memorised",
        "compiled": "takes up to 20 seconds and makes a step a third faster: pays from two minutes on",
    }
    was_given = {
        "size": given.preset or given.hidden_size or given.num_hidden_layers,
        "vocabulary": given.vocab_size,
        "batch": given.batch_tokens,
        "context": given.context_length or given.preset,
        "weight_decay": given.weight_decay is not None,
        "compiled": given.compile != "auto",
    }
    reasons |= {name: "as given" for name, was in was_given.items() if was}
    if not given.from_scratch:
        reasons |= {"size": "the model's", "vocabulary": "the model's"}
        if given.weight_decay is None:
            reasons["weight_decay"] = "little: the model was trained before"
    return reasons


def suitable_batch(tokens: float) -> int:
    """Return the tokens of a step for a run that sees so many tokens: a power of two, from 2,048 for a million on.

    Gradients may be averaged over more tokens the less is left to learn; the exponent is nanochat's (read 2026-07), the
    anchor was measured (docs/experiments.md).
    """
    return max(2048, 2 ** round(math.log2(2048 * (tokens / 1e6) ** 0.383)))


def _batch(given: Given, seen: float) -> int:
    """Return the tokens of a step for a run that sees so many: smaller where a model that there is has little time."""
    batch = suitable_batch(seen)
    return batch if given.from_scratch else min(batch, 2 ** int(math.log2(max(1.0, seen / ENOUGH_UPDATES))))


def cost_of_a_token(given: Given, model: dict[str, Any], vocab_size: int, context_length: int) -> float:
    """Return the FLOPs of training on one token: of a frozen weight, which needs no gradient, two thirds."""
    if not given.weights:
        return cost_of(model, vocab_size, context_length)[1]
    attention = 2 * model["num_hidden_layers"] * model["hidden_size"] * context_length
    return (4 if given.lora else 6) * given.weights + 3 * attention


def _weight_decay(given: Given, optimizer: str, rates: dict[str, float], steps_of_a_pass: float) -> float:
    """Return a strong decay for a short text, which a run sees often and would memorise; a weak one for a long one."""
    if given.weight_decay is not None:
        return given.weight_decay
    if optimizer == "adamw" or not given.from_scratch:
        return LEAST_DECAY
    suitable = 1 / (rates["matrix"] * FORGETTING * max(1.0, steps_of_a_pass))
    return round(min(MOST_DECAY, max(LEAST_DECAY, suitable)), 3)


def _compiled(given: Given, seconds: float | None) -> bool:
    """Return whether to compile: under a clock that pays for it, else only if asked: a run is the same everywhere."""
    if given.compile == "yes" and not compiler_found():
        raise InputError("--compile yes: torch.compile needs a C++ compiler and finds none: install g++ or clang")
    if given.compile == "auto":
        return seconds is not None and seconds >= WORTH_COMPILING and not given.smoke and compiler_found()
    return given.compile == "yes"


def precision_of(given: Given) -> str:
    """Return the precision of the products: as given, else bf16 where the device has it."""
    if given.precision == "bf16" and not bf16_is_native():
        raise InputError("--precision bf16: this processor has no instructions for it: use fp32 or auto")
    return ("bf16" if bf16_is_native() else "fp32") if given.precision == "auto" else given.precision


def _model_fields(given: Given, size: Size) -> dict[str, Any]:
    """Return the fields of `GroundupConfig` that the plan, a preset and the options set, the later winning."""
    fields: dict[str, Any] = {"hidden_size": size.hidden_size, "num_hidden_layers": size.num_hidden_layers}
    if given.preset is not None:
        fields = {key: value for key, value in PRESETS[given.preset].items() if key not in _OF_THE_TOKENIZER}
    for name in _SIZES:
        if getattr(given, name) is not None:
            fields[name] = getattr(given, name)
    own = {"is_causal": given.objective == "clm"}
    return fields | _config_fields(given, own) | own


def _config_fields(given: Given, own: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that `model_config` sets. Raises `InputError` for one that is unknown, or set elsewhere."""
    known = [name for name in GroundupConfig.__annotations__ if name in GroundupConfig.__dataclass_fields__]
    aliases = GroundupConfig.attribute_map
    chosen = {aliases.get(name, name): value for name, value in given.model_config.items()}
    elsewhere = own | {name: getattr(given, name) for name in _SIZES if getattr(given, name) is not None}
    for name, value in chosen.items():
        if name not in known:
            raise InputError(f"--model-config: GroundupConfig has no {name!r}{near(name, known)}")
        if name in _NOT_CHOSEN:
            raise InputError(f"--model-config {name}: it comes from the {_NOT_CHOSEN[name]}: leave it out")
        if name in elsewhere and elsewhere[name] != value:
            option = "objective" if name == "is_causal" else name.replace("_", "-")
            raise InputError(f"--model-config {name} {value!r} and --{option} contradict each other: leave one out")
    return chosen


def _rates(given: Given, optimizer: str, width: int) -> dict[str, float]:
    """Return the learning rates, and say of one that is given if it cannot be meant."""
    how = {name: getattr(given, name) for name in ("from_elsewhere", "share", "new_head", "main")}
    usual = learning_rates(optimizer, width, **how)
    if question := question_rate(given.learning_rate, optimizer, given.main, usual):
        say(question)
    return learning_rates(optimizer, width, **how, given=given.learning_rate, scale=given.learning_rate_scale)
