import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from groundup.common.settings import write_yaml
from groundup.evaluation.likelihood import LanguageScore, language_rows
from groundup.evaluation.metrics_json import write_metrics
from groundup.publishing.card import write_card
from groundup.tokenization.folder import save_tokenizer

TRAINING = {"seconds": 61.5, "tokens": 1_234_567, "parameters": 2_560_000, "device": "cpu"}
RECIPE = {
    "name": "tiny-docs",
    "verb": "pretrain",
    "plan": {"learning_rate": 0.02, "batch_tokens": 8192},
    "license": "apache-2.0",
    "sources": [{"name": "docs.txt", "bytes": 2_010_000, "sha256": "ab" * 32}],
    "text_column": None,
}


@pytest.fixture
def rows():
    model = LanguageScore(nats=2000.0, tokens=1000, correct=400, bytes=3000, context=256)
    unigram = LanguageScore(nats=4000.0, tokens=1000, correct=100, bytes=3000, context=None)
    return language_rows(model, dataset="docs", split="validation", seed=0, unigram=unigram, xz=2.41)


def test_a_card_is_valid_and_says_what_the_metrics_and_the_recipe_say(tmp_path, rows):
    write_metrics(tmp_path, rows, TRAINING, None)
    write_yaml(tmp_path / "recipe.yaml", RECIPE)
    card = ModelCard.load(write_card(tmp_path))
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == (
        "transformers",
        "text-generation",
        "apache-2.0",
    )
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {row["name"]: row["value"] for row in rows if row["baseline"] is None}
    assert card.data.model_name == "tiny-docs" and "custom_code" in card.data.tags
    for part in ("2,560,000 parameters", "ab" * 32, "| bits per byte | docs, validation | 0.962 | 1.924 | 2.410 |"):
        assert part in card.text
    assert "1,000 tokens (3,000 bytes of text), in windows of 256 tokens" in card.text
    assert "plan.learning_rate" not in card.text and "is in [`recipe.yaml`](recipe.yaml)" in card.text
    places = [card.text.index(f"## {title}") for title in ("Use", "Results", "Training data", "Limits", "Training\n")]
    assert (
        places == sorted(places)
        and "| Tokens read | 1,234,567 |" in card.text
        and "| Time | 62 s on cpu |" in card.text
    )
    assert "trust_remote_code=True" in card.text


def test_a_card_made_twice_is_the_same(tmp_path, rows):
    write_metrics(tmp_path, rows, TRAINING, None)
    write_yaml(tmp_path / "recipe.yaml", RECIPE)
    first = write_card(tmp_path).read_text()
    assert write_card(tmp_path).read_text() == first


def test_a_card_before_the_first_measurement_says_so(tmp_path):
    write_yaml(tmp_path / "recipe.yaml", {"verb": "pretrain"})
    for _ in range(2):
        card = ModelCard.load(write_card(tmp_path))
        assert "Not yet measured." in card.text and card.data.eval_results is None and card.data.license is None
        write_metrics(tmp_path, [], {}, None)


def test_a_name_cannot_break_the_cards_tables(tmp_path):
    sources = [{"name": "a | b\nc", "bytes": 2000, "columns": {"text": "body"}}]
    write_yaml(tmp_path / "recipe.yaml", {"sources": sources})
    assert "| a \\| b c | 2,000 | text: body |" in write_card(tmp_path).read_text()


def test_a_published_card_has_the_name_of_its_repository_and_a_classifiers_its_labels(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["GroundupForSequenceClassification"]}')
    plan = {"labels": ["ham", "spam"]}
    write_yaml(tmp_path / "recipe.yaml", {"name": "sms", "verb": "classify", "plan": plan, "settings": {"seed": 7}})
    text = write_card(tmp_path, "me/spam-filter").read_text()
    assert "# spam-filter\n" in text and "one of 2 labels: ham, spam." in text and "| Seed | 7 |" in text
    assert "Once upon a time" not in text and "the text to be labelled" in text


def test_an_adapters_card_names_its_base_and_what_was_trained(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "me/base", "task_type": "CAUSAL_LM"}')
    about = {"parameters": 2_000_000, "trained_parameters": 30_000, "base": "me/base"}
    write_metrics(tmp_path, [], about, None)
    write_yaml(tmp_path / "recipe.yaml", {"name": "mine", "verb": "pretrain"})
    card = ModelCard.load(write_card(tmp_path))
    assert card.data.base_model == "me/base" and "30,000 trained parameters" in card.text
    assert (
        "needs its base, `me/base` (2,000,000 parameters)" in card.text and "| Of these trained | 30,000 |" in card.text
    )


def test_a_model_that_was_taught_to_answer_is_asked_through_its_template(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    for verb, is_asked in (("instruct", True), ("pretrain", False)):
        write_yaml(tmp_path / "recipe.yaml", {"name": "mine", "verb": verb})
        assert ("apply_chat_template" in write_card(tmp_path).read_text()) == is_asked


@pytest.mark.slow
def test_the_code_on_the_card_runs_in_a_fresh_process(tmp_path, tiny, bpe):
    tiny("groundup").save_pretrained(tmp_path)
    save_tokenizer(bpe, tmp_path)
    write_yaml(tmp_path / "recipe.yaml", RECIPE)
    code = write_card(tmp_path).read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("max_new_tokens=50", "max_new_tokens=5").replace("Once upon a time", "The")  # its context is 32
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("The")
