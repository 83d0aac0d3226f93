import dataclasses
import lzma
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    GPTJConfig,
    GPTJForCausalLM,
    Qwen3ForCausalLM,
)

from groundup.data.tokens import TokenStream
from groundup.evaluation import likelihood
from groundup.evaluation.baselines import unigram_score, xz_bits_per_byte
from groundup.evaluation.likelihood import LanguageScore, comparable_bytes, language_rows, score_stream
from groundup.inference.loading import context_of, plain_head
from groundup.tokenization.folder import structure_ids
from groundup.tokenization.report import TokenBytes
from groundup.tokenization.training import train_word_level

MODELS = ("gpt2", "qwen3", "groundup", "groundup-gpt2")
CONTEXT = 32


def plainly(model, stream, special_ids, context=CONTEXT):
    """Return the summed nats, tokens and right guesses, window by window in fp64, as the definition says."""
    ids, nats, tokens, correct = torch.from_numpy(stream.read(0, len(stream))), 0.0, 0, 0
    for start in range(0, len(ids) - 1, context):
        inputs, targets = ids[start : start + context], ids[start + 1 : start + context + 1]
        with torch.no_grad():
            logits = model(input_ids=inputs[None]).logits[0, : len(targets)].double()
        for row, target in zip(logits, targets):
            if int(target) not in special_ids:
                nats -= row.log_softmax(-1)[target].item()
                tokens += 1
                correct += int(row.argmax() == target)
    return nats, tokens, correct


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_a_score_is_the_plain_sum_over_windows_whatever_the_batch(name, batch_rows, tiny, bpe, stream_of, texts):
    model, stream, special = tiny(name), stream_of(texts, bpe), structure_ids(bpe)
    nats, tokens, correct = plainly(model, stream, special)
    score = score_stream(model, stream, CONTEXT, special_ids=special, batch_rows=batch_rows)
    assert score.nats == pytest.approx(nats, rel=1e-6)
    assert (score.tokens, score.correct, score.context) == (tokens, correct, CONTEXT)
    assert score.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert score.token_accuracy == correct / tokens


def test_every_text_token_is_scored_once_and_no_special_one(tiny, bpe, stream_of, texts):
    score = score_stream(tiny("qwen3"), stream_of(texts, bpe), 7, special_ids=structure_ids(bpe))
    assert score.tokens == sum(len(bpe.encode(text)) for text in texts)


def test_logits_made_in_small_pieces_give_the_same_score(tiny, bpe, stream_of, texts, monkeypatch):
    stream, special = stream_of(texts, bpe), structure_ids(bpe)
    whole = score_stream(tiny("gpt2"), stream, CONTEXT, special_ids=special)
    monkeypatch.setattr(likelihood, "CHUNK_LOGITS", 5 * 400)
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 2 * CONTEXT)
    assert score_stream(tiny("gpt2"), stream, CONTEXT, special_ids=special).nats == pytest.approx(whole.nats, rel=1e-7)


@pytest.mark.parametrize("rows", [0, 3, 5])
def test_a_model_that_caps_its_logits_is_scored_by_its_own_logits(rows, bpe, stream_of, texts, monkeypatch):
    monkeypatch.setattr(likelihood, "CHUNK_LOGITS", max(5, rows * CONTEXT) * 400)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    config = Gemma2Config(vocab_size=400, num_attention_heads=2, num_key_value_heads=1, **sizes)
    config.final_logit_softcapping = 0.5
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(50)
    stream, special = stream_of(texts, bpe), structure_ids(bpe)
    sizes = []
    model.register_forward_pre_hook(lambda _, __, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    score = score_stream(model, stream, CONTEXT, special_ids=special)
    assert max(sizes) == max(1, rows)
    assert score.nats == pytest.approx(plainly(model, stream, special)[0], rel=1e-5)


def test_a_head_is_plain_only_without_bias_adapter_or_scale_and_dropout_hides_none(tiny):
    dropping = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.9)).train()
    assert plain_head(dropping) is dropping.lm_head and dropping.training
    biased = GPTJForCausalLM(GPTJConfig(vocab_size=50, n_embd=16, n_layer=1, n_head=2, rotary_dim=4))
    assert biased.lm_head.bias is not None and plain_head(biased) is None
    config = CohereConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, logit_scale=0.5)
    config.num_attention_heads = config.num_key_value_heads = 2
    assert plain_head(CohereForCausalLM(config)) is None
    model = Qwen3ForCausalLM(tiny("qwen3").config)
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"]))
    assert plain_head(adapted) is None and plain_head(adapted.get_base_model()) is None


