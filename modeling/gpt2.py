"""Translate GPT-2's checkpoints (Radford et al. 2019): its names, its settings and its way to store a matrix.

    GPT-2's tensors --from_gpt2--> ours --to_gpt2--> GPT-2's, the same bits

GPT-2 keeps queries, keys and values in one matrix, and stores matrices (in, out) where `nn.Linear` has (out, in).
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import GPT2Config

from .configuration_groundup import GPT2_KNOBS, GroundupConfig

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

# GPT-2's name of a module -> ours; three of ours where it keeps them as one.
_OUTSIDE = {
    "wte": ("model.embed_tokens",),
    "wpe": ("model.embed_positions",),
    "ln_f": ("model.norm",),
    "lm_head": ("lm_head",),
}
_IN_BLOCK = {
    "ln_1": ("input_layernorm",),
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.o_proj",),
    "ln_2": ("post_attention_layernorm",),
    "mlp.c_fc": ("mlp.up_proj",),
    "mlp.c_proj": ("mlp.down_proj",),
}
# Old files keep the causal mask of each block beside its weights.
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")

# GPT-2's name of a setting -> ours.
_SETTINGS = {
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "norm_eps",
    "embd_pdrop": "embedding_dropout",
    "attn_pdrop": "attention_dropout",
    "resid_pdrop": "residual_dropout",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
    "use_cache": "use_cache",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
# Variants of GPT-2 that compute something else.
_ONLY = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}


def groundup_config(config: GPT2Config) -> GroundupConfig:
    """Return the same architecture in our words; raise `ValueError`, naming the setting, where we have none for it."""
    for name, value in _ONLY.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name}={getattr(config, name)} is a variant of GPT-2 that cannot be read: only {value}")
    fields = {ours: getattr(config, theirs) for theirs, ours in _SETTINGS.items()}
    return GroundupConfig(**{**GPT2_KNOBS, **fields})


def gpt2_config(config: GroundupConfig) -> GPT2Config:
    """Return the same architecture in GPT-2's words; the caller must know that it is one."""
    fields: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in _SETTINGS.items()}
    if fields["n_inner"] == 4 * fields["n_embd"]:
        fields["n_inner"] = None
    return GPT2Config(**fields)


def infer_config(tensors: dict[str, torch.Tensor]) -> GPT2Config:
    """Infer the settings of a checkpoint that comes without them from the shapes of its tensors (plain names).

    All of OpenAI's sizes have heads of width 64. Which token ends a text is not known from shapes. Raises `ValueError`
    when embeddings or blocks are missing, or the width does not divide by 64.
    """
    blocks = {int(name.split(".")[1]) for name in tensors if re.match(r"h\.\d+\.", name)}
    if 0 not in blocks or any(name not in tensors or tensors[name].ndim != 2 for name in ("wte.weight", "wpe.weight")):
        raise ValueError("no wte.weight, wpe.weight and h.0 among the tensors: these are not GPT-2's weights")
    vocab_size, width = tensors["wte.weight"].shape
    if width % 64:
        raise ValueError(f"a width of {width} does not divide into heads of 64: put its config.json beside the weights")
    inner = len(tensors["h.0.mlp.c_fc.bias"]) if "h.0.mlp.c_fc.bias" in tensors else 4 * width
    head = tensors.get("lm_head.weight")
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=tensors["wpe.weight"].shape[0],
        n_embd=width,
        n_layer=max(blocks) + 1,
        n_head=width // 64,
        n_inner=None if inner == 4 * width else inner,
        tie_word_embeddings=head is None or torch.equal(head, tensors["wte.weight"]),
        bos_token_id=None,
        eos_token_id=None,
    )


