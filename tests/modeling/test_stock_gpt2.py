"""GPT-2's weights in and out: logits, hidden states, gradients and text of GPT2LMHeadModel, and the same bits."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.modeling.export import make_twin
from groundup.modeling.stock import from_stock, groundup_config, plain_names, stock_config, tensor_shapes, to_stock
from groundup.modeling.weights_files import infer_config, openai_names

# Radford et al. 2019, table 2, counted by transformers: name -> parameters.
SIZES = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
TINY = {"vocab_size": 203, "n_positions": 96, "n_embd": 128, "n_layer": 3, "n_head": 2, "bos_token_id": 202}
SHAPES = [(1, 33), (2, 40), (4, 96)]  # a row of fewer than 33 tokens takes another kernel in Conv1D than in Linear
GAIN = {"h.0.ln_1.weight": torch.ones(64)}


def peer_of(attention="sdpa", **settings):
    """Return transformers' GPT-2 with random weights everywhere, biases and gains too."""
    torch.manual_seed(0)
    config = GPT2Config(**TINY | {"eos_token_id": 202} | settings)
    config._attn_implementation = attention
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def random_ids(*shape):
    return torch.randint(0, 203, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_and_hidden_states_are_those_of_gpt2_to_the_last_bit(attention, dtype, equal_to_gpt2, ours_of):
    peer = peer_of(attention).to(dtype)
    model = ours_of(peer)
    assert model.dtype == dtype
    for shape in SHAPES:
        with torch.no_grad():
            theirs = peer(random_ids(*shape), output_hidden_states=True)
            found = model(random_ids(*shape), output_hidden_states=True)
        assert len(found.hidden_states) == len(theirs.hidden_states)
        for ours, their in zip([found.logits, *found.hidden_states], [theirs.logits, *theirs.hidden_states]):
            assert equal_to_gpt2(ours, their)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_on_the_left_changes_nothing_of_that(attention, ours_of):
    peer, ids = peer_of(attention), random_ids(2, 40)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        theirs = peer(ids, attention_mask=mask, position_ids=positions).logits
        found = ours_of(peer)(ids, attention_mask=mask).logits  # it counts the positions itself
    assert torch.equal(found[mask.bool()], theirs[mask.bool()])


def test_gradients_are_those_of_gpt2_but_for_rounding(ours_of):
    peer, ids = peer_of(), random_ids(2, 40)
    model = ours_of(peer)
    for each in (peer, model):
        each(ids, labels=ids).loss.backward()
    found = to_stock({name: parameter.grad for name, parameter in model.named_parameters()}, peer.config)
    for name, parameter in peer.named_parameters():
        # Separate queries, keys and values add up their shares in another order than fused ones.
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=1e-5 * parameter.grad.abs().max().item())


