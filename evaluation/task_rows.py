"""The rows of our own benchmark tasks (`tasks/*.yaml`), made of the built-in corpus when a task is loaded.

lm-eval calls these functions itself (`custom_dataset` in the YAML), so its own command gets the same rows:
`lm_eval --model hf --model_args pretrained=FOLDER --include_path .../groundup/evaluation/tasks --tasks docs_last_word`.
Rows to be measured come from the documents kept back, examples for the prompt from the others.
"""

import random
import re
from collections.abc import Iterator
from typing import Any

import datasets

from groundup.data import instruction_tasks, python_docs

ROWS = 300  # to be measured
EXAMPLES = 200  # to choose the examples of a prompt from
CHOICES = 4
_SENTENCE = re.compile(r"[^.!?]+[.!?]")


def documents(**_: Any) -> datasets.DatasetDict:
    """Whole documents, column `text`, for a rolling perplexity."""
    splits = python_docs.load()
    parts = {"train": splits["train"], "test": splits["validation"]}
    return datasets.DatasetDict(
        {name: part.select_columns("text").select(range(min(ROWS, len(part)))) for name, part in parts.items()}
    )


def last_words(**_: Any) -> datasets.DatasetDict:
    """First sentences of documents without their last word, and the word: columns `beginning` and `word`.

    After LAMBADA (Paperno et al. 2016), except that the word may be guessable from the sentence alone.
    """
    return _splits(_last_words)


def modules(**_: Any) -> datasets.DatasetDict:
    """A description and four modules, one of which it stands in: columns `text`, `choices` and `answer` (0 to 3)."""
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
    """Instructions of a built-in family with an answer that is right or wrong: `instruction`, `input` and `output`."""
    name = f"{instruction_tasks.NAME}:{family}"
    train, test = instruction_tasks.load(name), instruction_tasks.load(name, held_out=True)
    return datasets.DatasetDict({"train": train.select(range(min(EXAMPLES, len(train)))), "test": test})


def _splits(rows: Any) -> datasets.DatasetDict:
    """The first rows that a function of documents and a source of chance makes of each side of the corpus."""
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


def _last_words(part: datasets.Dataset, _: random.Random) -> Iterator[dict[str, str]]:
    for row in part.to_list():
        sentence = _SENTENCE.match(_body(row["text"]))
        words = sentence[0][:-1].split() if sentence else []
        if len(words) >= 6 and words[-1].isalpha():
            yield {"beginning": " ".join(words[:-1]), "word": words[-1]}


def _body(text: str) -> str:
    """The first paragraph below the heading of a document, on one line, at most 300 characters."""
    return " ".join(text.partition("\n\n")[2].partition("\n\n")[0].split())[:300]
