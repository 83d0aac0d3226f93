"""Translate stock models: the config and the tensors of a class in the table of `architectures.py`, in and out.

    a stock class's config and tensors --groundup_config, from_stock--> ours --stock_config, to_stock--> the same bits

What a class or a config has beyond what ours can say is refused by its name.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import no_init_weights

from .architectures import ALWAYS, ARCHITECTURES, PROJECTIONS, Architecture
from .configuration_groundup import GroundupConfig
from .modeling_groundup import GroundupForCausalLM

# What other classes have and ours has not: settings, and what they say when they are on. Told of the first that is.
_FOREIGN: tuple[tuple[tuple[str, ...], str], ...] = (
    (("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), "it is a mixture of experts"),
    (("attn_logit_softcapping", "final_logit_softcapping"), "it caps its scores softly"),
    (("use_parallel_residual", "parallel_attn"), "its attention and MLP stand side by side"),
    (("alibi",), "it has linear biases for positions (ALiBi)"),
    (("clip_qkv",), "it clips queries, keys and values"),
    (
        ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling", "logit_scale"),
        "it scales its streams",
    ),
)


# ---------------------------------------------------------------------------------------------------------------------
# Configs


def groundup_config(config: PreTrainedConfig) -> GroundupConfig:
    """Return the same architecture in our words.

    Raises `ValueError`, naming the setting, where we have none for it, and `StrictDataclassError` for what
    `GroundupConfig` refuses.
    """
    row = architecture_of(config)
    for name, value in row.only.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name}={getattr(config, name)} is a variant of {config.model_type} that cannot be read: only {value}"
            )
    fields = {ours: getattr(config, theirs) for theirs, ours in row.settings.items()}
    fields |= {knob: value for knob, value in row.knobs.items() if knob not in fields}
    for switch, knobs in row.biases.items():
        fields |= dict.fromkeys(knobs, switch == ALWAYS or getattr(config, switch))
    fields.setdefault("head_dim", getattr(config, "head_dim", None))  # some classes heed it without having it
    if row.windows == "all":
        fields["sliding_window"] = config.sliding_window
    elif row.windows == "each":
        fields["layer_types"] = list(config.layer_types)
        fields["sliding_window"] = config.sliding_window if "sliding_attention" in config.layer_types else None
    ours = GroundupConfig(**fields, zero_init=False)
    if found := obstacles(ours, config.model_type):
        raise ValueError(f"this {config.model_type} model has {', '.join(found)}")
    return ours


def stock_config(config: GroundupConfig, target: str) -> PreTrainedConfig:
    """Return the same architecture in the words of the class `target`; the caller must know that it is one."""
    row = ARCHITECTURES[target]
    fields: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in row.settings.items()}
    for switch, knobs in row.biases.items():
        if switch != ALWAYS:
            fields[switch] = any(getattr(config, knob) for knob in knobs)
    if "rope_parameters" in fields:
        fields["rope_parameters"] = dict(fields["rope_parameters"])
    if fields.get("n_inner") == 4 * config.hidden_size:
        fields["n_inner"] = None
    slides = "sliding_attention" in config.layer_types
    if row.windows != "none":
        fields["sliding_window"] = config.sliding_window if slides else None
    if row.windows == "each":
        fields["layer_types"] = list(config.layer_types)
        if slides and "use_sliding_window" in row.config.__dataclass_fields__:
            fields["use_sliding_window"] = True
            fields["max_window_layers"] = config.layer_types.index("sliding_attention")
    return row.config(**fields)


def obstacles(config: GroundupConfig, target: str) -> list[str]:
    """List the knobs that keep a model of this config from being one of the class `target`; empty where none does."""
    row = ARCHITECTURES[target]
    without = {knob: False for knob in PROJECTIONS if not any(knob in knobs for knobs in row.biases.values())}
    found = [
        f"{knob}={getattr(config, knob)!r} where it has {value!r}"
        for knob, value in {"is_causal": True, "add_cross_attention": False, **row.knobs, **without}.items()
        if getattr(config, knob) != value
    ]
    kinds = set(config.layer_types)
    if "sliding_attention" in kinds and row.windows == "none":
        found.append(f"sliding_window={config.sliding_window} where it sees the whole text")
    elif len(kinds) > 1 and row.windows == "all":
        found.append("layer_types of both kinds where all its layers are alike")
    known = row.settings.values()
    if "num_key_value_heads" not in known and config.num_key_value_heads != config.num_attention_heads:
        found.append(f"num_key_value_heads={config.num_key_value_heads} where it has one for each query head")
    if "head_dim" not in known and config.head_dim * config.num_attention_heads != config.hidden_size:
        found.append(f"head_dim={config.head_dim} where its heads share the width between them")
    if row.divides and config.hidden_size % config.num_attention_heads:
        found.append(f"hidden_size={config.hidden_size}, which does not divide by num_attention_heads")
    return found


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Return the row of a config. Raises `ValueError` for a class that has none, with the reason where it is known."""
    if config.model_type in ARCHITECTURES:
        return ARCHITECTURES[config.model_type]
    if config.model_type == "groundup":
        raise ValueError("it is a groundup model already")
    reason = _foreign(config.get_text_config().to_dict())
    raise ValueError(
        f"a {config.model_type} model cannot be held exactly{reason and ': '}{reason}; "
        f"these can: {', '.join(ARCHITECTURES)}"
    )


