import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from groundup.evaluation.generated_text import continued_share, copied_shares, prompt_from, quality, write_samples

CONTEXT = 32


def test_repetition_and_variety_are_counted_by_words():
    measures = quality(["a b c d a b c d", "x y"], [True, False])
    assert measures["stopped"] == 0.5 and measures["words"] == 5
    assert measures["repeated_4grams"] == 1 / 5  # a b c d stands twice among five
    assert measures["distinct_1"] == 6 / 10
    assert measures["distinct_2"] == 5 / 8
    assert quality([""], [True])["distinct_1"] == 0


def plainly(text, training, run):
    content, covered = text.encode(), set()
    for start in range(len(content) - run + 1):
        if any(content[start : start + run] in document.encode() for document in training):
            covered.update(range(start, start + run))
    return len(covered) / len(content) if content else 0.0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text("ab", max_size=20), max_size=4), st.lists(st.text("ab", max_size=30), max_size=4))
def test_what_is_copied_is_what_stands_there_byte_for_byte(texts, training):
    assert copied_shares(texts, training, run=4) == pytest.approx([plainly(text, training, 4) for text in texts])


def test_a_run_over_the_border_of_two_pieces_of_a_long_document_is_found(monkeypatch):
    monkeypatch.setattr("groundup.evaluation.generated_text.BLOCK", 64)
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 1000)))
    for start in range(0, 940, 13):
        assert copied_shares([text[start : start + 60]], [text]) == [1.0]


def test_the_same_seed_writes_the_same_samples_and_none_is_longer_than_it_may_be(tiny, bpe, texts):
    prompts = [prompt_from(text) for text in texts if text]
    first = write_samples(tiny("groundup"), bpe, prompts, seed=3)
    assert first == write_samples(tiny("groundup"), bpe, prompts, seed=3)
    assert [sample.seed for sample in first] == [3, 4, 5, 6]
    assert all(sample.tokens <= 64 for sample in first)


def test_a_model_that_knows_a_text_by_heart_is_found_out(bpe, tiny, texts):
    text = texts[1]
    ids = torch.tensor([bpe.encode(text)[:CONTEXT]])
    torch.manual_seed(0)
    sizes = {"vocab_size": len(bpe), "n_positions": CONTEXT, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=bpe.eos_token_id))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    share, documents = continued_share(model, bpe, [text], 1)
    # Of the 17 tokens after a prefix of half the context it was shown 16.
    assert (share, documents) == (pytest.approx(1.0, abs=1.01 / 17), 1)
    assert continued_share(tiny("gpt2"), bpe, [text], 1)[0] < 0.5


def test_documents_too_short_to_continue_give_no_number(tiny, bpe):
    assert continued_share(tiny("gpt2"), bpe, ["short"], 5) is None
