"""Run lm-eval's tasks on a model in memory: its standard ones where the Hub can be reached, ours (`tasks/`) always.

Prompts and scores are lm-eval's own; so are the examples of a prompt, under seed 0 those of its command. The rows of
our tasks are made of the built-in corpus when a task is loaded, so lm-eval's own command gets the same ones:
`lm_eval --model hf --model_args pretrained=FOLDER --include_path .../groundup/evaluation/tasks --tasks docs_last_word`.
Rows to be measured come from held-out documents, examples for the prompt from the others.
"""

import contextlib
import logging
import math
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from lm_eval import evaluator as lm_evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.errors import InputError, near, user_path
from groundup.data import instruction_tasks, python_docs
from groundup.evaluation.comparison import mean_interval
from groundup.inference.loading import context_of

TASKS_FOLDER = Path(__file__).parent / "tasks"
ROWS = 300  # to be measured
EXAMPLES = 200  # to choose the examples of a prompt from
CHOICES = 4
_SENTENCE = re.compile(r"[^.!?]+[.!?]")
NAMES = {"acc": "accuracy", "acc_norm": "accuracy_norm"}  # lm-eval's name -> ours
FEWSHOT_SEED = 1234  # lm-eval's own, to which the seed is added
_CHOOSING = ("acc", "acc_norm")


@dataclass
class TaskResult:
    """Rows for metrics.json, and for a paired comparison the score of every row: (task, measure) -> values."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[tuple[str, str], list[float]] = field(default_factory=dict)


def find_tasks(names: Sequence[str]) -> TaskManager:
    """Return a task manager that knows `names`: tasks, groups, or YAML files. Raises `InputError` for an unknown one.

    lm-eval's own thousands of tasks are only looked through when a name is none of ours.
    """
    files = [name for name in names if name.endswith((".yaml", ".yml"))]
    for name in files:
        if not user_path(name).is_file():
            raise InputError(f"no task file {name}: give a task's name or its YAML file")
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False)
    wanted = [name for name in names if name not in files]
    if set(wanted) - set(manager.all_tasks):
        with quiet():
            manager = TaskManager(include_path=str(TASKS_FOLDER))
    for name in wanted:
        if not manager.match_tasks([name]):
            ours = sorted(path.stem for path in TASKS_FOLDER.glob("*.yaml"))
            raise InputError(f"unknown task {name!r}{near(name, manager.all_tasks)}: ours are {', '.join(ours)}")
    return manager


def as_lm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_rows: int) -> HFLM:
    """Return the model as lm-eval takes it, with the context it was made for."""
    make: Any = HFLM
    options = {"backend": "causal", "batch_size": batch_rows, "max_length": context_of(model)}
    with quiet():
        return make(pretrained=model, tokenizer=tokenizer, **options)


def run_task(
    lm: HFLM,
    name: str,
    *,
    manager: TaskManager,
    num_fewshot: int = 0,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> TaskResult:
    """Run one task, or all of a group, with `num_fewshot` examples before each question.

    `limit` takes only the first rows of each task. Measures that choose get a baseline: chance among the choices, or
    the most frequent answer. Raises `RuntimeError` where an answer is longer than the context, and what
    lm-eval raises, for instance where a task's rows cannot be downloaded.
    """
    random.seed(seed)
    np.random.seed(FEWSHOT_SEED + seed)
    torch.manual_seed(FEWSHOT_SEED + seed)
    with quiet(progress):
        loaded = manager.load([name])
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") != 0:  # a task that says 0 itself takes no examples
                task.set_config(key="num_fewshot", value=num_fewshot)
            task.set_fewshot_seed(seed=FEWSHOT_SEED + seed)
        # Not `simple_evaluate`: it looks up the machine's packages and settings each time, for three seconds.
        try:
            found: Any = lm_evaluator.evaluate(lm, loaded, limit=limit, bootstrap_iters=0)
        except AssertionError as error:  # lm-eval raises it where a text does not fit into the context
            reason = str(error) or f"an answer is longer than the model's {lm.max_length} tokens"
            raise RuntimeError(f"{name}: {reason}") from error
    if not found or not found["results"]:
        raise RuntimeError(f"lm-eval gave no result for {name}")
    result = TaskResult()
    for task, values in found["results"].items():
        samples = found["samples"].get(task, [])
        shots = found["n-shot"].get(task, num_fewshot)
        before = len(result.rows)
        _add_rows(result, task, values, samples, shots, seed)
        if cut := _cut_off(lm, samples):
            note = f"{cut} prompts of {task} with {shots} examples are longer than the model's {lm.max_length} tokens"
            for row in result.rows[before:]:
                row["note"] = f"{note}: their beginning is cut off"
    return result


def _cut_off(lm: HFLM, samples: list[dict[str, Any]]) -> int:
    """Count the rows whose prompt does not fit into the context; a text alone is read in windows and never cut."""

    def is_cut(prompt: str, *rest: Any) -> bool:
        if not rest:
            return False
        if isinstance(rest[0], str):
            return len(lm.tok_encode(prompt + rest[0])) > lm.max_length + 1
        return len(lm.tok_encode(prompt)) > lm.max_length - rest[0].get("max_gen_toks", lm.max_gen_toks)

    return len({sample["doc_id"] for sample in samples if any(is_cut(*arguments) for arguments in sample["arguments"])})


def _add_rows(
    result: TaskResult, task: str, values: dict[str, Any], samples: list[dict[str, Any]], num_fewshot: int, seed: int
) -> None:
    """Add the rows of one task: a number each, with an interval where it is a mean over rows, and its baseline."""
    for key, value in values.items():
        measure, _, rule = key.partition(",")
        if not rule or measure.endswith("_stderr") or not isinstance(value, int | float):
            continue
        row = {"name": NAMES.get(measure, measure), "value": float(value), "dataset": task, "split": "test"}
        row |= {"count": len(samples), "seed": seed, "num_fewshot": num_fewshot, "baseline": None}
        if rule != "none":
            row["filter"] = rule
        scores = [sample[measure] for sample in samples if sample.get("filter", "none") == rule and measure in sample]
        are_numbers = bool(scores) and all(isinstance(score, int | float) for score in scores)
        if are_numbers and (limits := mean_interval(scores, seed)):
            if math.isclose(value, math.fsum(scores) / len(scores), rel_tol=1e-6):
                result.scores[task, row["name"]] = [float(score) for score in scores]
            elif measure == "perplexity":  # of scores that are log likelihoods
                limits = math.exp(-limits[1]), math.exp(-limits[0])
            else:
                limits = None
            row |= {"low": limits[0], "high": limits[1], "interval": "rows"} if limits else {}
        result.rows.append(row)
        if measure in _CHOOSING and samples:
            choices = [len(sample["arguments"]) for sample in samples]
            name, chance = "chance", sum(1 / count for count in choices) / len(choices)
            if max(choices) == 1:
                answers = Counter(str(sample["target"]) for sample in samples)
                name, chance = "most frequent answer", answers.most_common(1)[0][1] / len(samples)
            alike = {key: item for key, item in row.items() if key not in ("low", "high", "interval")}
            result.rows.append(alike | {"value": chance, "baseline": name})


@contextlib.contextmanager
def quiet(progress: Callable[[float], None] | None = None) -> Iterator[None]:
    """Hide lm-eval's messages and bars inside; `progress` gets the share done of its bar of requests."""

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"file": nowhere, "disable": False})

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            if progress and self.total:
                progress(self.n / self.total)
            return True

    library, level = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
    using: list[Any] = [
        module
        for name, module in sys.modules.items()
        if name.startswith("lm_eval.") and getattr(module, "tqdm", None) is tqdm
    ]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        library.setLevel(logging.ERROR)
        for module in using:
            module.tqdm = Bar
        try:
            yield
        finally:
            for module in using:
                module.tqdm = tqdm
            library.setLevel(level)


