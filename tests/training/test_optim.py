import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.modeling.export import assemble
from groundup.modeling.stock import from_stock, groundup_config
from groundup.training.lora import add_lora
from groundup.training.optim import (
    TABLE_DECAY,
    Muon,
    build_optimizers,
    learning_rates,
    orthogonalise,
    question_rate,
    split_parameters,
)
from groundup.training.settings import LoraOptions


def tiny(**knobs):
    config = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "max_position_embeddings": 16,
    }
    return GroundupForCausalLM(GroundupConfig(**config | knobs))


def test_orthogonalising_brings_every_singular_value_near_one_whatever_the_shape():
    torch.manual_seed(0)
    for shape in ((3, 64, 64), (2, 64, 256), (2, 256, 64)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        # With Polar Express's five steps the smallest of a Gaussian matrix's values may stay lower (arXiv:2505.16932).
        assert values.max() < 1.25
        assert values.median() > 0.85
    rectangular = torch.linalg.svdvals(orthogonalise(torch.randn(2, 64, 256)))
    assert rectangular.min() > 0.7


def test_orthogonalising_keeps_the_singular_vectors():
    torch.manual_seed(0)
    matrix = torch.randn(1, 48, 200)
    u, _, v = torch.linalg.svd(matrix[0], full_matrices=False)
    assert (orthogonalise(matrix)[0] - u @ v).norm() / (u @ v).norm() < 0.2


def test_a_zero_gradient_moves_nothing():
    weight = nn.Parameter(torch.ones(4, 8))
    weight.grad = torch.zeros(4, 8)
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, torch.ones(4, 8))


def test_the_step_of_a_matrix_does_not_depend_on_the_size_of_its_gradient():
    torch.manual_seed(0)
    gradient, steps = torch.randn(16, 16), []
    for scale in (1.0, 1000.0):
        weight = nn.Parameter(torch.zeros(16, 16))
        weight.grad = gradient * scale
        Muon([weight], lr=0.1).step()
        steps.append(weight.detach().clone())
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-3, atol=1e-5)


def test_orthogonalised_in_bf16_a_step_goes_nearly_the_same_way():
    torch.manual_seed(0)
    gradient, steps = torch.randn(48, 128), []
    for dtype in (torch.float32, torch.bfloat16):
        weight = nn.Parameter(torch.zeros(48, 128))
        weight.grad = gradient.clone()
        Muon([weight], lr=0.1, dtype=dtype).step()
        assert weight.dtype == torch.float32
        steps.append(weight.detach().flatten())
    assert torch.cosine_similarity(*steps, dim=0) > 0.999
    assert not torch.equal(*steps)


def test_matrices_updated_together_get_what_each_gets_alone():
    torch.manual_seed(0)
    gradients = [torch.randn(8, 24) for _ in range(3)]
    together = [nn.Parameter(torch.zeros(8, 24)) for _ in gradients]
    for weight, gradient in zip(together, gradients):
        weight.grad = gradient.clone()
    Muon(together, lr=0.1).step()
    for weight, gradient in zip(together, gradients):
        alone = nn.Parameter(torch.zeros(8, 24))
        alone.grad = gradient.clone()
        Muon([alone], lr=0.1).step()
        torch.testing.assert_close(weight, alone)


def test_decay_spares_weights_that_the_step_moves_towards_zero():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(8, 8))
    weight.grad = torch.randn(8, 8)
    plain = nn.Parameter(torch.ones(8, 8))
    plain.grad = weight.grad.clone()
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    Muon([plain], lr=0.1).step()
    shrinks = plain < 1  # the step itself lowers these weights
    torch.testing.assert_close(weight[~shrinks], plain[~shrinks])
    torch.testing.assert_close(weight[shrinks], plain[shrinks] - 0.1 * 0.5)