def _foreign(values: dict[str, Any]) -> str:
    """Return what a config has that ours cannot express, with the setting; "" where nothing of it is known."""
    factor = (values.get("rope_parameters") or {}).get("partial_rotary_factor", 1)
    if factor != 1:
        return f"it turns a part of each head only (partial_rotary_factor={factor})"
    if 0 in (values.get("no_rope_layers") or []):
        return "it has layers without positions (no_rope_layers)"
    for names, words in _FOREIGN:
        for name in names:
            value = values.get(name)
            if value is True or value not in (None, False, 0, 1):
                return f"{words} ({name}={value})"
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Tensors

# What old files keep beside the weights, though it follows from the config: GPT-2's causal masks, Llama's angles.
_FOLLOWS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def plain_names(tensors: dict[str, torch.Tensor], target: str) -> dict[str, torch.Tensor]:
    """Return the weights of a stock model by their short names, `h.0.ln_1.weight`: no prefix, nothing that follows.

    Raises `ValueError` for tensors that are there with the prefix and without.
    """
    prefix = ARCHITECTURES[target].prefix
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        raise ValueError(f"some tensors are there twice, with and without `{prefix}`: which are right is not known")
    return {name: tensor for name, tensor in plain.items() if not _FOLLOWS.fullmatch(name)}


def full_names(tensors: dict[str, torch.Tensor], target: str) -> dict[str, torch.Tensor]:
    """Return the weights of a stock model by the names in its state dict; undoes `plain_names`."""
    return {_prefixed(name, ARCHITECTURES[target].prefix): tensor for name, tensor in tensors.items()}


