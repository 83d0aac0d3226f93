"""The network against its peers in transformers, and its own promises about caches, padding and packed rows."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from groundup.modeling import (
    GroundupConfig,
    GroundupForCausalLM,
    GroundupForMaskedLM,
    GroundupForSequenceClassification,
)

SIZES = {"vocab_size": 199, "hidden_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
MODERN = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "zero_init": False}
GPT2 = {**SIZES, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0}


def perturbed(model):
    """Random weights everywhere, gains and biases too, so that nothing is equal by being one or zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def modern(**knobs):
    return perturbed(GroundupForCausalLM(GroundupConfig(**MODERN | knobs)))


def gpt2(**knobs):
    return perturbed(GroundupForCausalLM(GroundupConfig.preset("gpt2", **GPT2 | knobs)))


def sliding(**knobs):
    return modern(sliding_window=8, **knobs)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ids():
    torch.manual_seed(1)
    return torch.randint(0, 199, (3, 40))


def of_a_peer(config):
    return {
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads,
        "max_position_embeddings": config.max_position_embeddings, "rms_norm_eps": config.norm_eps,
        "rope_parameters": dict(config.rope_parameters), "tie_word_embeddings": config.tie_word_embeddings,
    }  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("qk_norm", "config_class", "model_class"),
    [(True, Qwen3Config, Qwen3ForCausalLM), (False, LlamaConfig, LlamaForCausalLM)],
)
def test_qwen3_and_llama_give_the_same_bits_from_the_same_state_dict(
    qk_norm, config_class, model_class, dtype, attention, ids
):
    ours = modern(qk_norm=qk_norm).to(dtype)
    peer = model_class(config_class(**of_a_peer(ours.config))).to(dtype).eval()
    peer.load_state_dict(ours.state_dict())
    for model in (ours, peer):
        model.set_attn_implementation(attention)
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, peer(ids).logits)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gpt2_gives_the_same_bits(attention, ids):
    peer = perturbed(GPT2LMHeadModel(GPT2Config(vocab_size=199, n_embd=48, n_layer=2, n_head=4, n_positions=64)))
    ours = gpt2()
    state = ours.state_dict()
    state["model.embed_tokens.weight"] = state["lm_head.weight"] = peer.transformer.wte.weight
    state["model.embed_positions.weight"] = peer.transformer.wpe.weight
    names = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}
    for number, block in enumerate(peer.transformer.h):
        at = f"model.layers.{number}."
        for leaf in ("weight", "bias"):
            for theirs, own in names.items():
                state[f"{at}{own}.{leaf}"] = getattr(getattr(block, theirs), leaf)
            for own, part in zip("qkv", getattr(block.attn.c_attn, leaf).split(48, dim=-1)):
                state[f"{at}self_attn.{own}_proj.{leaf}"] = part.t()
            state[f"{at}self_attn.o_proj.{leaf}"] = getattr(block.attn.c_proj, leaf).t()
            state[f"{at}mlp.up_proj.{leaf}"] = getattr(block.mlp.c_fc, leaf).t()
            state[f"{at}mlp.down_proj.{leaf}"] = getattr(block.mlp.c_proj, leaf).t()
    state["model.norm.weight"], state["model.norm.bias"] = peer.transformer.ln_f.weight, peer.transformer.ln_f.bias
    ours.load_state_dict(state)
    for model in (ours, peer):
        model.set_attn_implementation(attention)
    with torch.no_grad():
        own, theirs = (model(ids, output_hidden_states=True) for model in (ours, peer))
    assert torch.equal(own.logits, theirs.logits)
    assert all(torch.equal(a, b) for a, b in zip(own.hidden_states, theirs.hidden_states))


def test_gpt2_sizes_have_the_known_parameter_counts():
    with torch.device("meta"):
        small = GroundupForCausalLM(GroundupConfig.preset("gpt2"))
        book = GroundupForCausalLM(GroundupConfig.preset("gpt2", qkv_bias=False, tie_word_embeddings=False))
        largest = GroundupForCausalLM(GroundupConfig.preset("gpt2-xl"))
    assert small.num_parameters() == 124_439_808  # Radford et al. 2019, as released
    assert book.num_parameters() == 163_009_536  # Raschka, Build a Large Language Model (From Scratch), chapter 4
    assert largest.num_parameters() == 1_557_611_200


def test_initial_weights_have_the_spread_that_gpt2_has():
    torch.manual_seed(0)
    model = GroundupForCausalLM(GroundupConfig.preset("gpt2", **GPT2 | {"hidden_size": 256, "num_hidden_layers": 8}))
    layer = model.model.layers[0]
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        assert projection.weight.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.05)
    modern_model = GroundupForCausalLM(GroundupConfig(**SIZES))
    assert not modern_model.model.layers[0].mlp.down_proj.weight.any()
    assert not modern_model.lm_head.weight.any()


