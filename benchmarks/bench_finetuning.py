"""Rows about fine-tuning a large pretrained model: speed and memory of a step, with LoRA and of all weights.

The model has the sizes of SmolLM2-135M and random weights, so that nothing is downloaded. On both sides a step is one
update, from 8 rows of 256 tokens.
"""

import tempfile
from collections.abc import Callable

import torch
from bench_training import ENDS, rows_of_ids, training_run
from datasets import Dataset
from measuring import Row, compare, compare_memory, peak_memory
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from groundup.modeling import GroundupConfig
from groundup.training.machine import bf16_is_native, suitable_micro_batch
from groundup.training.plan import Optimization
from groundup.training.settings import LoraOptions

ROWS, CONTEXT, RUNS = 8, 256, 3
SIZES = {
    "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "tie_word_embeddings": True,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
WHAT = f"SmolLM2-135M's sizes, {ROWS} × {CONTEXT} tokens a step"
RATES = dict.fromkeys(("matrix", "embedding", "head", "vector", "adapter"), 1e-4)


def precision() -> str:
    """Return the precision of both sides: bf16 where the processor has it."""
    return "bf16" if bf16_is_native() else "fp32"


def our_steps(lora: LoraOptions | None, compiled: bool = False) -> Callable[[], object]:
    """Make a step by our loop, in the micro-batches that the plan chooses."""
    how = Optimization(
        precision=precision(), optimizer="adamw", rates=RATES, weight_decay=0.1, warmup=0, decay=0.5, compiled=compiled
    )
    held = "auto" if lora is None else lora.base_precision
    tokens = suitable_micro_batch(SIZES["hidden_size"], lora is not None, held)
    rows = min(ROWS, max(1, tokens // CONTEXT))
    return training_run(GroundupConfig(**SIZES, **ENDS, qk_norm=False), how, rows, ROWS // rows, 1, lora)


def stock_model() -> LlamaForCausalLM:
    """Return the same network as transformers has it."""
    return LlamaForCausalLM(LlamaConfig(**SIZES, **ENDS)).train()


def plain_steps() -> Callable[[], object]:
    """Make a step of the loop that peft's documentation shows: the model's own loss, AdamW."""
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    model = get_peft_model(stock_model(), config)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    ids = rows_of_ids(ROWS, CONTEXT, SIZES["vocab_size"])

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_native()):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def trainers_steps(folder: str) -> Callable[[], object]:
    """Make a step of all weights by transformers' Trainer as it comes; its optimizer is kept from run to run."""
    model = stock_model()
    ids = rows_of_ids(ROWS, CONTEXT, SIZES["vocab_size"]).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    arguments = TrainingArguments(
        output_dir=folder, max_steps=1, per_device_train_batch_size=ROWS, bf16=bf16_is_native(), use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run() -> None:
        constant = torch.optim.lr_scheduler.ConstantLR(optimizer)
        Trainer(model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, constant)).train()

    return run


def lora_step() -> Row:
    """Measure tokens a second of LoRA of rank 16 on all matrices."""
    what = f"LoRA, our loop ÷ a plain loop with peft, {WHAT}, {precision()}"
    return compare(
        "lora-step",
        what,
        "tokens/s",
        ROWS * CONTEXT,
        our_steps(LoraOptions(base_precision="fp32")),
        plain_steps(),
        RUNS,
    )


def full_step() -> Row:
    """Measure tokens a second of training all weights with AdamW."""
    what = f"training all weights with AdamW, our loop ÷ Trainer, {WHAT}, {precision()}"
    with tempfile.TemporaryDirectory() as folder:
        return compare("full-step", what, "tokens/s", ROWS * CONTEXT, our_steps(None), trainers_steps(folder), RUNS)


IMPORTS = """
import torch, transformers, bench_finetuning
"""
OUR_STEP = """
bench_finetuning.our_steps(bench_finetuning.LoraOptions(base_precision=sys.argv[1]))()
"""
PLAIN_STEP = """
bench_finetuning.plain_steps()()
"""


def lora_memory(held: str = "fp32", name: str = "lora-memory") -> Row:
    """Measure the memory that model and step add to a process in which all is imported."""
    base = peak_memory(IMPORTS)
    what = f"memory of a step of LoRA, the plain loop's ÷ ours, whose base is held in {held}, {WHAT}, {precision()}"
    ours, plain = (lambda: peak_memory(IMPORTS + OUR_STEP, held)), (lambda: peak_memory(IMPORTS + PLAIN_STEP))
    return compare_memory(name, what, ours, plain, base, 1)  # three processes, which take a minute each


def lora_memory_int8() -> Row:
    """Measure the same with the frozen matrices in int8."""
    return lora_memory("int8", "lora-memory-int8")
