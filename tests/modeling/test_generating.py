"""`generate` in all its ways: with a cache it writes what it writes without one, and padding changes no token."""

import pytest
import torch
from transformers import StaticCache

from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.modeling.modeling_groundup import LARGE_MATRIX, multiply

DECODERS = ["modern", "gpt2", "sliding"]
GREEDY = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams, several": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "sampling beams": {"do_sample": True, "num_beams": 2},
    "repetition penalty": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "minimum length": {"eos_token_id": 7, "min_new_tokens": 5},
}


def padded_prompts(generator, rows, longest):
    """Rows of random length with the padding on the left, and their mask."""
    lengths = torch.randint(1, longest + 1, (rows, 1), generator=generator)
    width = int(lengths.max())
    mask = (torch.arange(width) >= width - lengths).long()
    return torch.randint(1, 199, (rows, width), generator=generator) * mask, mask


@pytest.mark.parametrize("kind", DECODERS)
def test_two_hundred_prompts_get_the_same_text_with_and_without_the_cache_and_the_padding(kind, build):
    model, generator, prompts = build(kind), torch.Generator().manual_seed(0), 0
    while prompts < 200:
        ids, mask = padded_prompts(generator, rows=int(torch.randint(1, 9, (), generator=generator)), longest=20)
        cached = model.generate(ids, attention_mask=mask, **GREEDY)
        assert torch.equal(cached, model.generate(ids, attention_mask=mask, use_cache=False, **GREEDY))
        if prompts % 5 == 0:
            alone = model.generate(ids[:1, mask[0] == 1], attention_mask=mask[:1, mask[0] == 1], **GREEDY)
            assert torch.equal(alone[0, -12:], cached[0, -12:])
        prompts += len(ids)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", DECODERS)
def test_every_way_of_choosing_tokens_is_the_same_with_and_without_the_cache(kind, way, build):
    model = build(kind)
    ids, mask = padded_prompts(torch.Generator().manual_seed(1), rows=3, longest=14)
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        texts.append(model.generate(ids, attention_mask=mask, use_cache=use_cache, **{**GREEDY, **WAYS[way]}))
    assert torch.equal(*texts)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_static_cache_chunks_and_embeddings_give_the_greedy_text(kind, build):
    model = build(kind)
    ids, mask = padded_prompts(torch.Generator().manual_seed(2), rows=3, longest=14)
    greedy = model.generate(ids, attention_mask=mask, **GREEDY)
    length = ids.shape[1]
    static = StaticCache(config=model.config, max_cache_len=length + 12)
    for ways in ({"cache_implementation": "static"}, {"past_key_values": static}, {"prefill_chunk_size": 4}):
        assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY, **ways), greedy)
    embedded = model.model.embed_tokens(ids)
    assert torch.equal(model.generate(inputs_embeds=embedded, attention_mask=mask, **GREEDY), greedy[:, length:])


@pytest.mark.parametrize("kind", DECODERS)
def test_guessing_ahead_changes_no_token(kind, build, ids):
    model, prompt = build(kind), torch.cat((ids[:1, :8], ids[:1, :8]), 1)
    greedy = model.generate(prompt, **GREEDY)
    guesser = build(kind, num_hidden_layers=1)
    assert torch.equal(model.generate(prompt, assistant_model=guesser, **GREEDY), greedy)
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=3, **GREEDY), greedy)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_conversation_may_go_on_from_its_cache(kind, build, ids):
    model, first, more = build(kind), ids[:1, :9], ids[1:2, :5]
    output = model.generate(first, return_dict_in_generate=True, **GREEDY)
    longer = torch.cat((output.sequences, more), 1)
    named = {"attention_mask": torch.ones_like(longer), **GREEDY}
    assert torch.equal(
        model.generate(longer, past_key_values=output.past_key_values, **named), model.generate(longer, **named)
    )


def test_generation_stops_at_the_last_position_with_an_error(build, ids):
    with pytest.raises(ValueError, match="max_position_embeddings=64"):
        build().generate(ids[:1], **{**GREEDY, "max_new_tokens": 30})


def test_an_encoder_cannot_be_asked_to_write(build):
    with pytest.raises(ValueError, match="is_causal=True: an encoder cannot write"):
        build("encoder")


def test_sequences_come_with_their_scores(build, ids):
    model = build()
    output = model.generate(ids[:2], return_dict_in_generate=True, output_logits=True, **GREEDY)
    with torch.no_grad():
        logits = model(output.sequences[:, :-1]).logits[:, 39:]
    torch.testing.assert_close(torch.stack(output.logits, 1), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_a_vector_read_by_all_threads_gives_what_the_layer_gives(threads, bias):
    before = torch.get_num_threads()
    layer = torch.nn.Linear(512, LARGE_MATRIX // 512 + 1, bias=bias)  # rows that neither two nor three threads share
    vector = torch.randn(1, 1, 512, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            torch.testing.assert_close(multiply(layer, vector), layer(vector), rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_more_threads_than_rows_are_no_harm():
    layer, vector, before = torch.nn.Linear(2**18, 2, bias=False), torch.randn(2**18), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with torch.inference_mode():
            torch.testing.assert_close(multiply(layer, vector), layer(vector), rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_a_layer_with_a_hook_on_it_is_called_itself():
    layer, seen = torch.nn.Linear(1024, 1024), []
    layer.register_forward_hook(lambda *_: seen.append(1))
    with torch.inference_mode():
        multiply(layer, torch.randn(1, 1, 1024))
    assert seen == [1]


def test_a_large_model_writes_the_same_text_with_and_without_the_cache():
    torch.manual_seed(0)
    config = GroundupConfig(vocab_size=2049, hidden_size=256, num_hidden_layers=1, intermediate_size=2048)
    model = GroundupForCausalLM(config).eval()
    prompts = torch.randint(1, 2049, (8, 5), generator=torch.Generator().manual_seed(0))
    for prompt in prompts[:, None]:
        texts = [model.generate(prompt, use_cache=use_cache, **GREEDY) for use_cache in (True, False)]
        assert torch.equal(*texts)
