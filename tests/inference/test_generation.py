import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from groundup.common.errors import InputError
from groundup.inference.generation import (
    Sampling,
    complete,
    draw,
    encode_prompt,
    lay_out_for_decoding,
    likeliest,
    own_sampling,
    stream_text,
    stream_tokens,
)

MODELS = ("gpt2", "qwen3", "groundup", "groundup-gpt2")
CONTEXT = 32
PROMPT = [7, 300, 12, 99, 5]


def drain(generator):
    """Return what a generator yielded, and its own value."""
    items = []
    while True:
        try:
            items.append(next(generator))
        except StopIteration as end:
            return items, end.value


def one_after_another(model, prompt, sampling, count):
    """Return the ids drawn without a cache: the whole sequence goes through the model for every token."""
    ids, generator = list(prompt), torch.Generator().manual_seed(sampling.seed)
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(draw(logits, sampling, generator)))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_ids_are_those_of_generate(name, tiny):
    model = tiny(name)
    ours, reason = drain(stream_tokens(model, PROMPT, Sampling(temperature=0, max_new_tokens=20, stop_ids=(-1,))))
    prompt = torch.tensor([PROMPT])
    theirs = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20, eos_token_id=-1
    )
    assert ours == theirs[0, len(PROMPT) :].tolist() and len(set(ours)) > 2
    assert reason == "length"


