import io
import json
import re

import pytest
from rich.console import Console

from groundup.common.settings import write_yaml
from groundup.evaluation.likelihood import LanguageScore, language_rows
from groundup.evaluation.metrics_json import read_metrics, write_metrics
from groundup.evaluation.report import page, write_page
from groundup.evaluation.summary import summary
from groundup.publishing.card import write_card


@pytest.fixture
def folder(tmp_path):
    """Return the folder of an evaluation with something in every section."""
    score = LanguageScore(nats=2000.0, tokens=1000, correct=400, bytes=3000, context=256)
    rows = language_rows(score, dataset="docs", split="test", seed=0, unigram=score, xz=2.41)
    rows[0] |= {"low": 0.95, "high": 0.97, "interval": "documents"}
    shared = {"dataset": "docs", "split": "test", "count": 9, "seed": 0, "baseline": None}
    for place in ("1", "2", "3 to 4"):
        rows.append({"name": "loss_by_position", "value": 5.5, "positions": place, "context": 256, **shared})
    for shots in (0, 4):
        rows.append({"name": "accuracy", "value": 0.3125 + shots / 100, "num_fewshot": shots, **shared})
    rows.append({"name": "bytes_per_token", "value": 3.875, **shared, "dataset": "Polish", "split": "tokenizer"})
    samples = [{"model": "a", "prompt": "<Once>", "text": " upon & a time", "seed": 7}]
    failures = {"a: hellaswag, 0 examples": "no network"}
    write_metrics(tmp_path, rows, {"parameters": 1234567, "device": "cpu"}, "ab" * 32, samples, failures)
    write_yaml(tmp_path / "recipe.yaml", {"name": "docs"})
    return tmp_path


def table(folder):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(summary(read_metrics(folder)))
    return console.export_text()


def test_a_number_changed_in_the_metrics_is_changed_everywhere(folder):
    (folder / "config.json").unlink(missing_ok=True)
    path = folder / "metrics.json"
    for change, before, after in (
        (("bits_per_byte", 0.7654321), "0.962", "0.765"),
        (("accuracy", 0.87654), "31.2%", "87.7%"),
    ):
        shown = [table(folder), write_page(folder).read_text(), write_card(folder).read_text()]
        assert all(before in text and after not in text for text in shown)
        metrics = json.loads(path.read_text())
        row = next(row for row in metrics["metrics"] if row["name"] == change[0])
        row["value"] = change[1]
        path.write_text(json.dumps(metrics))
        assert after in table(folder)
        assert after in write_page(folder).read_text() and after in write_card(folder).read_text()
        assert before not in write_page(folder).read_text().split("unigram")[0]


def test_a_difference_on_the_page_says_what_it_allows_to_say(tmp_path):
    score = LanguageScore(nats=2000.0, tokens=1000, correct=400, bytes=3000, context=256)
    rows = []
    for model in "ab":
        rows += [row | {"model": model} for row in language_rows(score, dataset="docs", split="test", seed=0, xz=2.41)]
    shared = {"name": "bits_per_byte_difference", "dataset": "docs", "split": "test", "baseline": None, "against": "a"}
    for low, said in ((-0.3, "better than a"), (0.1, "no difference shown")):
        change = shared | {"model": "b", "value": -0.24, "low": -0.5, "high": -low - 0.5, "interval": "documents"}
        write_metrics(tmp_path, [*rows, change | {"high": -0.2 if low < 0 else 0.1}], {"models": {}}, None)
        assert said in write_page(tmp_path).read_text()


def test_each_baseline_has_a_column_and_the_best_one_stands_in_the_large_figure(tmp_path):
    score = LanguageScore(nats=2000.0, tokens=1000, correct=400, bytes=3000, context=256)
    rows = language_rows(score, dataset="docs", split="test", seed=0, unigram=score, ngram=score, xz=2.5, xz_primed=1.5)
    rows[0] |= {"low": 0.95, "high": 0.97, "interval": "documents"}
    write_metrics(tmp_path, rows, {}, None)
    text = write_page(tmp_path).read_text()
    assert all(f"<th scope=col>{row['baseline']}</th>" in text for row in rows if row["baseline"])
    figure = text.split('<div class="figure">')[1].split("</div>")[0]
    for said in ("bits per byte", ">0.962<", "95 % interval 0.950 to 0.970", "unigram: 0.962"):
        assert said in figure
    assert "docs, test: 1,000 tokens, 3,000 bytes</caption>" in text


def test_validation_rows_are_folded_where_there_are_test_rows(tmp_path):
    score = LanguageScore(nats=2000.0, tokens=1000, correct=400, bytes=3000, context=256)
    rows = [row for split in ("validation", "test") for row in language_rows(score, dataset="d", split=split, seed=0)]
    write_metrics(tmp_path, rows, {}, None)
    text = write_page(tmp_path).read_text()
    assert text.index("d, test:") < text.index("<details>") < text.index("d, validation:")


def test_the_page_opens_without_a_network_and_shows_what_was_written_as_text(folder):
    text = write_page(folder).read_text()
    assert not re.search(r"""(src|href)=["'](?!#)""", text) and "@import" not in text and "url(http" not in text
    assert "<script" not in text and text.count("<svg") == 2
    assert "&lt;Once&gt;</b> upon &amp; a time" in text
    assert "no network" in text and "Polish" in text and "3.875" in text


def test_the_same_metrics_give_the_same_page(folder):
    assert page(read_metrics(folder)) == page(read_metrics(folder))


def test_an_empty_folder_has_a_page_too(tmp_path):
    assert "<h1>" in write_page(tmp_path).read_text()


@pytest.mark.slow
def test_a_browser_shows_every_section_and_asks_for_nothing_else(folder):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path="/usr/bin/chromium")
        tab, asked, complaints = browser.new_page(), [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.goto(write_page(folder).as_uri())
        titles = tab.locator("h2").all_inner_texts()
        widths = [tab.locator("svg").nth(number).bounding_box()["width"] for number in range(2)]
        overflows = []
        for width in (390, 768, 1280, 1600):
            tab.set_viewport_size({"width": width, "height": 900})
            overflows += [width] * tab.evaluate("document.documentElement.scrollWidth > innerWidth")
        browser.close()
    assert titles[0] == "Results" and "Loss by position" in titles and "Tokenizer" in titles
    assert overflows == [] and all(width > 300 for width in widths) and len(asked) == 1 and not complaints
