import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from groundup.common.errors import InputError
from groundup.data.tokens import TokenStream
from groundup.evaluation.comparison import compare_language, draws, interval, language_draws, mean_interval
from groundup.evaluation.language import TokenScores, check_causal
from groundup.evaluation.likelihood import disjoint, document_ends, each_document_alone, score_stream, strided
from groundup.evaluation.metrics_json import verdict
from groundup.inference.loading import context_of
from groundup.tokenization.folder import structure_ids
from groundup.tokenization.report import TokenBytes
from groundup.tokenization.training import train_bpe

CONTEXT = 32


@pytest.fixture
def scored(tmp_path, tiny, bpe, stream_of, texts):
    """Return a function: windows and a model's name -> scores of the texts."""

    def score(windows, name="qwen3", folder="scores", **options):
        scores = TokenScores(tmp_path / folder, stream_of(texts, bpe), structure_ids(bpe))
        scores.score(tiny(name), windows, **options)
        return scores

    return score


def _ends(stream):
    return document_ends(stream, int(stream.read(0, 1)[0]))


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 20))
def test_every_token_but_the_first_is_a_target_once_whatever_the_windows(tokens, context, stride):
    made = [disjoint(tokens, context), strided(tokens, context, min(stride, context))]
    for windows in made:
        counted = [p for first, stop in zip(windows.firsts, windows.stops) for p in range(first, stop + 1)]
        assert counted == list(range(1, tokens))
        assert all(0 < stop - start <= context for start, stop in zip(windows.starts, windows.stops))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 20))
def test_a_document_alone_never_sees_another_and_each_of_its_tokens_counts_once(lengths, context):
    ends = np.cumsum([0, *(length + 1 for length in lengths)])
    windows = each_document_alone(ends, context)
    counted = [p for first, stop in zip(windows.firsts, windows.stops) for p in range(first, stop + 1)]
    assert counted == [p for p in range(1, ends[-1]) if p not in ends]
    for start, stop in zip(windows.starts, windows.stops):
        document = np.searchsorted(ends, stop) - 1
        assert ends[document] <= start < stop < ends[document + 1] and stop - start <= context


def test_disjoint_windows_give_the_headline(scored, tiny, bpe, stream_of, texts):
    stream, lengths = stream_of(texts, bpe), TokenBytes.of(bpe)
    windows = disjoint(len(stream), CONTEXT)
    total = scored(windows).total(windows, lengths)
    headline = score_stream(tiny("qwen3"), stream, CONTEXT, special_ids=structure_ids(bpe), token_bytes=lengths)
    assert total.nats == pytest.approx(headline.nats, rel=1e-6)
    assert (total.tokens, total.correct, total.bytes) == (headline.tokens, headline.correct, headline.bytes)


def test_strided_perplexity_is_that_of_the_procedure_transformers_documents(tmp_path, tiny, bpe, stream_of, texts):
    """The page "Perplexity of fixed-length models": ids of `max_length`, labels -100 for what counted before.

    The page gives a window the weight of its labels less one, though only the first window loses one to the shift.
    """
    model, stream, max_length, stride = tiny("gpt2"), stream_of(texts, bpe), 24, 10
    ids = torch.from_numpy(stream.read(0, len(stream)))[None]
    nats, counted, previous_end, pages = 0.0, 0, 0, []
    for begin in range(0, ids.size(1), stride):
        end = min(begin + max_length, ids.size(1))
        inputs = ids[:, begin:end]
        targets = inputs.clone()
        targets[:, : -(end - previous_end)] = -100
        with torch.no_grad():
            loss = model(inputs, labels=targets).loss
        valid = int((targets[:, 1:] != -100).sum())
        pages.append((loss.item(), int((targets != -100).sum()) - 1))
        nats, counted, previous_end = nats + loss.item() * valid, counted + valid, end
        if end == ids.size(1):
            break
    windows = strided(len(stream), max_length - 1, stride)
    ours = TokenScores(tmp_path, stream, special_ids=[])
    ours.score(model, windows)
    assert ours.total(windows, None).tokens == counted == len(stream) - 1
    assert ours.total(windows, None).perplexity == pytest.approx(math.exp(nats / counted), rel=1e-5)
    means = [ours.nats[first : stop + 1].mean() for first, stop in zip(windows.firsts, windows.stops)]
    weights = [weight for _, weight in pages]
    assert np.average(means, weights=weights) == pytest.approx(
        sum(loss * weight for loss, weight in pages) / sum(weights), rel=1e-5
    )


@pytest.mark.slow
def test_an_untrained_gpt2_has_the_loss_of_a_uniform_guess():
    """Initial weights of 0.02 make nearly equal logits: ln 50,257 = 10.825, and the book measures 10.99."""
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, 50_257, 65)
    score = score_stream(GPT2LMHeadModel(GPT2Config()), TokenStream([ids], {"bytes": 1}), 64, special_ids=[])
    assert score.loss == pytest.approx(math.log(50_257), abs=0.3)


@pytest.mark.parametrize("name", ["gpt2", "groundup"])
def test_the_score_depends_on_neither_batch_nor_processes_nor_an_interruption(name, scored, bpe, stream_of, texts):
    stream, lengths = stream_of(texts, bpe), TokenBytes.of(bpe)
    for number, windows in enumerate(
        [disjoint(len(stream), CONTEXT), strided(len(stream), CONTEXT, 9), each_document_alone(_ends(stream), CONTEXT)]
    ):
        whole = scored(windows, name, f"whole-{number}").total(windows, lengths)
        one = scored(windows, name, f"one-{number}", batch_rows=1).total(windows, lengths)
        for part in (2, 0, 1):  # three processes, one after the other, on the same files
            scores = scored(windows, name, f"shared-{number}", share=(part, 3))
        assert one.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)
        assert scores.total(windows, lengths).bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)
        assert scores.total(windows, lengths).tokens == whole.tokens