def test_each_trainable_parameter_has_one_optimizer_and_block_matrices_have_muon():
    for knobs in ({}, {"tie_word_embeddings": True}, {"position_embedding": "learned", "norm": "layer_norm"}):
        model = tiny(**knobs)
        rates = dict.fromkeys(("matrix", "embedding", "head", "vector"), 0.01)
        muon, adamw = build_optimizers(model, "muon", rates, 0.1)
        in_muon = {id(p) for group in muon.param_groups for p in group["params"]}
        in_adamw = {id(p) for group in adamw.param_groups for p in group["params"]}
        assert not in_muon & in_adamw
        assert in_muon | in_adamw == {id(p) for p in model.parameters()}
        assert in_muon == {id(p) for p in model.model.layers.parameters() if p.ndim == 2}


def test_tables_lose_their_share_of_what_matrices_lose_in_a_step_and_vectors_nothing():
    rates = {"matrix": 0.01, "embedding": 0.05, "head": 0.002, "vector": 0.1}
    muon, adamw = build_optimizers(tiny(tie_word_embeddings=False), "muon", rates, 0.5)
    lost = {group["lr"]: group["lr"] * group["weight_decay"] for group in adamw.param_groups}
    of_a_matrix = rates["matrix"] * muon.param_groups[0]["weight_decay"]
    assert of_a_matrix == pytest.approx(0.01 * 0.5)
    assert lost[rates["embedding"]] == pytest.approx(TABLE_DECAY * of_a_matrix)
    assert lost[rates["head"]] == pytest.approx(TABLE_DECAY * of_a_matrix)
    assert lost[rates["vector"]] == 0


def test_frozen_parameters_have_no_optimizer():
    model = tiny()
    model.model.embed_tokens.weight.requires_grad = False
    assert not split_parameters(model)["embedding"]


def test_the_average_goes_on_from_step_to_step_and_the_step_looks_ahead():
    torch.manual_seed(0)
    weight, average, expected = nn.Parameter(torch.zeros(8, 8)), torch.zeros(8, 8), torch.zeros(8, 8)
    optimizer = Muon([weight], lr=0.1, momentum=0.9)
    for gradient in torch.randn(3, 8, 8):
        weight.grad = gradient.clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient
        expected -= 0.1 * orthogonalise((0.1 * gradient + 0.9 * average)[None])[0]
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize(("rows", "columns", "size"), [(16, 16, 1.0), (64, 16, 2.0), (16, 64, 1.0)])
def test_the_step_of_a_tall_matrix_is_larger_by_the_root_of_its_sides_ratio(rows, columns, size):
    torch.manual_seed(0)
    weight, gradient = nn.Parameter(torch.zeros(rows, columns)), torch.randn(rows, columns)
    weight.grad = gradient.clone()
    Muon([weight], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), -0.1 * size * orthogonalise(gradient[None])[0])


def test_each_parameter_group_has_its_own_rate_and_betas_and_muon_the_precision_of_the_run():
    rates = {"matrix": 0.01, "embedding": 0.05, "head": 0.002, "vector": 0.1}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        muon, adamw = build_optimizers(tiny(tie_word_embeddings=False), "muon", rates, 0.5, precision)
        assert muon.dtype == dtype
        assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.95)}
    (alone,) = build_optimizers(tiny(tie_word_embeddings=False), "adamw", rates, 0.5)
    assert {group["betas"] for group in alone.param_groups} == {(0.9, 0.95)}
    for groups in (muon.param_groups + adamw.param_groups, alone.param_groups):
        assert sorted(group["initial_lr"] for group in groups) == sorted(rates.values())
        assert all(group["initial_lr"] == group["lr"] for group in groups)


