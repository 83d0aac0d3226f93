"""What is shown of a model is what the model itself gives."""

import copy

import numpy as np
import pytest
import torch

from groundup.cli.inspection import CANDIDATES, Lens
from groundup.inference.loading import load_model
from groundup.tokenization.training import train_word_level

TEXT = "The cat sat on the mat. 你"


@pytest.fixture
def loaded(pretrained):
    return load_model(pretrained)


@pytest.fixture
def seen(loaded):
    return Lens(*loaded).look(TEXT)


@torch.no_grad()
def test_the_loss_and_the_expectations_are_those_of_the_model(loaded, seen):
    model, tokenizer = loaded
    ids = torch.tensor([tokenizer.encode(TEXT)])
    outputs = model(input_ids=ids, labels=ids)
    assert [token.id for token in seen.tokens] == ids[0].tolist()
    assert seen.loss == pytest.approx(float(outputs.loss), rel=1e-5)
    assert seen.tokens[0].loss is None and seen.tokens[0].rank is None
    probabilities = outputs.logits[0].softmax(-1)
    for at, token in enumerate(seen.tokens):
        shares = [candidate.probability for candidate in token.expected]
        assert len(shares) == CANDIDATES and shares == sorted(shares, reverse=True)
        assert shares[0] == pytest.approx(float(probabilities[at].max()), rel=1e-4)
        if at:
            came = probabilities[at - 1, token.id]
            assert token.loss == pytest.approx(-float(came.log()), rel=1e-4)
            assert token.rank == 1 + int((probabilities[at - 1] > came).sum())


@torch.no_grad()
def test_attention_is_that_of_the_written_out_kernel_to_a_255th(loaded, seen):
    model, tokenizer = loaded
    peer = copy.deepcopy(model)
    peer.set_attn_implementation("eager")
    maps = peer(input_ids=torch.tensor([tokenizer.encode(TEXT)]), output_attentions=True).attentions
    assert seen.attention is not None and seen.attention.shape == (3, 2, len(seen.tokens), len(seen.tokens))
    np.testing.assert_allclose(seen.attention / 255, torch.cat(maps).numpy(), atol=0.5 / 255 + 1e-5)
    np.testing.assert_allclose(seen.attention.sum(-1) / 255, 1, atol=0.5 / 255 * len(seen.tokens))


@torch.no_grad()
def test_looking_copies_no_weight_and_leaves_the_model_as_it_was(loaded):
    model, tokenizer = loaded
    before = model.config._attn_implementation
    lens = Lens(model, tokenizer)
    lens.look(TEXT)
    assert model.config._attn_implementation == before != "eager"
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in lens.model.parameters()} == own


def test_tokens_read_as_text_and_bytes_that_are_no_character_as_numbers(seen, loaded):
    texts = [token.text for token in seen.tokens]
    said = "".join(text for text in texts if not text.startswith("⟨"))
    assert said == "The cat sat on the mat. " or said == TEXT
    split = Lens(*loaded).look("é").tokens
    assert "".join(token.text for token in split) in ("é", "⟨C3⟩⟨A9⟩")


def test_words_special_tokens_and_ids_past_the_vocabulary_have_a_text_too(loaded):
    model, tokenizer = loaded
    lens = Lens(model, tokenizer)
    assert lens.text_of(tokenizer.eos_token_id) == "<|endoftext|>"
    assert lens.text_of(10**6) == "⟨1000000⟩"
    assert Lens(model, train_word_level(["naïve cats"], 5)).text_of(3) in ("naïve", "cats")


def test_a_long_text_is_cut_at_the_context_and_says_so(loaded):
    model, tokenizer = loaded
    count = len(tokenizer.encode(TEXT * 9))
    seen = Lens(model, tokenizer).look(TEXT * 9)
    assert len(seen.tokens) == 48 and seen.left_out == count - 48


@pytest.mark.parametrize("text", ["", "."])
def test_a_single_token_has_expectations_and_no_loss(text, loaded):
    seen = Lens(*loaded).look(text)
    assert len(seen.tokens) == 1 and seen.loss is None and seen.tokens[0].expected