def test_windows_that_were_scored_are_not_scored_again(scored, tiny, bpe, stream_of, texts):
    windows = disjoint(len(stream_of(texts, bpe)), CONTEXT)
    calls = []
    hook = tiny("qwen3").model.register_forward_hook(lambda *_: calls.append(1))

    def stop(share, text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(windows, batch_rows=4, progress=stop)
    calls.clear()
    resumed = scored(windows, batch_rows=4)
    fresh_calls = len(calls)
    calls.clear()
    whole = scored(windows, batch_rows=4, folder="whole")
    hook.remove()
    assert 0 < fresh_calls < len(calls)
    assert resumed.total(windows, None) == whole.total(windows, None)


def test_the_loss_by_position_adds_up_to_the_loss(scored, bpe, stream_of, texts):
    windows = disjoint(len(stream_of(texts, bpe)), CONTEXT)
    scores = scored(windows)
    positions, total = scores.by_position(windows), scores.total(windows, None)
    assert [position[:2] for position in positions] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32)]
    assert sum(tokens for *_, tokens in positions) == total.tokens
    assert sum(nats * tokens for *_, nats, tokens in positions) == pytest.approx(total.nats, rel=1e-6)


def test_units_are_documents_or_blocks_and_add_up_to_the_whole(scored, bpe, stream_of, texts, tmp_path):
    stream, lengths = stream_of(texts, bpe), TokenBytes.of(bpe)
    windows = disjoint(len(stream), CONTEXT)
    total = scored(windows).total(windows, lengths)
    few = scored(windows).by_unit(_ends(stream), [len(text.encode()) for text in texts], lengths)
    assert few.kind == "blocks of the text" and 2 < len(few.tokens) <= 100
    assert few.nats.sum() == pytest.approx(total.nats) and few.bytes.sum() == total.bytes
    many = [f"document {number} is short" for number in range(30)]
    stream = stream_of(many, bpe)
    scores = TokenScores(tmp_path / "many", stream, structure_ids(bpe))
    by_document = scores.by_unit(_ends(stream), [len(text) for text in many], lengths)
    assert by_document.kind == "documents" and by_document.bytes.tolist() == [len(text) for text in many]


@pytest.mark.parametrize("text", ["", "a", "one token", "short, but more than one block of it. " * 4])
@pytest.mark.parametrize("count", [1, 2, 25])
def test_models_with_unlike_tokenizers_are_compared_on_the_same_units_however_short_the_text(
    text, count, tiny, bpe, words, stream_of, tmp_path
):
    """On 1b7dae9 the numbers of units differed, and comparing ended in a traceback."""
    documents, units = [text] * (count - 1) + [""], {}
    fewer = train_bpe(["a"], 262)
    for name, tokenizer in (("bpe", bpe), ("bytes", fewer), ("words", words)):
        stream = stream_of(documents, tokenizer)
        scores = TokenScores(tmp_path / name, stream, structure_ids(tokenizer))
        scores.score(tiny("qwen3"), disjoint(len(stream), CONTEXT))
        sizes = [len(document.encode()) for document in documents]
        units[name] = scores.by_unit(_ends(stream), sizes, TokenBytes.of(tokenizer))
    assert len({len(sums.tokens) for sums in units.values()}) == len({sums.kind for sums in units.values()}) == 1
    assert np.array_equal(units["bpe"].bytes, units["bytes"].bytes)
    rows = compare_language(units, "bpe", dataset="d", seed=0)
    assert [row["model"] for row in rows] == ["bytes", "words"] and all(map(verdict, rows))
    with np.errstate(all="raise"):
        language_draws(units["bytes"], draws(len(units["bytes"].tokens), 0))


# Intervals


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = [low <= 0.3 <= high for low, high in (mean_interval(random.random(100) < 0.3, seed) for seed in range(40))]
    assert 33 <= sum(hits) <= 40


def test_the_draws_are_the_same_for_the_same_seed_and_of_the_same_size():
    assert np.array_equal(draws(7, 1), draws(7, 1)) and not np.array_equal(draws(7, 1), draws(7, 2))
    assert (draws(7, 1).sum(axis=1) == 7).all()


def test_the_interval_of_the_bits_holds_the_bits(scored, bpe, stream_of, texts):
    stream, lengths = stream_of(texts, bpe), TokenBytes.of(bpe)
    windows = disjoint(len(stream), CONTEXT)
    units = scored(windows).by_unit(_ends(stream), [len(text.encode()) for text in texts], lengths)
    low, high = interval(language_draws(units, draws(len(units.tokens), 0))["bits_per_byte"])
    assert low < scored(windows).total(windows, lengths).bits_per_byte < high


# Honesty


def test_a_model_that_is_given_the_next_token_is_caught(tiny):
    class Leaking(GPT2LMHeadModel):
        def forward(self, input_ids, **options):
            output = super().forward(input_ids, **options)
            following = torch.nn.functional.one_hot(input_ids.roll(-1, 1), self.config.vocab_size)
            output.logits = output.logits + 20 * following
            return output

    model = Leaking(GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2, n_positions=CONTEXT))
    with pytest.raises(InputError, match="sees the token that it must predict"):
        check_causal(model)
    for name in ("gpt2", "qwen3", "groundup", "groundup-gpt2"):
        check_causal(tiny(name))


def test_the_shortest_context_is_checked_too():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=2))
    check_causal(model)
    assert context_of(model) == 2
