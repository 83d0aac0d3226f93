import pytest

from groundup.evaluation.tokenizer_cost import LANGUAGES, kinds_of_text, other_tokenizers, tokenizer_rows
from groundup.tokenization.folder import save_tokenizer


def test_each_kind_of_text_has_its_cost_coverage_and_language_its_price_against_english(bpe, words, texts):
    rows = tokenizer_rows({None: bpe, "word-level": words}, kinds_of_text({"mine": "\n".join(texts)}), seed=0)
    values = {(row["name"], row["dataset"], row["baseline"]): row["value"] for row in rows}
    whole = "\n".join(texts)
    assert values["bytes_per_token", "mine", None] == pytest.approx(len(whole.encode()) / len(bpe.encode(whole)))
    assert all(values["unknown_rate", kind, None] == 0 for kind in LANGUAGES)  # it knows every byte
    assert values["unknown_rate", "Greek", "word-level"] > 0.5 > values["unknown_rate", "mine", "word-level"]
    assert values["tokens_against_english", "English", None] == 1
    greek, english = (len(bpe.encode(LANGUAGES[name])) for name in ("Greek", "English"))
    assert values["tokens_against_english", "Greek", None] == pytest.approx(greek / english)
    assert ("tokens_against_english", "Python code", None) not in values


def test_tokenizers_named_stand_beside_and_gpt2s_only_where_it_is_at_hand(bpe, tmp_path, monkeypatch):
    save_tokenizer(bpe, tmp_path / "theirs")
    assert [*other_tokenizers([str(tmp_path / "theirs")])] == ["tokenizer of theirs"]
    monkeypatch.setattr("groundup.evaluation.tokenizer_cost.try_to_load_from_cache", lambda *_: None)
    assert other_tokenizers([]) == {}
    cached = str(tmp_path / "theirs" / "tokenizer.json")
    monkeypatch.setattr("groundup.evaluation.tokenizer_cost.try_to_load_from_cache", lambda *_: cached)
    assert [*other_tokenizers([])] == ["GPT-2's tokenizer"]


def test_tokenizers_in_folders_of_one_name_are_told_apart(bpe, tmp_path):
    folders = [str(tmp_path / place / "tokenizer") for place in ("one", "two")]
    for folder in folders:
        save_tokenizer(bpe, folder)
    assert [*other_tokenizers(folders)] == ["tokenizer of one/tokenizer", "tokenizer of two/tokenizer"]