def test_greedy_text_is_that_of_gpt2_token_for_token(ours_of):
    peer = peer_of()
    model = ours_of(peer)
    for length in (1, 2, 7, 33):
        options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        ids = random_ids(2, length)
        options["attention_mask"] = torch.ones_like(ids)
        assert torch.equal(model.generate(ids, **options), peer.generate(ids, **options))


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": False}, {"n_inner": 100}])
def test_what_goes_in_and_out_again_is_the_same_to_the_last_bit(settings, ours_of):
    peer = peer_of(**settings)
    back = make_twin(ours_of(peer), "gpt2")
    assert type(back) is GPT2LMHeadModel
    assert back.state_dict().keys() == peer.state_dict().keys()
    assert all(torch.equal(tensor, peer.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert back.config.to_dict() | {"dtype": None} == peer.config.to_dict()


@pytest.mark.parametrize("name", SIZES)
def test_all_four_sizes_are_told_from_their_settings_and_from_their_shapes(name):
    config = stock_config(GroundupConfig.preset(name), "gpt2")
    assert config.to_diff_dict() == GPT2Config(**{
        "n_embd": config.n_embd, "n_layer": config.n_layer, "n_head": config.n_head
    }).to_diff_dict()  # fmt: skip
    assert groundup_config(config).to_dict() == GroundupConfig.preset(name).to_dict()
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in tensor_shapes(config).items()}
        assert {f"transformer.{name}" for name in tensors} == GPT2LMHeadModel(config).state_dict().keys() - {
            "lm_head.weight"
        }
        assert from_stock(tensors, config).keys() == GroundupForCausalLM(
            groundup_config(config)
        ).state_dict().keys() - {"lm_head.weight"}
    assert sum(tensor.numel() for tensor in tensors.values()) == SIZES[name]
    inferred = infer_config(tensors)
    inferred.bos_token_id = inferred.eos_token_id = 50256  # no shape tells which token ends a text
    assert inferred.to_dict() == config.to_dict()


def test_names_with_and_without_prefix_and_the_masks_of_old_files_are_all_understood():
    peer = peer_of()
    plain = {name.removeprefix("transformer."): tensor for name, tensor in peer.state_dict().items()}
    old = plain | {"h.0.attn.bias": torch.ones(1, 1, 96, 96), "h.2.attn.masked_bias": torch.tensor(-1e4)}
    reference = from_stock(peer.state_dict(), peer.config)
    openai = {}
    for name, tensor in plain.items():
        path = name.replace("h.", "h", 1) if name.startswith("h.") else name
        path = path.removesuffix(".weight") if path in ("wte.weight", "wpe.weight") else path
        leaf = {"weight": "w" if tensor.ndim == 2 else "g", "bias": "b"}.get(path.rsplit(".", 1)[-1])
        path = path.rsplit(".", 1)[0] + f".{leaf}" if leaf else path
        openai[f"model/{path.replace('.', '/')}"] = tensor[None] if leaf == "w" else tensor
    openai.pop("model/lm_head/w")
    for names in (plain_names(old, "gpt2"), openai_names(openai)):
        found = from_stock(names, peer.config)
        assert found.keys() == reference.keys()
        assert all(torch.equal(tensor, reference[name]) for name, tensor in found.items())


def without(name):
    return lambda tensors: tensors.pop(name)


def with_extra(name):
    return lambda tensors: tensors.update({name: torch.zeros(2)})


def with_shape(name, *shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (without("h.1.attn.c_attn.bias"), r"missing h\.1\.attn\.c_attn\.bias"),
        (without("wpe.weight"), r"missing wpe\.weight"),
        (with_extra("h.3.ln_1.weight"), r"h\.3\.ln_1\.weight: no tensor of this gpt2 model"),
        (with_extra("score.weight"), r"score\.weight: no tensor of this gpt2 model"),
        (
            with_shape("h.0.mlp.c_fc.weight", 512, 128),
            r"h\.0\.mlp\.c_fc\.weight has shape \(512, 128\) instead of \(128",
        ),
        (with_shape("wte.weight", 202, 128), r"wte\.weight has shape \(202, 128\) instead of \(203, 128\)"),
        (with_shape("lm_head.weight", 203, 128), r"lm_head\.weight differs from wte\.weight"),
    ],
)  # fmt: skip
def test_a_missing_an_extra_and_a_misshapen_tensor_are_named(fault, message):
    peer = peer_of()
    tensors = plain_names(peer.state_dict(), "gpt2")
    fault(tensors)
    with pytest.raises(ValueError, match=message):
        from_stock(tensors, peer.config)


def test_a_long_list_of_faults_is_cut_short():
    peer = peer_of()
    tensors = {name: tensor for name, tensor in plain_names(peer.state_dict(), "gpt2").items() if "h.2" not in name}
    with pytest.raises(ValueError, match=r"missing h\.2\.attn\.c_attn\.bias, .* and 9 more$"):
        from_stock(tensors, peer.config)


