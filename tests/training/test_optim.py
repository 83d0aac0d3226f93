import pytest
import torch
from torch import nn

from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.training.lora import add_lora
from groundup.training.optim import TABLE_DECAY, Muon, build_optimizers, orthogonalise, split_parameters
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


def test_every_trainable_parameter_has_one_optimizer_and_matrices_in_blocks_have_muon():
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


def test_each_kind_starts_at_its_own_rate_with_the_betas_of_its_optimizer_and_muon_takes_the_runs_precision():
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
