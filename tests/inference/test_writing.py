"""Texts generated together are those generated alone, token for token."""

import numpy as np
import pytest
from transformers import GenerationConfig

from groundup.common.errors import InputError
from groundup.inference.generation import Sampling, encode_prompt, stop_ids_of, stream_text, stream_tokens
from groundup.inference.writing import complete_all, decode_together

MODELS = ("gpt2", "qwen3", "groundup", "groundup-gpt2")
CONTEXT = 32


def drain(generator):
    """Return what a generator yielded, and its own value."""
    items = []
    while True:
        try:
            items.append(next(generator))
        except StopIteration as end:
            return items, end.value


def some_prompts(count=7, longest=16):
    chance = np.random.default_rng(5)
    return [chance.integers(3, 400, int(chance.integers(1, longest))).tolist() for _ in range(count)]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.5},
        {"temperature": 0.8, "top_k": 20},
        {"temperature": 1.3, "top_p": 0.9, "repetition_penalty": 1.2},
    ],
    ids=["greedy", "penalised", "drawn", "drawn and penalised"],
)
@pytest.mark.parametrize("name", MODELS)
def test_ids_generated_together_are_those_generated_alone(name, sampling, tiny):
    model, prompts = tiny(name), some_prompts()
    ends = tuple(range(0, 400, 23))  # some texts may end early
    each = [Sampling(max_new_tokens=12, seed=3 + n, stop_ids=ends, **sampling) for n in range(len(prompts))]
    together = decode_together(model, prompts, each)
    assert together == [drain(stream_tokens(model, ids, one)) for ids, one in zip(prompts, each)]
    assert "length" in {reason for _, reason in together} and len({tuple(ids) for ids, _ in together}) > 3


@pytest.mark.parametrize("name", MODELS)
def test_texts_of_any_length_are_those_of_the_stream(name, tiny, bpe):
    """Prompts that nearly fill the context, and one beyond it where the model can slide, are among them."""
    model = tiny(name)
    prompts = [encode_prompt(bpe, text) for text in ("The cat", "für Größe 你好", "", "x " * 40)]
    slides = name in ("qwen3", "groundup")
    prompts[-1] = prompts[-1][: 40 if slides else CONTEXT]
    each = [Sampling(max_new_tokens=10, temperature=0, seed=n, stop_ids=(-1,)) for n in range(len(prompts))]
    found = complete_all(model, bpe, prompts, each, past_context=slides)
    for ids, one, completion in zip(prompts, each, found, strict=True):
        pieces, reason = drain(stream_text(model, bpe, ids, one, past_context=slides))
        assert (completion.text, completion.reason) == ("".join(pieces), reason)
    assert [one.tokens for one in found] == [10, 10, 10, 10 if slides else 1]


def test_a_stop_text_ends_each_text_where_it_stands(tiny, bpe):
    model, prompts = tiny("groundup"), some_prompts(4)
    free = [Sampling(max_new_tokens=12, temperature=0, stop_ids=(-1,))] * 4
    texts = [one.text for one in complete_all(model, bpe, prompts, free)]
    stop = next(letter for letter in texts[0][2:] if letter not in texts[0][:2] and letter.isascii())
    stopped = [Sampling(max_new_tokens=12, temperature=0, stop_ids=(-1,), stop=[stop])] * 4
    assert stop in texts[0]
    for text, one in zip(texts, complete_all(model, bpe, prompts, stopped), strict=True):
        assert one.text == text.split(stop)[0] and one.reason == ("stop" if stop in text else "length")


def test_how_to_draw_is_said_by_the_sampling_and_the_models_own_settings_stay(tiny, monkeypatch):
    model = tiny("qwen3")
    own = GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=3.0, num_beams=2, eos_token_id=7)
    monkeypatch.setattr(model, "generation_config", own)
    greedy = Sampling(max_new_tokens=8, temperature=0)
    prompts = some_prompts(3)
    assert decode_together(model, prompts, [greedy] * 3) == [drain(stream_tokens(model, p, greedy)) for p in prompts]
    assert model.generation_config is own and stop_ids_of(model) == (7,)


def test_a_token_that_the_model_does_not_know_is_the_users_error(tiny):
    with pytest.raises(InputError, match="401"):
        decode_together(tiny("qwen3"), [[3], [401]], [Sampling(max_new_tokens=2, temperature=0)] * 2)