@pytest.mark.parametrize("make", [modern, gpt2, sliding])
def test_generation_with_the_cache_equals_generation_without_it(make):
    model = make()
    model.generation_config.pad_token_id = 0
    torch.manual_seed(2)
    for _ in range(12):
        rows, length = torch.randint(1, 4, ()).item(), torch.randint(2, 20, ()).item()
        ids = torch.randint(1, 199, (rows, length))
        mask = torch.ones_like(ids)
        mask[0, : torch.randint(0, length - 1, ()).item()] = 0
        arguments = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
        assert torch.equal(
            model.generate(ids, use_cache=True, **arguments), model.generate(ids, use_cache=False, **arguments)
        )


@pytest.mark.parametrize("make", [modern, gpt2, sliding])
def test_padding_on_either_side_changes_no_logit_even_without_position_ids(make, ids):
    model = make()
    row, pad = ids[:1, :20], torch.zeros(1, 7, dtype=torch.long)
    with torch.no_grad():
        alone = model(row).logits
        left = model(torch.cat((pad, row), 1), attention_mask=torch.tensor([[0] * 7 + [1] * 20])).logits[:, 7:]
        right = model(torch.cat((row, pad), 1), attention_mask=torch.tensor([[1] * 20 + [0] * 7])).logits[:, :20]
    torch.testing.assert_close(left, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(right, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [modern, gpt2, sliding])
@pytest.mark.parametrize("use_cache", [True, False])
def test_in_a_packed_row_one_document_cannot_see_another(make, use_cache, ids):
    model = make()
    row = ids[:1, :30].clone()
    positions = torch.tensor([[*range(12), *range(18)]])
    with torch.no_grad():
        packed = model(row, position_ids=positions, use_cache=use_cache).logits
        second_alone = model(row[:, 12:]).logits
        row[0, :12] = 5
        changed = model(row, position_ids=positions, use_cache=use_cache).logits
    torch.testing.assert_close(packed[:, 12:], second_alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(changed[:, 12:], packed[:, 12:], rtol=0, atol=1e-5)


def test_no_token_sees_a_later_one_and_with_a_window_none_too_far_back(ids):
    for model in (modern(), gpt2()):
        row = ids[:1].clone()
        with torch.no_grad():
            before = model(row).logits
            row[0, 20] = (row[0, 20] + 1) % 199
            after = model(row).logits
        assert torch.equal(before[:, :20], after[:, :20])
        assert not torch.equal(before[:, 20:], after[:, 20:])
    one_layer = sliding(num_hidden_layers=1)
    row = ids[:1].clone()
    with torch.no_grad():
        before = one_layer(row).logits
        row[0, 10] = (row[0, 10] + 1) % 199
        changed = (one_layer(row).logits != before).any(-1)[0].nonzero().flatten().tolist()
    assert changed == list(range(10, 18))  # the window of 8 counts the token itself


def test_an_encoder_looks_both_ways_and_keeps_packed_documents_apart(ids):
    model = perturbed(GroundupForMaskedLM(GroundupConfig(**MODERN, is_causal=False)))
    row, positions = ids[:1, :30].clone(), torch.tensor([[*range(12), *range(18)]])
    with torch.no_grad():
        before, packed = model(row).logits, model(row, position_ids=positions).logits
        row[0, 25] = (row[0, 25] + 1) % 199
        assert not torch.equal(model(row).logits[:, 0], before[:, 0])
        torch.testing.assert_close(model(row, position_ids=positions).logits[:, :12], packed[:, :12])


def test_cross_attention_is_never_causal_on_any_kernel():
    model, results = modern(add_cross_attention=True), {}
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        encoder = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            results[attention] = model(torch.arange(10).view(2, 5), encoder_hidden_states=encoder).logits
    torch.testing.assert_close(results["eager"], results["sdpa"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "first", "mean", "max"])
@pytest.mark.parametrize("position_embedding", ["rotary", "learned"])
def test_a_classifier_gives_the_same_logits_whatever_the_padding(pooling, position_embedding, ids):
    config = MODERN | {"position_embedding": position_embedding, "classifier_pooling": pooling, "pad_token_id": 0}
    model = perturbed(GroundupForSequenceClassification(GroundupConfig(**config, num_labels=3)))
    row, pad = ids[:1, :20].clamp(min=1), torch.zeros(1, 7, dtype=torch.long)
    with torch.no_grad():
        alone = model(row).logits
        for padded in (torch.cat((pad, row), 1), torch.cat((row, pad), 1)):
            torch.testing.assert_close(model(padded).logits, alone, rtol=1e-4, atol=1e-4)


def test_the_loss_counts_labels_over_all_micro_batches(ids):
    model = modern()
    with torch.no_grad():
        mean = model(ids, labels=ids).loss
        parts = [model(row[None], labels=row[None], num_items_in_batch=3 * 39).loss for row in ids]
    torch.testing.assert_close(sum(parts), mean)


def test_logits_to_keep_and_gradient_checkpointing_change_no_number(ids):
    model = modern()
    with torch.no_grad():
        torch.testing.assert_close(model(ids, logits_to_keep=3).logits, model(ids).logits[:, -3:])
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append(model.model.embed_tokens.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_a_sequence_longer_than_the_positions_is_an_error(ids):
    for model in (modern(), gpt2()):
        with pytest.raises(ValueError, match="max_position_embeddings=64"):
            model(torch.zeros(1, 65, dtype=torch.long))
        cache = model(torch.zeros(1, 60, dtype=torch.long), use_cache=True).past_key_values
        with pytest.raises(ValueError, match="longer than"):
            model(torch.zeros(1, 5, dtype=torch.long), past_key_values=cache)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_survive_saving_loading_and_a_larger_vocabulary(tied, tmp_path, ids):
    model = modern(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    again = GroundupForCausalLM.from_pretrained(tmp_path)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
        again.resize_token_embeddings(210)
        assert torch.equal(again(ids).logits[..., :199], model(ids).logits)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"hidden_size": 50, "num_attention_heads": 4}, "num_attention_heads=4"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_key_value_heads=4"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0"),
        ({"hidden_act": "swishy"}, "hidden_act='swishy'"),
        ({"hidden_size": -8}, "hidden_size=-8"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"qk_norm": "yes"}, "qk_norm"),
        ({"norm": "batch_norm"}, "norm"),
        ({"position_embedding": "learned", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "spiral"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial"),
        ({"hidden_size": 27, "num_attention_heads": 9}, "head_dim=3"),
        ({"attention_dropout": 1.5}, "attention_dropout=1.5"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"sliding_window": 4, "is_causal": False}, "sliding_window"),
        ({"layer_types": ["sliding_attention"] * 6}, "sliding_window is None"),
        ({"bos_token_id": 10**6}, "bos_token_id=1000000"),
    ],
)
def test_a_config_that_cannot_work_is_refused_when_it_is_made(wrong, words):
    with pytest.raises((StrictDataclassError, ValueError)) as error:
        GroundupConfig(**wrong)
    assert words in str(error.value)


