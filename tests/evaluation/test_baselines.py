from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.data.tokens import TokenStream
from groundup.evaluation.baselines import KneserNey, ngram_score, unigram_score
from groundup.tokenization.folder import structure_ids
from groundup.tokenization.report import TokenBytes


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=5, max_size=60), st.lists(st.integers(0, 4), max_size=4))
def test_the_probabilities_after_any_context_add_up_to_one(text, context):
    model = KneserNey(text, vocab_size=5, order=4)
    total = sum(model.probabilities([*context, token])[-1] for token in range(5)) if context else 1.0
    assert total == pytest.approx(1.0)


def by_hand(text, vocab_size, order):
    """Compute interpolated Kneser-Ney as Chen and Goodman 1999 write it, with dictionaries, one n-gram at a time."""
    grams = {n: Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for n in range(1, order + 1)}

    def count(gram):
        if len(gram) == order:
            return grams[order][gram]
        return sum(1 for longer in grams[len(gram) + 1] if longer[1:] == gram)

    counts = {n: {gram: count(gram) for gram in grams[n]} for n in grams}

    def probability(context, token):
        below = probability(context[1:], token) if context else 1 / vocab_size
        n = len(context) + 1
        values = list(counts[n].values())
        once, twice = values.count(1), values.count(2)
        discount = once / (once + 2 * twice) if once else 0.5
        after = [value for gram, value in counts[n].items() if gram[:-1] == context]
        total = sum(after)
        if not total:
            return below
        kinds = sum(value > 0 for value in after)
        return max(counts[n].get((*context, token), 0) - discount, 0) / total + discount * kinds / total * below

    return probability


def test_it_is_kneser_ney_as_it_is_written():
    random = np.random.default_rng(0)
    text, unseen = random.integers(0, 6, 80).tolist(), random.integers(0, 6, 30).tolist()
    probability = by_hand(text, 6, 3)
    ours = KneserNey(text, 6, 3).probabilities(unseen)
    theirs = [probability(tuple(unseen[max(0, at - 2) : at]), unseen[at]) for at in range(1, len(unseen))]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_a_text_read_in_pieces_scores_the_same(bpe, stream_of, texts, monkeypatch):
    stream, known = stream_of(texts, bpe), (len(bpe), structure_ids(bpe), TokenBytes.of(bpe))
    whole = ngram_score(stream, stream, *known)
    monkeypatch.setattr("groundup.evaluation.baselines.READ_TOKENS", 37)
    assert ngram_score(stream, stream, *known).nats == pytest.approx(whole.nats, rel=1e-12)
    assert whole.tokens == sum(len(bpe.encode(text)) for text in texts) and whole.bytes == stream.meta["bytes"]


def test_text_it_has_seen_is_easier_than_counting_tokens_makes_it(bpe, stream_of, texts):
    stream, known = stream_of(texts, bpe), (len(bpe), structure_ids(bpe))
    assert ngram_score(stream, stream, *known).loss < unigram_score(stream, stream, *known).loss / 2


def test_a_text_of_tokens_never_seen_has_a_finite_loss():
    train, other = TokenStream([np.arange(20) % 3], {"bytes": 1}), TokenStream([np.full(9, 7)], {"bytes": 1})
    assert np.isfinite(ngram_score(train, other, 10, []).loss)