def test_adamw_alone_decays_matrices_and_tables_and_neither_vectors_nor_adapters():
    rates = {"matrix": 0.01, "embedding": 0.05, "head": 0.002, "vector": 0.1, "adapter": 0.03}
    (adamw,) = build_optimizers(tiny(tie_word_embeddings=False), "adamw", rates, 0.5)
    lost = {group["lr"]: group["lr"] * group["weight_decay"] for group in adamw.param_groups}
    table = TABLE_DECAY * 0.01 * 0.5
    assert lost == pytest.approx({0.01: 0.01 * 0.5, 0.05: table, 0.002: table, 0.1: 0.0})
    adapted = tiny()
    adapted.name_or_path = "somebody/base"
    add_lora(adapted, LoraOptions())
    for kind in ("muon", "adamw"):
        (adamw,) = build_optimizers(adapted, kind, rates, 0.5)
        assert [(group["lr"], group["weight_decay"]) for group in adamw.param_groups] == [(0.03, 0.0)]


SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1}
GPT2_SIZES = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
STATE_SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
OTHERS = {
    "mixtral": {**SIZES, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3_moe": {**SIZES, **EXPERTS, "head_dim": 8, "moe_intermediate_size": 8},
    "granitemoe": {**SIZES, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1},
    "gpt_oss": {**SIZES, **EXPERTS, "head_dim": 8, "num_local_experts": 2},
    "mamba": STATE_SIZES,
    "falcon_mamba": STATE_SIZES,
    "rwkv": {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 32},
    "lfm2": {**SIZES, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "gpt2": GPT2_SIZES,
    "openai-gpt": GPT2_SIZES,
    "gpt_bigcode": GPT2_SIZES,
    "gptj": {**GPT2_SIZES, "rotary_dim": 4},
    "gpt_neox": SIZES,
    "bloom": {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "falcon": SIZES,
    "mpt": {"vocab_size": 50, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 32},
    "opt": {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 8},
    "phi": SIZES,
    "gemma": {**SIZES, "num_key_value_heads": 1, "head_dim": 8},
    "xlnet": {"vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
}  # fmt: skip


def after_a_step(model, **inputs):
    """Take one step by the rates that a plan has; all parameters are finite and moved where they have a gradient."""
    rates = {"matrix": 0.01, "embedding": 0.02, "head": 0.005, "vector": 0.01, "adapter": 0.01}
    optimizers = build_optimizers(model, "muon", rates, 0.1)
    held = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    model(**inputs).loss.backward()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if parameter.grad is not None and parameter.grad.any():
            assert not torch.equal(parameter, before[name]), name
    return before


@pytest.mark.parametrize("kind", OTHERS)
def test_every_architecture_takes_a_step(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **OTHERS[kind]))
    ids = torch.randint(1, 50, (2, 8))
    after_a_step(model, input_ids=ids, labels=ids)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "deberta-v2", "albert", "mixtral"])
def test_every_classifier_takes_a_step(kind):
    sizes = {**SIZES, **OTHERS.get(kind, {}), "embedding_size": 8}
    sizes |= {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2} if kind == "distilbert" else {}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **sizes))
    after_a_step(model, input_ids=torch.randint(1, 50, (2, 8)), labels=torch.tensor([0, 1]))


def test_an_encoder_with_a_decoder_takes_a_step():
    torch.manual_seed(0)
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    ids = torch.randint(1, 50, (2, 8))
    after_a_step(T5ForConditionalGeneration(config), input_ids=ids, labels=ids)