def test_no_more_logits_than_a_piece_exist_at_once(tiny, bpe, stream_of, texts, monkeypatch):
    monkeypatch.setattr(likelihood, "CHUNK_LOGITS", 6 * 400)
    head, seen = tiny("qwen3").get_output_embeddings(), []
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(output.numel()))
    score_stream(tiny("qwen3"), stream_of(texts, bpe), CONTEXT, special_ids=structure_ids(bpe))
    hook.remove()
    assert max(seen[2:]) <= 6 * 400  # the first two calls try the head on eight ids


def test_scoring_leaves_dropout_and_training_mode_as_they_were(tiny, bpe, stream_of, texts):
    model, special = tiny("gpt2"), structure_ids(bpe)
    before = score_stream(model, stream_of(texts, bpe), CONTEXT, special_ids=special)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert score_stream(model, stream_of(texts, bpe), CONTEXT, special_ids=special) == before
    assert [module.training for module in model.modules()] == modes
    model.eval()


def test_a_limited_score_covers_evenly_spread_whole_windows(tiny, bpe, stream_of, texts):
    stream, special, lengths = stream_of(texts, bpe), structure_ids(bpe), TokenBytes.of(bpe)
    whole = score_stream(tiny("gpt2"), stream, 16, special_ids=special, token_bytes=lengths)
    part = score_stream(tiny("gpt2"), stream, 16, special_ids=special, token_bytes=lengths, limit_tokens=40)
    windows = -(-(len(stream) - 1) // 16)
    targets = [stream.read(16 * (i * windows // 3) + 1, 16 * (i * windows // 3) + 17) for i in range(3)]
    counted = [token for token in np.concatenate(targets) if token not in special]
    assert part.tokens == len(counted) < whole.tokens
    assert part.bytes == lengths.lengths[counted].sum()
    assert score_stream(tiny("gpt2"), stream, 16, special_ids=special, token_bytes=lengths, limit_tokens=10**6) == whole


def test_a_stream_without_a_text_token_gives_no_number(tiny, bpe, stream_of):
    for texts in ([], [""]):
        score = score_stream(tiny("gpt2"), stream_of(texts, bpe), CONTEXT, special_ids=structure_ids(bpe))
        assert score.tokens == 0 and math.isnan(score.loss) and math.isnan(score.token_accuracy)


def test_progress_ends_at_one(tiny, bpe, stream_of, texts):
    seen = []
    score_stream(
        tiny("gpt2"),
        stream_of(texts, bpe),
        CONTEXT,
        special_ids=structure_ids(bpe),
        batch_rows=4,
        progress=lambda share, text: seen.append(share),
    )
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 2


# Bytes


def test_bits_per_byte_divide_by_the_raw_bytes_of_the_documents(tiny, bpe, stream_of, texts):
    score = score_stream(
        tiny("gpt2"),
        stream_of(texts, bpe),
        CONTEXT,
        special_ids=structure_ids(bpe),
        token_bytes=TokenBytes.of(bpe),
    )
    raw = sum(len(text.encode()) for text in texts)
    assert score.bytes == raw and score.note is None
    assert score.bits_per_byte == pytest.approx(score.nats / math.log(2) / raw)


def test_bits_per_byte_are_refused_only_for_words_that_are_unknown_and_counted(tiny, words, stream_of, texts):
    stream = stream_of(texts, words)
    unknown = int((stream.read(0, len(stream)) == words.unk_token_id).sum())
    about = {"special_ids": structure_ids(words), "token_bytes": TokenBytes.of(words)}
    score = score_stream(tiny("gpt2"), stream, CONTEXT, **about)
    assert score.bits_per_byte is None and score.note.startswith(f"{unknown:,} of {len(stream):,} tokens stand for")
    row = next(row for row in language_rows(score, dataset="d", split="test", seed=0) if row["name"] == "bits_per_byte")
    assert row["value"] is None and row["note"] == score.note
    known = words.decode([index for index in range(len(words)) if index not in words.all_special_ids])
    score = score_stream(tiny("gpt2"), stream_of([known], words), CONTEXT, **about)
    assert score.bytes == len(known.encode()) and score.note is None


def test_shards_that_do_not_say_their_bytes_are_counted_where_the_vocabulary_says_them(words, bpe, texts, stream_of):
    for tokenizer, is_known in ((bpe, True), (words, False)):
        stream = stream_of(["Hello" if is_known else "cat"], tokenizer)
        about = (structure_ids(tokenizer), dataclasses.replace(TokenBytes.of(tokenizer), unknown=frozenset()))
        stream.meta["bytes"] = None
        found, note = comparable_bytes(stream, *about)
        assert (found, note) == (5, None) if is_known else found is None and "do not say" in note


def test_a_part_of_a_text_has_its_share_of_the_bytes_though_the_tokenizer_drops_white_space(tiny, stream_of):
    text = "the cat sat on a mat " * 40
    words = train_word_level([text], 20)
    stream, about = stream_of([text], words), {"special_ids": structure_ids(words), "token_bytes": TokenBytes.of(words)}
    part = score_stream(tiny("gpt2"), stream, 16, **about, limit_tokens=40)
    assert part.bytes == pytest.approx(len(text) * part.tokens / (len(stream) - 2), rel=0.05)


def test_an_unknown_word_is_text_and_an_end_of_text_is_not(bpe, words):
    assert structure_ids(bpe) == set(bpe.all_special_ids)
    assert words.unk_token_id not in structure_ids(words) and words.eos_token_id in structure_ids(words)
    # GPT-2 names one token as the beginning, the end and the unknown.
    gpt2 = GPT2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])
    assert structure_ids(gpt2) == {1}


# Baselines


def test_the_unigram_baseline_is_add_one_smoothed_over_text_tokens():
    train = TokenStream([np.array([0, 1, 1, 2, 0])], {"bytes": 3})
    validation = TokenStream([np.array([0, 1, 3, 3])], {"bytes": 9})
    score = unigram_score(train, validation, 4, {0}, TokenBytes(np.array([0, 1, 2, 4])))
    assert score.nats == pytest.approx(-math.log(3 / 6) - 2 * math.log(1 / 6))
    assert (score.tokens, score.correct, score.bytes, score.context) == (3, 1, 9, None)
    assert score.bits_per_byte == pytest.approx(score.nats / math.log(2) / 9)


def test_a_model_of_nothing_but_frequencies_scores_what_the_unigram_baseline_does(bpe, stream_of, texts):
    stream, special = stream_of(texts, bpe), structure_ids(bpe)
    baseline = unigram_score(stream, stream, len(bpe), special, TokenBytes.of(bpe))
    counts = np.bincount(stream.read(0, len(stream)), minlength=len(bpe)) + 1.0
    counts[list(special)] = 1e-30

    class Frequencies(nn.Module):
        config, device = GPT2Config(vocab_size=len(bpe)), torch.device("cpu")

        def get_output_embeddings(self):
            return None

        base_model = property(lambda self: self)

        def forward(self, input_ids, use_cache):
            logits = torch.tensor(np.log(counts), dtype=torch.float).expand(*input_ids.shape, -1)
            return type("Output", (), {"logits": logits})

    score = score_stream(Frequencies(), stream, CONTEXT, special_ids=special, token_bytes=TokenBytes.of(bpe))
    assert score.bits_per_byte == pytest.approx(baseline.bits_per_byte, rel=1e-6)
    assert score.correct == baseline.correct


def test_xz_is_counted_over_the_documents_without_the_joining_line_feeds():
    texts = ["für alle, " * 50, "und für mich", ""]
    compressed = lzma.compress("\n".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME)
    assert xz_bits_per_byte(texts) == 8 * len(compressed) / sum(len(text.encode()) for text in texts)
    assert xz_bits_per_byte([]) is None


# Rows


def test_rows_name_the_model_and_each_baseline_once():
    model = LanguageScore(nats=20.0, tokens=10, correct=4, bytes=30, context=8)
    unigram = LanguageScore(nats=40.0, tokens=10, correct=1, bytes=30, context=None)
    rows = language_rows(model, dataset="d", split="validation", seed=3, unigram=unigram, xz=2.5)
    bits = {row["baseline"]: row for row in rows if row["name"] == "bits_per_byte"}
    assert [*bits] == [None, "unigram", "xz -9e"]
    assert bits[None] == {
        "name": "bits_per_byte",
        "value": pytest.approx(20 / math.log(2) / 30),
        "dataset": "d",
        "split": "validation",
        "count": 10,
        "seed": 3,
        "context": 8,
        "stride": 8,
        "bytes": 30,
        "baseline": None,
    }
    assert bits["xz -9e"]["value"] == 2.5 and bits["xz -9e"]["bytes"] == 30
    part = LanguageScore(nats=2.0, tokens=1, correct=0, bytes=3, context=8)
    rows_of_part = language_rows(part, dataset="d", split="validation", seed=3, unigram=unigram, xz=2.5)
    assert rows_of_part[-1]["baseline"] == "xz -9e" and rows_of_part[-1]["bytes"] == 30
    assert {row["name"]: row["value"] for row in rows if row["baseline"] is None} == {
        "bits_per_byte": pytest.approx(20 / math.log(2) / 30),
        "perplexity": pytest.approx(math.exp(2)),
        "loss": 2.0,
        "token_accuracy": 0.4,
    }


def test_the_context_is_the_one_the_config_names(tiny):
    assert context_of(tiny("gpt2")) == context_of(tiny("groundup")) == CONTEXT
    nameless = type("Model", (), {"config": type("Config", (), {"get_text_config": lambda self: self})()})()
    assert context_of(nameless) == 1024
