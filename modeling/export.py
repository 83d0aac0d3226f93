"""Make twins: the same weights as a stock class, which transformers and every engine that serves its models know.

A twin computes what the original computes, to the last bit. What its class cannot express is refused, never rounded.
What only training sees (dropout of embeddings and residuals, initial weights) has no part in that.
"""

import functools
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from .architectures import ARCHITECTURES
from .configuration_groundup import GroundupConfig
from .stock import obstacles, stock_config, to_stock


def make_twin(model: PreTrainedModel, target: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return a stock model with the same weights and the same function; `target` is a row of `ARCHITECTURES`.

    `dtype` is that of the twin's weights; default: the model's own, and then the two share their memory where both
    store a tensor alike. Raises `ValueError`, naming every knob that is in the way and the targets that would do.
    """
    config: GroundupConfig = model.config
    if found := obstacles(config, target):
        others = [name for name in ARCHITECTURES if not obstacles(config, name)]
        hint = f"; it has a twin in {' and '.join(others)}" if others else ""
        raise ValueError(f"no {target} model does exactly the same: {', '.join(found)}{hint}")
    twin_config = stock_config(config, target)
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in model.state_dict().items()}
    twin = assemble(twin_config, to_stock(tensors, twin_config))
    twin.generation_config = model.generation_config
    return twin


def assemble(config: PreTrainedConfig, tensors: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Return the causal language model of this config on exactly these weights, in evaluation mode.

    The tensors are taken, not copied. Its dtype is the smallest that holds them all. Raises `ValueError` naming the
    first weights that the model has and `tensors` lack, or the other way round.
    """
    dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors.values()})
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # `.to(dtype)` would round the rotary angles
    kept = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(kept, strict=False, assign=True)
    model.tie_weights()
    if config.tie_word_embeddings:
        missing = [name for name in missing if name not in model._tied_weights_keys]
    if missing or unexpected:
        raise ValueError(f"weights that do not belong together: missing {missing[:3]}, not known {unexpected[:3]}")
    return model.eval()


def spell_for_transformers_4(config_file: Path) -> None:
    """Write the rotary settings of a saved config.json a second time, as transformers before version 5 reads them.

    It would take its own default base without a word, and every logit would be wrong.
    """
    values = json.loads(config_file.read_text(encoding="utf-8"))
    rope = values.get("rope_parameters")
    if rope:
        values["rope_theta"] = rope["rope_theta"]
        if rope["rope_type"] != "default":
            values["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = ["assemble", "make_twin", "spell_for_transformers_4"]
