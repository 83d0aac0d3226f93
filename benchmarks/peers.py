"""Three tasks that bench_peers.py gives to both sides, each with our command, the peer's trainer and one score.

The peers train as their documentation shows: LoRA on all linear layers, AdamW, a rate that falls linearly to 0.
"""

import abc
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from groundup.data import instruction_tasks, python_docs
from groundup.data.conversations import Conversation, RowCounts, load_conversations
from groundup.data.encoding import encode_conversations, encode_examples
from groundup.data.examples import Columns, Examples, label_names, load_examples, stratified
from groundup.data.sources import load_documents
from groundup.data.tokens import write_shards
from groundup.evaluation.classification import baselines, predict, scores
from groundup.evaluation.instruction import answer_loss, score_answers, write_answers
from groundup.evaluation.likelihood import score_stream
from groundup.evaluation.metrics_json import SVM
from groundup.inference.loading import quiet_transformers
from groundup.tokenization.chat import ChatEncoder
from groundup.tokenization.folder import load_tokenizer, structure_ids
from groundup.tokenization.report import TokenBytes
from groundup.training.plan import bf16_is_native

ROWS = 8  # in a step, the trainers' default
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
SEED = 0
TEST_SHARE = 0.2  # of labelled rows, as `classify` holds them out
BOOK_TEST = (0.85, 0.95)  # of the instructions, in their order: the book's test rows
TRAINING_TEXT = 0.9  # of a text; the rest is held out
TEXT_CONTEXT = 256  # tokens: a step of the peer's 8 rows then has the 2,048 tokens that a step of ours has
SCORED_TOKENS = 2**14  # of the held-out text, spread over it

Scores = dict[str, float]


@dataclass
class Task(abc.ABC):
    """Define what both sides do with a model. `folder` holds the files; `context` is the row length that ours chose."""

    model: str
    data: str | None
    minutes: float
    folder: Path
    context: int = 0

    measure: ClassVar[str]  # the score that decides
    higher_is_better: ClassVar[bool] = False
    kind: ClassVar[Any] = AutoModelForCausalLM

    def prepare(self) -> None:  # noqa: B027 (a task may have nothing to write)
        """Write the files that both sides read."""

    @abc.abstractmethod
    def command(self) -> list[str]:
        """Return our command, without LoRA, the minutes and the folder."""

    @abc.abstractmethod
    def score(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Scores:
        """Score a model of either side, or one that was not trained, on the held-out rows."""

    @abc.abstractmethod
    def trainer(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rate: float) -> Trainer:
        """Return the peer's trainer, with its own collator."""

    def about(self) -> Scores:
        """Return further scores to print: of a baseline."""
        return {}

    def fields(self) -> dict[str, Any]:
        """Return what the config of the peer's model is told."""
        return {}

    def base(self) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """Load the model for the peer, in fp32 as ours does, and its tokenizer."""
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        torch.manual_seed(SEED)
        fields = {"dtype": torch.float32, "pad_token_id": tokenizer.pad_token_id, **self.fields()}
        with quiet_transformers():
            return self.kind.from_pretrained(self.model, **fields), tokenizer

    @property
    def ours(self) -> Path:
        """Return the folder of our run."""
        return self.folder / "ours"

    def arguments(self, rate: float) -> dict[str, Any]:
        """Return what a trainer is told: all but the clock, this machine and silence is its default."""
        return {
            "output_dir": str(self.folder / "peer"),
            "learning_rate": rate,
            "lr_scheduler_type": "constant",  # `EndsOnTime` lets it fall
            "max_steps": 10**6,
            "per_device_train_batch_size": ROWS,
            "bf16": bf16_is_native(),
            "use_cpu": not torch.accelerator.is_available(),
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "seed": SEED,
        }


class EndsOnTime(TrainerCallback):
    """Let the learning rate fall linearly to 0 over the time that is left, and end training with it."""

    def __init__(self, end: float):
        self.end = end  # as `time.time` gives it, which is the same in all processes

    def on_train_begin(self, args, state, control, **_):
        self.begin = self.step_begin = time.time()

    def on_step_begin(self, args, state, control, optimizer=None, **_):
        self.step_begin = time.time()
        left = max(0.0, self.end - self.step_begin) / max(1e-9, self.end - self.begin)
        for group in optimizer.param_groups:
            group["lr"] = left * args.learning_rate

    def on_step_end(self, args, state, control, **_):
        now = time.time()
        control.should_training_stop = now + (now - self.step_begin) > self.end  # no room for another


# ---------------------------------------------------------------------------------------------------------------------
# Three tasks


class Classification(Task):
    """Labelled rows: accuracy and macro F1."""

    measure, higher_is_better, kind = "accuracy", True, AutoModelForSequenceClassification

    def rows(self) -> tuple[Examples, Examples]:
        """Return the rows to train on, and those that `classify` holds out."""
        examples, _, _ = load_examples([self.data or python_docs.LIBRARY_AREAS], Columns())
        kept, held_out = stratified(examples.labels, TEST_SHARE, SEED)
        return examples.take(kept), examples.take(held_out)

    def names(self) -> list[str]:
        """Return the labels."""
        return label_names(self.rows()[0].labels)

    def command(self) -> list[str]:
        data = self.data or python_docs.LIBRARY_AREAS
        split = ["--test-share", str(TEST_SHARE), "--seed", str(SEED)]
        return ["classify", "--model", self.model, "--data", data, *split]

    def fields(self) -> dict[str, Any]:
        names = dict(enumerate(self.names()))
        return {"id2label": names, "label2id": {name: number for number, name in names.items()}}

    def score(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Scores:
        test, names = self.rows()[1], self.names()
        rows = encode_examples(test.texts, test.labels, names, tokenizer, self.context)
        predicted = predict(model, rows, int(tokenizer.pad_token_id)).argmax(1)  # type: ignore[arg-type]
        return _chosen(scores(rows.labels, predicted, names), "accuracy", "f1_macro")

    def about(self) -> Scores:
        train, test = self.rows()
        names = self.names()
        truth = np.array([names.index(label) for label in test.labels])
        return _chosen(scores(truth, baselines(train, test.texts, names)[SVM], names), "accuracy", "f1_macro")

    def trainer(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rate: float) -> Trainer:
        from peft import LoraConfig, get_peft_model

        train, names = self.rows()[0], self.names()
        encoded = tokenizer(train.texts, truncation=True, max_length=self.context)
        rows = Dataset.from_dict({**encoded, "labels": [names.index(label) for label in train.labels]})
        return Trainer(
            model=get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **LORA)),
            args=TrainingArguments(**self.arguments(rate)),
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(tokenizer),
        )