def test_on_the_way_out_missing_and_extra_tensors_are_named_too(ours_of):
    peer = peer_of()
    tensors = ours_of(peer).state_dict()
    with pytest.raises(ValueError, match=r"model\.layers\.9\.extra: no tensor"):
        to_stock(tensors | {"model.layers.9.extra": torch.zeros(1)}, peer.config)
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(ValueError, match=r"missing model\.layers\.0\.self_attn\.q_proj\.weight"):
        to_stock(tensors, peer.config)


def test_tensors_that_are_there_under_both_names_are_refused():
    tensors = {"wte.weight": torch.zeros(1), "transformer.wte.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="twice"):
        plain_names(tensors, "gpt2")


@pytest.mark.parametrize(
    "setting",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"add_cross_attention": True},
    ],
)
def test_a_variant_that_computes_something_else_is_refused_by_name(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        groundup_config(GPT2Config(**TINY, eos_token_id=202, **setting))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"wte.weight": torch.zeros(7, 64), **GAIN}, "not GPT-2's weights"),
        ({"wte.weight": torch.zeros(7), "wpe.weight": torch.zeros(3, 64), **GAIN}, "not GPT-2's weights"),
        ({"wte.weight": torch.zeros(7, 64), "wpe.weight": torch.zeros(3, 64)}, "not GPT-2's weights"),
        (
            {"wte.weight": torch.zeros(7, 64), "wpe.weight": torch.zeros(3, 64), "h.5.ln_1.weight": torch.ones(64)},
            "not GPT-2's weights",
        ),
        (
            {"wte.weight": torch.zeros(7, 96), "wpe.weight": torch.zeros(3, 96), **GAIN},
            r"96 does not divide .* config\.json",
        ),
    ],
)  # fmt: skip
def test_shapes_that_say_too_little_are_refused(tensors, message):
    with pytest.raises(ValueError, match=message):
        infer_config(tensors)


def test_heads_are_64_wide_however_many_they_are():
    tensors = {"wte.weight": torch.zeros(7, 4096), "wpe.weight": torch.zeros(3, 4096), **GAIN}
    assert infer_config(tensors).n_head == 64


@pytest.mark.parametrize("tensor", [torch.ones(2, 3), torch.ones(2, 2, 3), torch.ones(1)])
def test_only_a_first_axis_of_one_is_taken_off_a_matrix_of_openai(tensor):
    leaf = "w" if tensor.ndim > 1 else "b"
    (found,) = openai_names({f"model/h0/mlp/c_fc/{leaf}": tensor}).values()
    assert found.shape == tensor.shape


def test_every_setting_comes_along_where_it_is_not_the_usual_one():
    config = GPT2Config(
        **TINY, n_inner=100, activation_function="relu", layer_norm_epsilon=1e-3, embd_pdrop=0.2, attn_pdrop=0.3,
        resid_pdrop=0.4, initializer_range=0.05, tie_word_embeddings=False, use_cache=False, eos_token_id=201,
        pad_token_id=200,
    )  # fmt: skip
    ours = groundup_config(config)
    assert (ours.embedding_dropout, ours.attention_dropout, ours.residual_dropout) == (0.2, 0.3, 0.4)
    assert (ours.hidden_act, ours.norm_eps, ours.initializer_range) == ("relu", 1e-3, 0.05)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (202, 201, 200)
    assert stock_config(ours, "gpt2").to_dict() == config.to_dict()


def test_shapes_tell_a_head_of_its_own_and_an_inner_width_that_is_not_four_times_the_outer():
    config = GPT2Config(**TINY, n_inner=100, tie_word_embeddings=False)
    tensors = {name: torch.randn(shape) for name, shape in tensor_shapes(config).items()}
    inferred = infer_config(tensors)
    assert (inferred.n_inner, inferred.tie_word_embeddings) == (100, False)
    assert inferred.n_layer == 3
    tied = infer_config(tensors | {"lm_head.weight": tensors["wte.weight"].clone()})
    assert tied.tie_word_embeddings
