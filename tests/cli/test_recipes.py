"""Every recipe of the package walks its whole path in smoke, with small files in the places of a person's own."""

import json
import re
from html import unescape
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import groundup
from groundup.cli.main import main
from groundup.cli.recipe import read_recipe
from groundup.tokenization.folder import save_tokenizer
from groundup.tokenization.training import train_bpe

ROOT = Path(groundup.__file__).parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
OWN_FILES = {
    "my_domain.txt", "my_text.txt", "my_test.txt", "my_conversations.json", "instruction-data.json",
    "SMSSpamCollection", "r8_train.csv", "spam_train.csv",
}  # fmt: skip


@pytest.fixture
def in_a_folder(story, tmp_path, monkeypatch):
    """Return an empty folder with what the recipes ask a person for."""
    chance = Random(0)
    words = {"ham": ["call", "me", "later", "at", "home"], "spam": ["win", "a", "free", "prize", "now"]}
    lines = [f"{label}\t{' '.join(chance.choices(words[label], k=6))} {n}" for n in range(60) for label in words]
    (tmp_path / "SMSSpamCollection").write_text("\n".join(lines))
    for name in ("r8_train.csv", "r8_test.csv"):
        rows = [f"{name} {' '.join(chance.choices(words[word], k=6))} {n},{word}" for n in range(60) for word in words]
        (tmp_path / name).write_text("\n".join(["text,label", *rows]))
    for name in ("my_domain.txt", "my_text.txt", "my_test.txt"):
        (tmp_path / name).write_text(story.read_text())
    rows = [{"instruction": f"Say {n}.", "output": f"The king says {n}."} for n in range(60)]
    for name in ("my_conversations.json", "instruction-data.json"):
        (tmp_path / name).write_text(json.dumps(rows))
    _small_models(tmp_path, story.read_text())
    story.unlink()
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "book_pretrained.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(compile(snippet, "book_pretrained.md", "exec"), {})  # which makes spam_train.csv and spam_test.csv
    return tmp_path


def _small_models(place, text):
    """Make folders of GPT-2's and SmolLM2's shape where recipes name them on the Hub; a local folder goes first."""
    tokenizer = train_bpe([text], 300)
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, **ends)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 256}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ends))
    for name, model in (
        ("openai-community/gpt2", GPT2LMHeadModel(config)),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", llama),
    ):
        model.save_pretrained(place / name)
        save_tokenizer(tokenizer, place / name)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_walks_its_path_and_leaves_a_page_of_every_stage(path, in_a_folder, groundup):
    done = groundup("run", path, "--smoke")
    assert "report of all stages" in done.stderr
    recipe = read_recipe(path)
    out = in_a_folder / "runs" / f"{recipe.name}-smoke"
    page = (out / "report.html").read_text()
    for stage in recipe.stages:
        assert f"<summary>{stage.name}: every setting</summary>" in page
    if path.stem in ("python_docs", "instructions", "translation", "chat", "book_instructions"):
        shown = unescape(page)
        assert [f"<pre><b>{prompt}" in shown for prompt in recipe.prompts] == [True] * len(recipe.prompts)


def test_files_that_a_person_brings_are_missed_before_the_first_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, missed in (("domain_lora", "stage adapter: no file or folder my_domain.txt"), ("spam", "SMSSpamColl")):
        assert main(["run", name, "--smoke"]) == 2
        assert missed in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_recipe_asks_for_a_file_unknown_here():
    asked = {item for path in RECIPES for stage in read_recipe(path).stages for item in stage.options.get("data", [])}
    assert {
        item for item in asked if not item.startswith(("python-docs", "library-areas", "instruction-tasks"))
    } <= OWN_FILES