@pytest.mark.parametrize("penalty", [0.7, 1.2, 5.0])
@pytest.mark.parametrize("name", MODELS)
def test_repetitions_are_penalised_as_generate_does_it(name, penalty, tiny):
    model, prompt = tiny(name), torch.tensor([PROMPT])
    sampling = Sampling(temperature=0, max_new_tokens=20, repetition_penalty=penalty, stop_ids=(-1,))
    theirs = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=20,
        repetition_penalty=penalty,
        eos_token_id=-1,
    )
    assert list(stream_tokens(model, PROMPT, sampling)) == theirs[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize(
    ("says", "means"),
    [
        ({}, {}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        (
            {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "min_p": 0.05},
            {"temperature": 0.2, "top_k": 50, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.0},
        ),
    ],
)
def test_a_models_own_settings_are_those_of_generate(says, means, tiny, monkeypatch):
    model = tiny("gpt2")
    monkeypatch.setattr(model, "generation_config", GenerationConfig(**says))
    assert own_sampling(model) == means


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [0, 1.3])
def test_the_cache_changes_no_id(name, temperature, tiny):
    sampling = Sampling(temperature=temperature, max_new_tokens=20, seed=4, stop_ids=(-1,))
    ours, _ = drain(stream_tokens(tiny(name), PROMPT, sampling))
    assert ours == one_after_another(tiny(name), PROMPT, sampling, 20)


def test_the_same_seed_gives_the_same_ids_and_another_seed_others(tiny):
    first, again, other = (
        drain(stream_tokens(tiny("qwen3"), PROMPT, Sampling(temperature=2.0, seed=seed)))[0] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("name", MODELS)
def test_a_full_context_ends_the_text_cleanly(name, tiny):
    sampling = Sampling(temperature=0, max_new_tokens=500, stop_ids=(-1,))
    ids, reason = drain(stream_tokens(tiny(name), PROMPT, sampling))
    assert len(ids) == CONTEXT + 1 - len(PROMPT) and reason == "length"
    full = [3] * CONTEXT
    assert len(drain(stream_tokens(tiny(name), full, sampling))[0]) == 1


@pytest.mark.parametrize("name", ["qwen3", "groundup"])
@pytest.mark.parametrize("prompt", [5, 33, 70])
def test_where_positions_are_angles_a_text_goes_on_from_the_latest_half_of_the_context(name, prompt, tiny):
    model, start = tiny(name), ([*range(40, 75)] * 2)[:prompt]
    sampling = Sampling(temperature=0, max_new_tokens=90, stop_ids=(-1,))
    ours, reason = drain(stream_tokens(model, start, sampling, past_context=True))
    seen, expected = start[-CONTEXT:], []
    while len(expected) < 90:
        expected += one_after_another(model, seen, sampling, min(90 - len(expected), CONTEXT + 1 - len(seen)))
        seen = (seen + expected)[-(CONTEXT // 2) :]
    assert ours == expected and reason == "length"


@pytest.mark.parametrize("name", ["gpt2", "groundup-gpt2"])
def test_where_positions_are_a_table_a_text_ends_with_it(name, tiny):
    sampling = Sampling(temperature=0, max_new_tokens=90, stop_ids=(-1,))
    ids, reason = drain(stream_tokens(tiny(name), PROMPT, sampling, past_context=True))
    assert len(ids) == CONTEXT + 1 - len(PROMPT) and reason == "length"
    with pytest.raises(InputError, match="the model takes 1 to 32"):
        next(stream_tokens(tiny(name), [3] * 33, sampling, past_context=True))


def test_a_prompt_that_is_empty_or_beyond_the_context_is_the_users_error(tiny):
    for prompt in ([], [3] * (CONTEXT + 1)):
        with pytest.raises(InputError, match="the model takes 1 to 32"):
            next(stream_tokens(tiny("gpt2"), prompt, Sampling()))


def test_a_stop_id_ends_the_text_and_is_no_part_of_it(tiny, monkeypatch):
    model = tiny("qwen3")
    greedy = Sampling(temperature=0, max_new_tokens=20, stop_ids=(-1,))
    ids, _ = drain(stream_tokens(model, PROMPT, greedy))
    stop = next(token for token in ids[1:] if token != ids[0])
    expected = ids[: ids.index(stop)]
    given_ = Sampling(temperature=0, max_new_tokens=20, stop_ids=(stop, 399))
    assert drain(stream_tokens(model, PROMPT, given_)) == (expected, "stop")
    for from_config in (stop, [399, stop]):
        monkeypatch.setattr(model.generation_config, "eos_token_id", from_config)
        assert drain(stream_tokens(model, PROMPT, Sampling(temperature=0, max_new_tokens=20))) == (expected, "stop")


def test_a_text_left_half_way_leaves_the_model_and_the_caller_as_they_were(tiny):
    model, sampling = tiny("gpt2"), Sampling(temperature=0, max_new_tokens=20)
    expected = list(stream_tokens(model, PROMPT, sampling))
    model.train()
    assert list(stream_tokens(model, PROMPT, sampling)) == expected  # without dropout
    tokens = stream_tokens(model, PROMPT, sampling)
    next(tokens)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    tokens.close()
    assert model.training and model.transformer.h[1].training
    model(input_ids=torch.tensor([PROMPT]), labels=torch.tensor([PROMPT])).loss.backward()
    model.zero_grad()
    model.eval()


# Drawing


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.01, 1),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 0.99)),
)
def test_the_distribution_is_that_of_transformers_warpers(seed, temperature, top_k, top_p, min_p):
    logits = torch.randn(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), logits[None])[0].softmax(-1)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    kept, ids = likeliest(logits / temperature, sampling)
    ours = torch.zeros_like(expected)
    ours[ids if ids is not None else torch.arange(30)] = kept.softmax(-1)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_ids_are_drawn_as_often_as_their_probability_says():
    sampling, generator = Sampling(temperature=1.5, top_k=6, top_p=0.9), torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0, 2.5, 0.5, -2.0])
    kept, ids = likeliest(logits / 1.5, sampling)
    expected = torch.zeros(8).index_put((ids,), kept.softmax(-1))
    drawn = np.bincount([int(draw(logits, sampling, generator)) for _ in range(20_000)], minlength=8) / 20_000
    # Five standard errors of the largest share.
    np.testing.assert_allclose(drawn, expected, atol=5 * (0.25 / 20_000) ** 0.5)
    assert all(drawn[expected.numpy() == 0] == 0)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_new_tokens": 0}]
)
def test_a_setting_outside_its_range_is_the_users_error(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


# Text


def played(ids):
    """Return a stand-in for `stream_tokens` that yields given ids."""

    def stream(model, prompt, sampling, **_):
        yield from ids
        return "stop"

    return stream


def test_a_character_over_several_tokens_appears_whole(bpe, monkeypatch):
    text = "a 👩‍👩‍👧 ñ 你好 𝔘!"
    ids = bpe.encode(text)
    assert len(bpe.encode("𝔘")) > 1
    monkeypatch.setattr("groundup.inference.generation.stream_tokens", played(ids))
    pieces, reason = drain(stream_text(None, bpe, bpe.encode("So"), Sampling()))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 5 and reason == "stop"
    monkeypatch.setattr("groundup.inference.generation.stream_tokens", played(bpe.encode("ok 𝔘")[:-1]))
    assert "".join(stream_text(None, bpe, [], Sampling())).rstrip() == "ok"


@settings(deadline=None, max_examples=100)
@given(ids=st.lists(st.integers(0, 399), max_size=30))
def test_the_pieces_of_a_text_join_to_what_the_tokenizer_decodes(bpe, ids):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("groundup.inference.generation.stream_tokens", played(ids))
        joined = "".join(stream_text(None, bpe, bpe.encode("Said: "), Sampling()))
    whole = bpe.decode(ids, skip_special_tokens=True)
    assert whole.startswith(joined) and not whole[len(joined) :].strip("\ufffd")


@settings(deadline=None, max_examples=200)
@given(
    ids=st.lists(st.integers(0, 399), max_size=30),
    stops=st.lists(st.text("aehnot \n", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_a_stop_text_ends_the_text_where_it_would_begin(bpe, ids, stops):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("groundup.inference.generation.stream_tokens", played(ids))
        whole = "".join(stream_text(None, bpe, bpe.encode("Said: "), Sampling()))
        pieces, reason = drain(stream_text(None, bpe, bpe.encode("Said: "), Sampling(stop=stops)))
    places = [place for stop in stops if (place := whole.find(stop)) >= 0]
    assert "".join(pieces) == whole[: min(places, default=len(whole))]
    assert all(pieces) and reason == "stop"


def test_words_are_joined_as_their_tokenizer_joins_them(words, monkeypatch):
    prompt, rest = words.encode("The cat"), words.encode("sat on the mat. The dog")
    monkeypatch.setattr("groundup.inference.generation.stream_tokens", played(rest))
    said = "".join(stream_text(None, words, prompt, Sampling()))
    assert words.decode(prompt) + said == words.decode(prompt + rest)


def test_a_completion_is_the_text_of_the_ids(tiny, bpe):
    sampling = Sampling(temperature=0, max_new_tokens=10, stop_ids=(-1,))
    ids, _ = drain(stream_tokens(tiny("groundup"), bpe.encode("The cat"), sampling))
    assert bpe.decode(ids, skip_special_tokens=True).startswith(complete(tiny("groundup"), bpe, "The cat", sampling))


def test_an_empty_prompt_begins_a_new_text(bpe, words):
    assert encode_prompt(bpe, "") == [bpe.eos_token_id]
    assert encode_prompt(words, " ") == [words.eos_token_id]
    assert encode_prompt(bpe, "The") == bpe.encode("The")


@pytest.mark.parametrize("broken", ["caf\udce9 x", "\ud83d", "a\udc00", "x" * 5000 + "\udcff"])
def test_half_a_character_in_a_prompt_is_the_users_error_in_one_line(broken, bpe, words):
    for tokenizer in (bpe, words):
        with pytest.raises(InputError, match=r"the prompt is not UTF-8: (byte 0x|half a character)") as raised:
            encode_prompt(tokenizer, broken)
        assert len(str(raised.value)) < 120


@pytest.mark.parametrize(
    "odd", ["\ufffe\uffff", "\ufdd00\ufdd1", "\ufffd", "\x00", "\u200b\u202e", "<|user|>", "\U0010ffff"]
)
def test_any_whole_text_is_a_prompt(odd, bpe):
    assert bpe.decode(encode_prompt(bpe, odd + "a")) == odd + "a"


# Speed


@pytest.mark.parametrize("name", MODELS)
def test_the_layout_for_decoding_changes_no_value_and_keeps_ties(name, tiny):
    model = type(tiny(name))(tiny(name).config).eval()
    model.load_state_dict(tiny(name).state_dict())
    lay_out_for_decoding(lay_out_for_decoding(model))
    for key, value in tiny(name).state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)
    tied = model.config.tie_word_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    greedy = Sampling(temperature=0, max_new_tokens=20, stop_ids=(-1,))
    assert list(stream_tokens(model, PROMPT, greedy)) == list(stream_tokens(tiny(name), PROMPT, greedy))
