"""Rows about writing: tokens a second, one text at a time, and the memory it takes."""

import tempfile
from typing import Any

import torch
from measuring import Row, as_a_library, compare, compare_memory, peak_memory
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from groundup.inference.generation import Sampling, lay_out_for_decoding, stream_tokens
from groundup.modeling import GroundupConfig, GroundupForCausalLM

SMALL = {"vocab_size": 4096, "n_positions": 256, "n_embd": 256, "n_layer": 6, "n_head": 4}  # 5.9 million parameters
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
PROMPT = list(range(1, 17))


def own_and_stock(**sizes: int) -> tuple[GroundupForCausalLM, GPT2LMHeadModel]:
    """Return a network of ours in GPT-2's shape and transformers' own, random weights; GPT-2 small without `sizes`."""
    own = GroundupForCausalLM(GroundupConfig.preset("gpt2", **ENDS, **sizes))
    return own.eval(), GPT2LMHeadModel(GPT2Config(**ENDS, **sizes)).eval()


def by_generate(model: PreTrainedModel, new: int) -> None:
    """Write `new` tokens by the model's own `generate`."""
    ids = torch.tensor([PROMPT])
    generate: Any = model.generate
    generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new, max_new_tokens=new,
        pad_token_id=0,
    )  # fmt: skip


def by_own_loop(model: PreTrainedModel, new: int) -> None:
    """Write `new` tokens as `groundup generate` does."""
    for _ in stream_tokens(model, PROMPT, Sampling(max_new_tokens=new, temperature=0, stop_ids=(-1,))):
        pass


def generate() -> Row:
    """Compare our decode loop with `generate` of stock GPT-2, a small model."""
    own, stock = own_and_stock(**SMALL)
    lay_out_for_decoding(own)
    what = "groundup generate ÷ GPT2LMHeadModel.generate, 5.9 M parameters, batch 1, greedy, fp32"
    return compare("generate", what, "tokens/s", 100, lambda: by_own_loop(own, 100), lambda: by_generate(stock, 100))


def generate_gpt2() -> Row:
    """Compare `generate` with `generate`, GPT-2 small's shape, as whoever loads a published model has it."""
    return as_a_library(_generate_gpt2)


def _generate_gpt2() -> Row:
    own, stock = own_and_stock()
    what = "GroundupForCausalLM.generate ÷ GPT2LMHeadModel.generate, GPT-2 small, batch 1, greedy, fp32"
    return compare("generate-gpt2", what, "tokens/s", 32, lambda: by_generate(own, 32), lambda: by_generate(stock, 32))


def generate_gpt2_own() -> Row:
    """Compare our decode loop with `generate` of stock GPT-2, GPT-2 small's shape."""
    own, stock = own_and_stock()
    lay_out_for_decoding(own)
    what = "groundup generate ÷ GPT2LMHeadModel.generate, GPT-2 small, batch 1, greedy, fp32"
    return compare(
        "generate-gpt2-own", what, "tokens/s", 32, lambda: by_own_loop(own, 32), lambda: by_generate(stock, 32)
    )


LOAD = """
import torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
prompt = torch.arange(1, 17)[None]
"""
BY_GENERATE = """
options = {"do_sample": False, "min_new_tokens": 32, "max_new_tokens": 32, "pad_token_id": 0}
model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
"""
BY_OWN_LOOP = """
from groundup.inference.generation import Sampling, lay_out_for_decoding, stream_tokens
lay_out_for_decoding(model)
for _ in stream_tokens(model, prompt[0].tolist(), Sampling(max_new_tokens=32, temperature=0, stop_ids=(-1,))):
    pass
"""


def memory_of(name: str, way: str, what: str) -> Row:
    """Divide the peak memory of a process that loads and runs stock GPT-2 small by that of ours."""
    load = "import groundup.modeling" + LOAD  # without the package nobody would run our way of writing
    with tempfile.TemporaryDirectory() as folder:
        for side, model in zip(("ours", "peer"), own_and_stock()):
            model.save_pretrained(f"{folder}/{side}")

        def ours() -> float:
            return peak_memory(load + way, f"{folder}/ours")

        return compare_memory(name, what, ours, lambda: peak_memory(LOAD + BY_GENERATE, f"{folder}/peer"))


def memory_gpt2() -> Row:
    """Compare the peak memory of `generate` with that of `generate`."""
    what = "peak memory: GPT2LMHeadModel.generate's ÷ GroundupForCausalLM.generate's, GPT-2 small"
    return memory_of("memory-gpt2", BY_GENERATE, what)


def memory_gpt2_own() -> Row:
    """Compare the peak memory of our decode loop with that of `generate` of stock GPT-2."""
    what = "peak memory: GPT2LMHeadModel.generate's ÷ groundup generate's, GPT-2 small"
    return memory_of("memory-gpt2-own", BY_OWN_LOOP, what)