# ---------------------------------------------------------------------------------------------------------------------
# The rows of our own tasks: lm-eval calls these functions itself (`custom_dataset` in `tasks/*.yaml`)


def documents(**_: Any) -> datasets.DatasetDict:
    """Return whole documents, column `text`, for a rolling perplexity."""
    splits = python_docs.load()
    parts = {"train": splits["train"], "test": splits["validation"]}
    return datasets.DatasetDict(
        {name: part.select_columns("text").select(range(min(ROWS, len(part)))) for name, part in parts.items()}
    )


def last_words(**_: Any) -> datasets.DatasetDict:
    """Return first sentences of documents without their last word, and the word: columns `beginning` and `word`.

    After LAMBADA (Paperno et al. 2016), except that the word may be guessable from the sentence alone.
    """

    def rows(part: datasets.Dataset, _: random.Random) -> Iterator[dict[str, str]]:
        for row in part.to_list():
            sentence = _SENTENCE.match(_body(row["text"]))
            words = sentence[0][:-1].split() if sentence else []
            if len(words) >= 6 and words[-1].isalpha():
                yield {"beginning": " ".join(words[:-1]), "word": words[-1]}

    return _splits(rows)


def modules(**_: Any) -> datasets.DatasetDict:
    """Return descriptions and four modules, one of them right: columns `text`, `choices` and `answer` (0 to 3)."""
    areas = sorted(set(python_docs.load()["train"]["area"]) - {"topics"})

    def rows(part: datasets.Dataset, chance: random.Random) -> Iterator[dict[str, Any]]:
        for row in part.to_list():
            text = _body(row["text"])
            if row["area"] == "topics" or row["area"].lower() in text.lower():
                continue
            others = chance.sample([area for area in areas if area != row["area"]], CHOICES - 1)
            choices = [row["area"], *others]
            chance.shuffle(choices)
            yield {"text": text, "choices": choices, "answer": choices.index(row["area"])}

    return _splits(rows)


def instructions(family: str, **_: Any) -> datasets.DatasetDict:
    """Return instructions of a built-in family with answers right or wrong: `instruction`, `input` and `output`."""
    name = f"{instruction_tasks.NAME}:{family}"
    train, test = instruction_tasks.load(name), instruction_tasks.load(name, held_out=True)
    return datasets.DatasetDict({"train": train.select(range(min(EXAMPLES, len(train)))), "test": test})


def _splits(rows: Any) -> datasets.DatasetDict:
    """Return the first rows that a function of documents and a random source makes of each split of the corpus."""
    splits = python_docs.load()
    made = {}
    for name, part, count in (("train", "train", EXAMPLES), ("test", "validation", ROWS)):
        order = list(range(len(splits[part])))
        random.Random(name).shuffle(order)  # the corpus is sorted: else all examples come from a few modules
        shuffled = splits[part].select(order)
        made[name] = datasets.Dataset.from_list(
            [row for row, _ in zip(rows(shuffled, random.Random(name)), range(count))]
        )
    return datasets.DatasetDict(made)


def _body(text: str) -> str:
    """Return the first paragraph below a document's heading, on one line, at most 300 characters."""
    return " ".join(text.partition("\n\n")[2].partition("\n\n")[0].split())[:300]
