"""Rows about training: speed, the share of what the machine can multiply, memory, and time to a good loss."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from measuring import Row, bits_per_byte, compare, compare_memory, peak_memory
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import groundup
from groundup.common.console import console
from groundup.data import python_docs
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.training import machine
from groundup.training.loop import Batch, Budget, Loop, Schedule
from groundup.training.lora import add_lora, hold_base
from groundup.training.machine import attending_in_blocks, bf16_is_native, compile_blocks, cost_of, measure_flops
from groundup.training.objectives import TokenLoss
from groundup.training.optim import build_optimizers
from groundup.training.plan import Optimization
from groundup.training.settings import LoraOptions

VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 8192, 384, 6, 6, 256
ROWS, PARTS, STEPS = 8, 4, 4  # rows of a micro-batch, micro-batches of an update, updates of a timed run
RATES = dict.fromkeys(("matrix", "embedding", "head", "vector"), 1e-3)
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}


def rows_of_ids(rows: int = ROWS * PARTS * STEPS, context: int = CONTEXT, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Return random ids (rows, context)."""
    return torch.randint(0, vocabulary, (rows, context), generator=torch.Generator().manual_seed(0))


class RandomRows:
    """Random ids and what follows them, `parts` micro-batches of `rows` for each step."""

    def __init__(self, config: GroundupConfig, rows: int, parts: int, steps: int):
        ids = rows_of_ids(rows * parts * steps, config.max_position_embeddings, config.vocab_size)
        labels = functional.pad(ids, (0, 1), value=0)[:, 1:]
        self.all = [{"input_ids": i, "labels": y} for i, y in zip(ids.split(rows), labels.split(rows))]
        self.parts = parts

    def micro_batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step."""
        return self.all[step * self.parts : (step + 1) * self.parts]


def our_training(optimizer: str, precision: str, compiled: bool) -> Callable[[], object]:
    """Prepare a run of STEPS steps by our loop, a model of ours in our own shape."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = GroundupConfig(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, **sizes, **ENDS)
    how = Optimization(
        precision=precision, optimizer=optimizer, rates=RATES, weight_decay=0.1, warmup=0, decay=0.5, compiled=compiled
    )
    return training_run(config, how, ROWS, PARTS, STEPS)


def training_run(
    config: GroundupConfig, how: Optimization, rows: int, parts: int, steps: int, lora: LoraOptions | None = None
) -> Callable[[], object]:
    """Prepare a run of `steps` steps by our loop on random rows, of all weights or of an adapter."""
    torch.manual_seed(0)
    console.quiet = True
    model = GroundupForCausalLM(config).train()
    if lora is not None:
        model.name_or_path = "somebody/base"
        hold_base(add_lora(model, lora), lora.base_precision)
    if how.compiled:
        compile_blocks(model)
    optimizers = build_optimizers(model, how.optimizer, how.rates, how.weight_decay, how.precision)

    def accelerator() -> Accelerator:
        AcceleratorState._reset_state()  # Trainer resets it, too
        return Accelerator(cpu=True, mixed_precision={"fp32": "no"}.get(how.precision, how.precision))

    objective = accelerator().prepare(TokenLoss(model, how.compiled))
    batches = RandomRows(config, rows, parts, steps)

    def run() -> None:
        loop = Loop(
            accelerator=accelerator(), objective=objective, optimizers=optimizers, batches=batches,
            budget=Budget(steps=steps), schedule=Schedule(), validate=lambda: {"validation_loss": 0.0},
            save=lambda position: None,
        )  # fmt: skip
        with attending_in_blocks(model):
            loop.run()

    return run


