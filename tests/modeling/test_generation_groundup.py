"""`generate` in all its ways: with a cache it writes what it writes without one, and padding changes no token."""

import pytest
import torch
from transformers import MaxLengthCriteria, StaticCache, StoppingCriteriaList
from transformers.utils import logging

from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.modeling.export import make_twin
from groundup.modeling.generation_groundup import LARGE_MATRIX, EndOfPositions, every_thread_reads, multiply

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
    """Return rows of random length with the padding on the left, and their mask."""
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


@pytest.mark.parametrize("kind", ["modern", "sliding"])
def test_angles_go_on_past_the_trained_length_as_in_transformers_own_models(kind, build, ids):
    model = build(kind)
    stock, long = make_twin(build("modern"), "qwen3"), {**GREEDY, "max_new_tokens": 40}
    written = model.generate(ids[:1], **long)
    assert written.shape == (1, 80)
    if kind == "modern":
        assert torch.equal(written, stock.generate(ids[:1], **long))
        assert torch.equal(model.generate(ids[:1], use_cache=False, **long), written)


@pytest.mark.parametrize("way", ["ids", "named", "embeddings", "left padding", "beams", "positional criteria"])
def test_a_text_ends_where_learned_positions_do(way, build, ids):
    model, long, row = build("gpt2"), {**GREEDY, "max_new_tokens": 40}, ids[:1]
    mask = torch.ones_like(row)
    if way == "embeddings":
        written = model.generate(inputs_embeds=model.model.embed_tokens(row), attention_mask=mask, **long)
        assert written.shape == (1, 65 - 40)
        return
    alone = model.generate(row, attention_mask=mask, **long)
    if way == "left padding":
        row = torch.cat((torch.zeros(1, 7, dtype=torch.long), row), 1)
        mask = torch.cat((torch.zeros(1, 7, dtype=torch.long), mask), 1)
        assert torch.equal(model.generate(row, attention_mask=mask, **long)[:, 7:], alone)
    elif way == "named":
        assert torch.equal(model.generate(input_ids=row, attention_mask=mask, **long), alone)
    elif way == "beams":
        assert model.generate(row, attention_mask=mask, num_beams=2, **long).shape == (1, 65)
    elif way == "positional criteria":
        criteria = StoppingCriteriaList([MaxLengthCriteria(52)])
        assert model.generate(row, None, None, criteria, attention_mask=mask, **long).shape == (1, 52)
    assert alone.shape == (1, 65)  # the last token was drawn after the last position, and is not looked up


@pytest.mark.parametrize("way", ["looked up", "by an assistant", "sampled by an assistant"])
def test_a_draft_ends_where_learned_positions_do(way, build, ids):
    model = build("gpt2")
    row = ids[:1, :5].repeat(1, 10)  # whatever it writes, some of it stood before
    mask = torch.ones_like(row)
    more = {"prompt_lookup_num_tokens": 5} if way == "looked up" else {"assistant_model": model}
    for new in (13, 14, 15, 16, 40):
        named = {**GREEDY, "max_new_tokens": new, "attention_mask": mask}
        if way.startswith("sampled"):
            assert model.generate(row, **named | more | {"do_sample": True}).shape == (1, min(65, 50 + new))
        else:
            assert torch.equal(model.generate(row, **named, **more), model.generate(row, **named))


def test_where_learned_positions_end_is_said(build, ids, caplog):
    logging.enable_propagation()
    logging.warning_once.cache_clear()
    caplog.set_level("WARNING")
    EndOfPositions(64, 65)(ids[:, :40], None)
    assert "max_position_embeddings=64" not in caplog.text
    assert EndOfPositions(63, 40)(ids, None).tolist() == [True] * 3
    assert "a text ends where this model's positions do, max_position_embeddings=63" in caplog.text


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


def test_a_large_model_writes_the_same_text_with_and_without_the_cache():
    model = large()
    prompts = torch.randint(1, 2049, (8, 5), generator=torch.Generator().manual_seed(0))
    for prompt in prompts[:, None]:
        texts = [model.generate(prompt, use_cache=use_cache, **GREEDY) for use_cache in (True, False)]
        assert torch.equal(*texts)


# ---------------------------------------------------------------------------------------------------------------------
# What is put in place while a text is written


def large():
    """Return a network whose every matrix is large enough to be read by several threads."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2048, "num_hidden_layers": 1}
    return GroundupForCausalLM(GroundupConfig(vocab_size=2049, **sizes, zero_init=False)).eval()


def fast(model):
    """Return the names of the layers that have another `forward` of ours at this moment."""
    replaced = ((name, layer.__dict__.get("forward")) for name, layer in model.named_modules())
    return {name for name, forward in replaced if getattr(forward, "__func__", None) is multiply}


def test_what_is_put_in_place_leaves_every_class_and_is_taken_away_also_after_an_error():
    model = large()
    before = [dict(module.__dict__) for module in model.modules()]
    with pytest.raises(KeyError), every_thread_reads(model):
        assert len(fast(model)) == 8
        assert all(type(model.get_submodule(name)) is torch.nn.Linear for name in fast(model))
        with every_thread_reads(model):  # another text, written at the same time
            assert len(fast(model)) == 8
        assert len(fast(model)) == 8
        raise KeyError
    assert [dict(module.__dict__) for module in model.modules()] == before


def test_nothing_stays_after_generate_and_after_an_error_in_it():
    model, prompt = large(), torch.tensor([[5, 6, 7]])
    seen = []
    model.model.register_forward_hook(lambda *_: seen.append(len(fast(model))))
    model.generate(prompt, attention_mask=torch.ones_like(prompt), **{**GREEDY, "max_new_tokens": 2})
    assert seen == [8, 8] and not fast(model)
    model.model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.generate(prompt, attention_mask=torch.ones_like(prompt), **GREEDY)
    assert not fast(model)


@pytest.mark.parametrize("context", ["gradients", "autocast", "a batch"])
def test_where_it_is_no_single_vector_being_written_the_layer_computes_as_ever(context):
    layer, vector = torch.nn.Linear(1024, 1024), torch.randn(1, 1, 1024)
    if context == "gradients":
        multiply(layer, vector).sum().backward()
        assert layer.weight.grad is not None
    elif context == "autocast":
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert multiply(layer, vector).dtype == torch.bfloat16
    else:
        with torch.no_grad():
            assert torch.equal(multiply(layer, vector.expand(2, 1, -1)), layer(vector.expand(2, 1, -1)))