def tensor_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Return the plain name and the shape of every tensor of a stock model, or of ours; a tied head is none."""
    make = GroundupForCausalLM if isinstance(config, GroundupConfig) else AutoModelForCausalLM.from_config
    with torch.device("meta"), no_init_weights():
        tensors = make(config).state_dict()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    prefix = "model." if isinstance(config, GroundupConfig) else architecture_of(config).prefix
    return {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in tensors.items()}


def is_transposed(name: str, target: str) -> bool:
    """Return whether a class stores this tensor (in, out)."""
    row = ARCHITECTURES[target]
    module, leaf = _pattern(name.removeprefix(row.prefix))[0].rsplit(".", 1)
    return leaf == "weight" and module in row.transposed


def from_stock(tensors: dict[str, torch.Tensor], config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Turn a stock model's tensors, by their full or plain names, into the state dict of `GroundupForCausalLM`.

    A tensor that is stored alike is taken over, not copied. Raises `ValueError` naming each tensor that is missing,
    that the class does not have, or that has another shape.
    """
    shapes, row = tensor_shapes(config), architecture_of(config)
    tensors = plain_names(tensors, config.model_type)
    embedding = next(name for name, ours in row.modules.items() if ours == ("embed_tokens",)) + ".weight"
    head = tensors["lm_head.weight"] if config.tie_word_embeddings and "lm_head.weight" in tensors else None
    if head is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    _check(tensors, shapes, config.model_type)
    if head is not None and not torch.equal(head, tensors[embedding]):
        raise ValueError(f"lm_head.weight differs from {embedding}, but tie_word_embeddings says that they are one")
    sizes = {_prefixed(name): shape[0] for name, shape in tensor_shapes(groundup_config(config)).items()}
    ours = {}
    for name in shapes:
        tensor = tensors[name].t() if is_transposed(name, config.model_type) else tensors[name]
        places = _our_names(name, row)
        if len(places) == 1:
            ours[places[0]] = tensor.contiguous()
        else:
            parts = tensor.split([sizes[place] for place in places])
            ours |= {place: part.clone(memory_format=torch.contiguous_format) for place, part in zip(places, parts)}
    return ours


def to_stock(tensors: dict[str, torch.Tensor], config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Turn the state dict of a `GroundupForCausalLM` into that of the stock model; undoes `from_stock`.

    Biases that the class has and the model has not are zeros. Raises `ValueError` as `from_stock` does.
    """
    shapes, row = tensor_shapes(config), architecture_of(config)
    filled = _with_biases(tensors, config, row)
    if config.tie_word_embeddings:
        filled = {name: tensor for name, tensor in filled.items() if name != "lm_head.weight"}
    _check_names(filled, [place for name in shapes for place in _our_names(name, row)], config.model_type)
    theirs = {}
    for name in shapes:
        places = _our_names(name, row)
        tensor = filled[places[0]] if len(places) == 1 else torch.cat([filled[place] for place in places])
        theirs[name] = tensor.t().contiguous() if is_transposed(name, config.model_type) else tensor
    _check(theirs, shapes, config.model_type)
    return full_names(theirs, config.model_type)


def _with_biases(
    tensors: dict[str, torch.Tensor], config: PreTrainedConfig, row: Architecture
) -> dict[str, torch.Tensor]:
    """Add zeros where a projection has no bias and the class has one: it has them on all or on none."""
    groups = [knobs for switch, knobs in row.biases.items() if switch == ALWAYS or getattr(config, switch)]
    endings = tuple(f".{name}.weight" for knobs in groups for knob in knobs for name in PROJECTIONS[knob])
    filled = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(endings):
            filled.setdefault(name.removesuffix("weight") + "bias", tensor.new_zeros(len(tensor)))
    return filled


def _our_names(name: str, row: Architecture) -> list[str]:
    """Return the names of ours that one tensor of a stock model becomes, in order."""
    pattern, block = _pattern(name)
    module, leaf = pattern.rsplit(".", 1)
    return [f"{_prefixed(ours.replace('*', block))}.{leaf}" for ours in row.modules[module]]


def _pattern(name: str) -> tuple[str, str]:
    """Return the name of a tensor with a star for its block, and the number of that block, "" outside of one."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    return (name, "") if number is None else (name.replace(number[0], "*", 1), number[0])


def _prefixed(name: str, prefix: str = "model.") -> str:
    return name if name.startswith("lm_head") else prefix + name


def _check(tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]], target: str) -> None:
    _check_names(tensors, shapes, target)
    wrong = [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if tuple(tensors[name].shape) != shape
    ]
    if wrong:
        raise ValueError(_listed(wrong))


def _check_names(tensors: Iterable[str], expected: Iterable[str], target: str) -> None:
    found, wanted = set(tensors), set(expected)
    if wanted - found:
        raise ValueError(f"missing {_listed(sorted(wanted - found))}")
    if found - wanted:
        raise ValueError(f"{_listed(sorted(found - wanted))}: no tensor of this {target} model")


def _listed(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