def trainers_training(folder: str) -> Callable[[], object]:
    """Prepare as many steps of as many tokens by transformers' Trainer, stock GPT-2, bf16 where it is fast."""
    sizes = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **ENDS, **NO_DROPOUT))
    ids = rows_of_ids().tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    arguments = TrainingArguments(
        output_dir=folder, max_steps=STEPS, per_device_train_batch_size=ROWS, gradient_accumulation_steps=PARTS,
        bf16=bf16_is_native(), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip

    def run() -> None:
        Trainer(model=model, args=arguments, train_dataset=rows).train()

    return run


def train() -> Row:
    """Compare the tokens a second of our loop with its defaults (Muon, blocks compiled) and of Trainer's (AdamW)."""
    precision = "bf16" if bf16_is_native() else "fp32"
    tokens = ROWS * PARTS * STEPS * CONTEXT
    ours = our_training("muon", precision, True)
    with tempfile.TemporaryDirectory() as folder:
        what = f"training, our loop ÷ Trainer + GPT2LMHeadModel, {LAYERS} layers, {WIDTH} wide, {precision}"
        return compare("train", what, "tokens/s", tokens, ours, trainers_training(folder), 3)


def train_uncompiled() -> Row:
    """Compare the same with nothing compiled, as in a run of a minute, and AdamW on both sides."""
    precision = "bf16" if bf16_is_native() else "fp32"
    tokens = ROWS * PARTS * STEPS * CONTEXT
    ours = our_training("adamw", precision, False)
    with tempfile.TemporaryDirectory() as folder:
        what = "the same, nothing compiled, AdamW on both sides"
        return compare("train-adamw", what, "tokens/s", tokens, ours, trainers_training(folder), 3)


def peak_share() -> Row:
    """Divide a step's multiplications a second (Chowdhery et al. 2022, appendix B) by the machine's own speed, fp32."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    _, flop = cost_of(sizes, VOCABULARY, CONTEXT)
    run, tokens = our_training("adamw", "fp32", True), ROWS * PARTS * STEPS * CONTEXT
    run()
    shares = []
    for _ in range(5):
        peak, started = measure_flops("fp32", 1.0), time.perf_counter()
        run()
        shares.append(tokens * flop / (time.perf_counter() - started) / peak)
    speeds = f"{statistics.median(shares) * peak / 1e9:,.0f} GFLOP/s", f"{peak / 1e9:,.0f} GFLOP/s"
    what = "share of the matrix-multiply peak in training, fp32, AdamW, compiled"
    return Row("peak", what, statistics.median(shares), min(shares), max(shares), *speeds)


IMPORTS = """
import torch, transformers, bench_training
"""
OUR_STEP = """
bench_training.large_step(True)
"""
STOCK_STEP = """
bench_training.large_step(False)
"""


def large_step(ours: bool) -> None:
    """Do one step with AdamW on 8 rows of 512 tokens of GPT-2's vocabulary."""
    vocabulary, rows, context = 50257, 8, 512
    sizes = {"vocab_size": vocabulary, "n_positions": context, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    ids = torch.randint(0, vocabulary, (rows, context))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_native()):
        if ours:
            model = GroundupForCausalLM(GroundupConfig.preset("gpt2", **sizes, **ENDS, **NO_DROPOUT)).train()
            optimizers = build_optimizers(model, "adamw", RATES, 0.1)
            labels = functional.pad(ids, (0, 1), value=-100)[:, 1:]
            model.set_attn_implementation(machine.NAME)
            loss = TokenLoss(model)(input_ids=ids, labels=labels) / labels.numel()
        else:
            model = GPT2LMHeadModel(GPT2Config(**sizes, **ENDS, **NO_DROPOUT)).train()
            optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3)]
            loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def memory_step() -> Row:
    """Measure the memory that a step adds to a process in which all is imported."""
    base = peak_memory(IMPORTS)
    what = "memory of a step, GPT2LMHeadModel's ÷ ours, 8 × 512 tokens, vocabulary 50,257, 6 layers, 384 wide"
    ours, stock = (lambda: peak_memory(IMPORTS + OUR_STEP)), (lambda: peak_memory(IMPORTS + STOCK_STEP))
    return compare_memory("memory-step", what, ours, stock, base, 3)


