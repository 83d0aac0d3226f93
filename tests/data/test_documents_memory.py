"""Memory does not grow with the text. In processes of their own, because a peak never goes down again."""

import subprocess
import sys

import datasets
import pytest

from groundup.tokenization.folder import save_tokenizer
from groundup.tokenization.training import train_bpe

MEGABYTES = 150
LINE = "A line of a document of many lines, which compresses well but is long.\n"

READ = """
import resource, sys
from groundup.data.documents import blocks
from groundup.data.sources import load_corpus
from groundup.data.tokens import write_shards  # what is imported is no part of the growth

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
corpus = load_corpus([sys.argv[1]])
size = sum(piece.bytes for documents in (corpus.train, corpus.validation) for piece in documents.pieces())
size += sum(len(block) for content in corpus.train.contents() for block in blocks(content))
print(size, peak() - before)
"""

PREPARE = """
import resource, sys
from groundup.data.preparation import prepare
from groundup.data.preparation import open_prepared_data

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
prepare(data=[sys.argv[1]], tokenizer=sys.argv[2], out=sys.argv[3], quiet=True)
print(peak() - before)
"""


def run(code: str, *arguments) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "text.txt"
    with path.open("w") as file:
        for _ in range(MEGABYTES):
            file.write(LINE * (10**6 // len(LINE)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv", "parquet"])
def test_reading_a_text_takes_a_part_of_its_size(text, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    path = text
    if kind != "txt":
        rows = datasets.Dataset.from_dict({"text": [LINE * 140] * (MEGABYTES * 100)})
        path = tmp_path / f"rows.{kind}"
        # All rows in one group, the worst there is.
        if kind == "parquet":
            rows.to_pandas().to_parquet(path, row_group_size=len(rows))
        elif kind == "json":
            rows.to_pandas().to_json(path, orient="records")
        else:
            rows.to_csv(path) if kind == "csv" else rows.to_json(path)
    size, growth = run(READ, path)
    assert size > 1.8 * MEGABYTES * 10**6
    assert growth < MEGABYTES * 10**6


@pytest.mark.slow
def test_preparing_a_text_takes_a_part_of_its_size(text, tmp_path):
    save_tokenizer(train_bpe([LINE] * 9, 300), tmp_path / "tok")
    (growth,) = run(PREPARE, text, tmp_path / "tok", tmp_path / "shards")
    assert growth < 1.5 * MEGABYTES * 10**6  # a shard in memory is 67 of them