class Tuning(Task):
    """A task of a language model, which TRL's trainer does."""

    packed: ClassVar[bool]

    @abc.abstractmethod
    def dataset(self) -> Dataset:
        """Return what TRL's trainer reads."""

    def trainer(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rate: float) -> Trainer:
        from peft import LoraConfig
        from trl import SFTConfig, SFTTrainer

        disable_progress_bars()
        # Its default recomputes activations to save memory: a third more time that is not needed here.
        how = {"gradient_checkpointing": False, "packing": self.packed, "packing_strategy": "wrapped"}
        return SFTTrainer(
            model=model,
            args=SFTConfig(**self.arguments(rate), **how, max_length=self.context),
            train_dataset=self.dataset(),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        )


class Instructions(Tuning):
    """Instructions in the book's split: the loss on answer tokens and exact match, of prompts not in training."""

    measure, packed = "answer_loss", False

    def prepare(self) -> None:
        rows, _, _ = load_conversations([self.data or instruction_tasks.NAME], "\n")
        begin, end = (int(share * len(rows)) for share in BOOK_TEST)
        train = rows[:begin] + rows[end:]
        known = {row.key for row in train}
        for name, part in (("train", train), ("test", [row for row in rows[begin:end] if row.key not in known])):
            lines = [json.dumps({"messages": row.messages}, ensure_ascii=False) for row in part]
            (self.folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def rows(self, part: str) -> list[Conversation]:
        """Return the rows of a part."""
        return load_conversations([str(self.folder / f"{part}.jsonl")], "\n")[0]

    def command(self) -> list[str]:
        return ["instruct", "--model", self.model, "--data", str(self.folder / "train.jsonl"), "--seed", str(SEED)]

    def base(self) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        model, tokenizer = super().base()
        tokenizer.chat_template = load_tokenizer(self.ours).chat_template  # a base model may have none
        return model, tokenizer

    def dataset(self) -> Dataset:
        def plain(messages: list[Any]) -> list[dict[str, str]]:
            return [{"role": message["role"], "content": message["content"]} for message in messages]

        rows = [(plain(row.prompt), plain(row.messages[-1:])) for row in self.rows("train")]
        return Dataset.from_list([{"prompt": prompt, "completion": answer} for prompt, answer in rows])

    def score(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Scores:
        tests, encoder = self.rows("test"), ChatEncoder(tokenizer)
        rows, places, stops = encode_conversations(tests, tokenizer, self.context, RowCounts())
        tests = [tests[place] for place in places]
        prompts = [encoder.prompt_ids(row.prompt) for row in tests]
        longest = max(map(len, encoder.encode([row.answer for row in tests]))) + 1
        answers = write_answers(model, tokenizer, prompts, stops, longest)
        exact = score_answers(answers, [row.answer for row in tests])["exact_match"]
        return {"answer_loss": answer_loss(model, rows).mean, "exact_match": exact}


class Domain(Tuning):
    """A text: bits per byte of its end."""

    measure, packed = "bits_per_byte", True

    def prepare(self) -> None:
        if self.data is None:
            text = "\n\n".join(python_docs.load()["train"]["text"])
        else:
            text = Path(self.data).read_text(encoding="utf-8")
        border = int(TRAINING_TEXT * len(text))
        for name, part in (("train", text[:border]), ("test", text[border:])):
            (self.folder / f"{name}.txt").write_text(part, encoding="utf-8")

    def command(self) -> list[str]:
        options = ["--context-length", str(TEXT_CONTEXT), "--seed", str(SEED)]
        return ["pretrain", "--init-from", self.model, "--data", str(self.folder / "train.txt"), *options]

    def dataset(self) -> Dataset:
        return Dataset.from_dict({"text": [(self.folder / "train.txt").read_text(encoding="utf-8")]})

    def score(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Scores:
        documents, _ = load_documents([str(self.folder / "test.txt")])
        with tempfile.TemporaryDirectory() as shards:
            score = score_stream(
                model,
                write_shards(documents, tokenizer, Path(shards) / "test"),
                self.context,
                special_ids=structure_ids(tokenizer),
                token_bytes=TokenBytes.of(tokenizer),
                limit_tokens=SCORED_TOKENS,
            )
        return {"bits_per_byte": score.bits_per_byte or float("nan")}


def _chosen(values: Scores, *names: str) -> Scores:
    return {name: values[name] for name in names}