class NanoGPT:
    """nanoGPT's recipe for a processor, read at its commit 3adf61e, in stock parts: characters, 4 layers, 128 wide.

    Context 64, 12 rows, 2,000 updates by AdamW (betas 0.9 and 0.99, decay 0.1 of the matrices), gradients clipped at 1,
    rate 1e-3 after a warm-up of 100 and down a cosine to 1e-4, no dropout, fp32.
    """

    context, rows, steps, warmup, best, least = 64, 12, 2000, 100, 1e-3, 1e-4

    def __init__(self, text: str, seed: int = 0):
        letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
        ids = torch.tensor([letters[letter] for letter in text])
        border = int(len(ids) * 0.9)
        self.train, self.validation = ids[:border], ids[border:]
        self.validation_bytes = len(text[border:].encode())
        torch.manual_seed(seed)
        sizes = {"n_positions": self.context, "n_embd": 128, "n_layer": 4, "n_head": 4}
        self.model = GPT2LMHeadModel(GPT2Config(vocab_size=len(letters), **sizes, **ENDS, **NO_DROPOUT)).train()

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.best * (step + 1) / (self.warmup + 1)
        share = (step - self.warmup) / (self.steps - self.warmup)
        return self.least + 0.5 * (1 + math.cos(math.pi * share)) * (self.best - self.least)

    def run(self) -> None:
        """Train to the end."""
        parameters = list(self.model.parameters())
        matrices = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1}
        rest = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
        optimizer = torch.optim.AdamW([matrices, rest], lr=self.best, betas=(0.9, 0.99))
        for step in range(self.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step)
            starts = torch.randint(len(self.train) - self.context, (self.rows, 1))
            ids = self.train[starts + torch.arange(self.context + 1)]
            logits = self.model(input_ids=ids[:, :-1]).logits
            functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def bits_per_byte(self) -> float:
        """Return the bits per byte of the whole validation text, in disjoint windows."""
        windows = (len(self.validation) - 1) // self.context
        ids = self.validation[: windows * self.context + 1]
        nats = 0.0
        for inputs, targets in zip(
            ids[:-1].view(-1, self.context).split(256), ids[1:].view(-1, self.context).split(256)
        ):
            logits = self.model.eval()(input_ids=inputs).logits
            nats += functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        return nats / math.log(2) / self.validation_bytes * len(self.validation) / (windows * self.context)


def nanogpt(text: str | None) -> Row:
    """Divide the seconds of nanoGPT's recipe by ours, from the raw text to at most its bits per byte.

    Ours counts everything from the call of `pretrain` to the end of training: tokenizer, tokenising, baselines, steps.
    """
    written = Path(text).read_text(encoding="utf-8") if text else "\n\n".join(python_docs.load()["train"]["text"])
    peer = NanoGPT(written)
    started = time.perf_counter()
    peer.run()
    peer_seconds, target = time.perf_counter() - started, peer.bits_per_byte()
    console.quiet = True
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.txt"
        file.write_text(written, encoding="utf-8")
        for number, minutes in enumerate((0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)):
            seconds, bits = time_and_score(file, Path(folder) / str(number), minutes)
            if bits <= target:
                break
    what = f"nanoGPT's recipe to its end ÷ pretrain to the same: {target:.3f} bits per byte, ours {bits:.3f}"
    ratio = peer_seconds / seconds
    return Row("nanogpt", what, ratio, ratio, ratio, f"{seconds:.1f} s", f"{peer_seconds:.1f} s")


def time_and_score(file: Path, out: Path, minutes: float) -> tuple[float, float]:
    """Return the seconds from the call of `pretrain` to the end of its training, and its score on all held-out text."""
    ended, run = [], Loop.run

    def noting(loop: Loop) -> object:
        position = run(loop)
        ended.append(time.perf_counter())
        return position

    Loop.run = noting  # type: ignore[method-assign]
    started = time.perf_counter()
    try:
        groundup.pretrain(data=[str(file)], minutes=minutes, out=str(out), quiet=True)
    finally:
        Loop.run = run
    return ended[0] - started, bits_per_byte(out)