def test_a_size_overridden_while_loading_is_checked_too(tmp_path):
    modern().save_pretrained(tmp_path)
    with pytest.raises((StrictDataclassError, ValueError), match="layer_types"):
        GroundupForCausalLM.from_pretrained(tmp_path, num_hidden_layers=3)


def test_gpt2s_names_and_ours_mean_the_same_field():
    config = GroundupConfig(n_embd=64, n_layer=3, n_head=2, n_positions=128)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 3, 2)
    assert (config.head_dim, config.num_key_value_heads, len(config.layer_types)) == (32, 2, 3)
    assert config.n_positions == config.max_position_embeddings == 128


STRANGER = """
import sys, json
sys.modules["groundup"] = None
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers import AutoModelForMaskedLM
folder, heads = sys.argv[1], sys.argv[2].split(",")
AutoConfig.from_pretrained(folder, trust_remote_code=True)
for head in heads:
    model = globals()[head].from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules"), type(model)
ids = torch.arange(40)[None]
with torch.no_grad():
    print(json.dumps(model(ids).logits[0, -1].tolist()))
"""


@pytest.mark.parametrize(
    ("model_class", "knobs", "heads"),
    [
        (GroundupForCausalLM, {}, "AutoModel,AutoModelForSequenceClassification,AutoModelForCausalLM"),
        (GroundupForMaskedLM, {"is_causal": False}, "AutoModel,AutoModelForMaskedLM"),
    ],
)
def test_a_checkpoint_travels_alone(model_class, knobs, heads, tmp_path):
    model = perturbed(model_class(GroundupConfig(**MODERN | knobs)))
    for place in (tmp_path / "first", tmp_path / "again"):
        model.save_pretrained(place)
        answer = subprocess.run(
            [sys.executable, "-I", "-c", STRANGER, place, heads],
            capture_output=True, text=True, check=True, env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        with torch.no_grad():
            expected = model(torch.arange(40)[None]).logits[0, -1]
        torch.testing.assert_close(torch.tensor(json.loads(answer.stdout)), expected, rtol=1e-4, atol=1e-4)
        model = model_class.from_pretrained(place)  # natively, then saved again: the code must travel on


def test_an_encoder_and_a_decoder_of_ours_make_transformers_encoder_decoder_model():
    encoder = GroundupConfig(**MODERN, is_causal=False)
    decoder = GroundupConfig(**MODERN, add_cross_attention=True, is_decoder=True)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    torch.manual_seed(0)
    model = perturbed(EncoderDecoderModel(config=config))
    ids, pad = torch.randint(3, 199, (2, 9)), torch.zeros(2, 4, dtype=torch.long)
    mask = torch.tensor([[1] * 9 + [0] * 4] * 2)
    arguments = {"max_new_tokens": 10, "do_sample": False, "decoder_start_token_id": 1, "pad_token_id": 0}
    cached = model.generate(ids, use_cache=True, **arguments)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **arguments))
    padded = model.generate(torch.cat((ids, pad), 1), attention_mask=mask, **arguments)
    assert torch.equal(padded, cached)
    losses = []
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.7