def plain_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights by their short names, `h.0.ln_1.weight`: no `transformer.` before them, no masks."""
    plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        raise ValueError("some tensors are there twice, with and without `transformer.`: which are right is not known")
    return {name: tensor for name, tensor in plain.items() if not _MASK.fullmatch(name)}


def openai_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same for OpenAI's TensorFlow names, `model/h0/ln_1/g`, whose matrices have a first axis of 1."""
    leaves = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    plain = {}
    for name, tensor in tensors.items():
        *path, leaf = re.sub(r"^h(\d+)/", r"h/\1/", name.removeprefix("model/")).split("/")
        is_matrix = leaf == "w" and tensor.ndim == 3 and len(tensor) == 1
        plain[".".join([*path, leaves.get(leaf, leaf)])] = tensor[0] if is_matrix else tensor
    return plain


def tensor_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Return the plain name and the shape of every tensor of a GPT-2."""
    width, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (config.vocab_size, width)}
    shapes["wpe.weight"] = (config.n_positions, width)
    matrices = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, inner),
        "mlp.c_proj": (inner, width),
    }
    for block in range(config.n_layer):
        for name in _IN_BLOCK:
            shape = matrices.get(name, (width,))
            shapes |= {f"h.{block}.{name}.weight": shape, f"h.{block}.{name}.bias": shape[-1:]}
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes


def from_gpt2(tensors: dict[str, torch.Tensor], config: GPT2Config) -> dict[str, torch.Tensor]:
    """Turn GPT-2's tensors, by their plain names, into the state dict of `GroundupForCausalLM`.

    Raises `ValueError` naming each tensor that is missing, that GPT-2 does not have, or that has another shape.
    """
    shapes = tensor_shapes(config)
    head = tensors["lm_head.weight"] if config.tie_word_embeddings and "lm_head.weight" in tensors else None
    if head is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    _check(tensors, shapes)
    if head is not None and not torch.equal(head, tensors["wte.weight"]):
        raise ValueError("lm_head.weight differs from wte.weight, but tie_word_embeddings says that they are one")
    ours = {}
    for name in shapes:
        tensor = tensors[name].t() if name.endswith(TRANSPOSED) else tensors[name]
        places = _our_names(name)
        ours |= {place: part.contiguous() for place, part in zip(places, tensor.chunk(len(places)))}
    return ours


def to_gpt2(tensors: dict[str, torch.Tensor], config: GPT2Config) -> dict[str, torch.Tensor]:
    """Turn the state dict of a `GroundupForCausalLM` with all biases into `GPT2LMHeadModel`'s; undoes `from_gpt2`.

    Raises `ValueError` as that does.
    """
    shapes = tensor_shapes(config)
    if config.tie_word_embeddings:
        tensors = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    _check_names(tensors, [place for name in shapes for place in _our_names(name)])
    theirs = {}
    for name in shapes:
        tensor = torch.cat([tensors[place] for place in _our_names(name)])
        theirs[name] = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
    _check(theirs, shapes)
    return {name if name == "lm_head.weight" else f"transformer.{name}": tensor for name, tensor in theirs.items()}


def _our_names(name: str) -> list[str]:
    """Return the names of ours that one tensor of GPT-2's becomes, in order."""
    module, leaf = name.rsplit(".", 1)
    if module in _OUTSIDE:
        return [f"{ours}.{leaf}" for ours in _OUTSIDE[module]]
    _, block, inside = module.split(".", 2)
    return [f"model.layers.{block}.{ours}.{leaf}" for ours in _IN_BLOCK[inside]]


def _check(tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    _check_names(tensors, shapes)
    wrong = [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if tuple(tensors[name].shape) != shape
    ]
    if wrong:
        raise ValueError(_listed(wrong))


def _check_names(tensors: Iterable[str], expected: Iterable[str]) -> None:
    found, wanted = set(tensors), set(expected)
    if wanted - found:
        raise ValueError(f"missing {_listed(sorted(wanted - found))}")
    if found - wanted:
        raise ValueError(f"{_listed(sorted(found - wanted))}: no tensor of this GPT-2")


def _listed(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


__all__ = [
    "TRANSPOSED",
    "from_gpt2",
    "gpt2_config",
    "groundup_config",
    "infer_config",
    "openai_names",
    "plain_names",
    "tensor_shapes",
    "to_gpt2",
]