def test_what_is_no_matrix_in_a_block_is_stepped_by_adamw():
    torch.manual_seed(0)
    config = AutoConfig.for_model("mixtral", **OTHERS["mixtral"])
    model = AutoModelForCausalLM.from_config(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = {kind: {names[id(p)].split(".")[-2] for p in found} for kind, found in split_parameters(model).items()}
    assert kinds["stacked"] == {"experts"}
    assert kinds["loose"] == {"gate"}
    assert kinds["matrix"] == {"q_proj", "k_proj", "v_proj", "o_proj"}
    for kind in ("muon", "adamw"):
        optimizers = build_optimizers(model, kind, {"matrix": 0.01, "embedding": 0.1, "head": 0.02, "vector": 0.3}, 0.5)
        groups = {names[id(p)]: group for group in optimizers[-1].param_groups for p in group["params"]}
        experts, router = (groups[f"model.layers.0.mlp.{name}"] for name in ("experts.down_proj", "gate.weight"))
        assert experts["lr"] == router["lr"] == (0.02 if kind == "muon" else 0.01)
        assert experts["lr"] * experts["weight_decay"] == pytest.approx(0.01 * 0.5)  # as a matrix loses
        assert router["weight_decay"] == 0


@pytest.mark.parametrize("inner", [32, 48, 64])  # 48: three times the width, and yet one matrix
def test_a_stock_gpt2_makes_the_steps_of_the_same_network_of_ours(inner):
    """Its layers are transposed, and c_attn holds three matrices: all are stepped as separate ones are."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    stock = GPT2LMHeadModel(GPT2Config(**GPT2_SIZES, **ends, n_inner=inner, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    ours = assemble(groundup_config(stock.config), from_stock(stock.state_dict(), stock.config))
    rates = {"matrix": 0.01, "embedding": 0.02, "head": 0.005, "vector": 0.01}
    ids = torch.randint(0, 50, (4, 32))
    for model in (stock, ours):
        (muon, *_) = build_optimizers(model, "muon", rates, 0.5)
        for _ in range(3):
            muon.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            muon.step()
    matched = from_stock(stock.state_dict(), stock.config)
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(matched[name], weight.detach(), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("main", ["matrix", "head", "adapter"])
@pytest.mark.parametrize("from_elsewhere", [False, True])
def test_a_rate_that_is_given_is_the_rate_of_what_is_trained_and_the_others_keep_their_ratio(
    optimizer, main, from_elsewhere
):
    how = {"from_elsewhere": from_elsewhere, "share": 0.3, "new_head": True, "main": main}
    usual = learning_rates(optimizer, 576, **how)
    given = learning_rates(optimizer, 576, **how, given=3e-4)
    assert given[main] == pytest.approx(3e-4)
    for kind, rate in usual.items():
        assert given[kind] / given[main] == pytest.approx(rate / usual[main])
    doubled = learning_rates(optimizer, 576, **how, given=3e-4, scale=2.0)
    assert doubled == pytest.approx({kind: 2 * rate for kind, rate in given.items()})


def test_a_model_from_elsewhere_is_moved_as_its_makers_would():
    adamw, muon = (learning_rates(kind, 576, from_elsewhere=True) for kind in ("adamw", "muon"))
    assert 5e-5 < adamw["matrix"] == adamw["embedding"] < 2e-4
    assert muon["embedding"] < 1e-3 < learning_rates("muon", 576)["embedding"] / 10
    for width in (128, 576, 2048):
        full, lora = 5e-5 * (2000 / width) ** 0.781, learning_rates("adamw", width)["adapter"]
        assert 8 * full < lora < 12 * full  # Schulman et al. 2025
    assert learning_rates("adamw", 576, from_elsewhere=True, share=0.5, new_head=True)["head"] == 1e-3
    assert learning_rates("adamw", 576, from_elsewhere=True)["head"] == adamw["matrix"]  # that of a language model


@pytest.mark.parametrize(
    ("given", "optimizer", "main", "words"),
    [
        (3e-4, "muon", "matrix", "far below 0.015, the plan's rate for Muon"),
        (2e-5, "adamw", "adapter", "far below 0.0015, the plan's rate for an adapter"),
        (1.0, "adamw", "matrix", "far above 0.0013, the plan's rate for AdamW"),
        (1.0, "adamw", "head", "far above 0.0013, the plan's rate for a new head"),
        (0.02, "muon", "matrix", None),
        (2e-4, "adamw", "adapter", None),
        (None, "muon", "matrix", None),
    ],
)
def test_a_rate_that_cannot_be_meant_is_questioned(given, optimizer, main, words):
    said = question_rate(given, optimizer, main, learning_rates(optimizer, 576))
    assert said is None if words is None else words in said and "--learning-rate-scale" in said
