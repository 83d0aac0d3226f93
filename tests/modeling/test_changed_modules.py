"""Whatever somebody puts into a network, every way of writing asks it: quantised, offloaded, hooked, pruned, adapted.

What is written must be what the changed network says when its whole text goes through `forward` for every token.
"""

import types

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from groundup.data.encoding import ConversationRows
from groundup.data.tokens import TokenStream
from groundup.evaluation.instruction import answer_loss, write_answers
from groundup.evaluation.language import check_causal
from groundup.evaluation.likelihood import score_stream
from groundup.inference.decoding import FlatDecoder, ForwardDecoder, decoder_for
from groundup.inference.generation import Sampling, lay_out_for_decoding, stream_tokens
from groundup.modeling import GroundupConfig, GroundupForCausalLM

PROMPT = [7, 130, 12, 99, 5]
SIZES = {"vocab_size": 199, "hidden_size": 48, "num_attention_heads": 3, "max_position_embeddings": 32}
NEW = 8


@pytest.fixture(autouse=True)
def no_matrix_is_too_small(monkeypatch):
    """Let several threads read every matrix, as they read only large ones."""
    monkeypatch.setattr("groundup.modeling.generation_groundup.LARGE_MATRIX", 1)


def network(layers=1):
    """Return a small network with weights so far apart that no two of its logits nearly tie."""
    torch.manual_seed(0)
    config = GroundupConfig(**SIZES, num_hidden_layers=layers, zero_init=False, initializer_range=0.4)
    return GroundupForCausalLM(config).eval()


def by_generate(model):
    prompt = torch.tensor([PROMPT])
    named = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": NEW}
    return model.generate(prompt, **named, eos_token_id=-1, pad_token_id=0)[0, len(PROMPT) :].tolist()


def by_own_loop(model):
    return list(stream_tokens(model, PROMPT, Sampling(temperature=0, max_new_tokens=NEW, stop_ids=(-1,))))


@torch.no_grad()
def by_hand(model):
    """Send the whole text through `forward` for every token: nothing that is put in place for writing takes part."""
    ids = list(PROMPT)
    for _ in range(NEW):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


class Eighth(torch.Tensor):
    """A stand-in for a quantised weight: numbers of its own kind, that only a linear layer knows how to use."""

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype, requires_grad=False)

    def __init__(self, weight):
        self.eighths = (weight * 8).round().to(torch.int8)

    @classmethod
    def __torch_function__(cls, function, kinds, arguments=(), named=None):
        if function is nn.functional.linear:
            x, weight, *bias = arguments
            return nn.functional.linear(x, weight.eighths.float() / 8, *bias)
        return super().__torch_function__(function, kinds, arguments, named or {})

    @classmethod
    def __torch_dispatch__(cls, function, kinds, arguments=(), named=None):
        if function is torch.ops.aten.detach.default:
            return arguments[0]
        raise NotImplementedError(f"{function} of eighths")


def quantised(model, _):
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.weight = nn.Parameter(Eighth(layer.weight.detach()), requires_grad=False)
    return model


class Negated(ModelHook):
    """A hook of accelerate's, which takes the place of `forward`."""

    def post_forward(self, module, output):
        return -output


def with_model_hook(model, _):
    add_hook_to_module(model.model.layers[0].mlp.down_proj, Negated())
    return model


def with_forward(model, _):
    layer = model.model.layers[0].self_attn.o_proj
    layer.forward = types.MethodType(lambda layer, x: -nn.Linear.forward(layer, x), layer)
    return model


def with_attention_forward(model, _):
    attention = model.model.layers[0].self_attn
    before = attention.forward
    attention.forward = lambda *a, **k: (-before(*a, **k)[0], None)
    return model


def with_pre_hook(model, _):
    model.lm_head.register_forward_pre_hook(lambda module, arguments: (-arguments[0],))
    return model


def with_hook(model, _):
    model.model.layers[0].mlp.register_forward_hook(lambda module, arguments, output: output * -2)
    return model


class Doubled(nn.Module):
    def forward(self, weight):
        return -2 * weight


def with_parametrisation(model, _):
    parametrize.register_parametrization(model.model.layers[0].mlp.down_proj, "weight", Doubled())
    return model


def with_weight_norm(model, _):
    parametrizations.weight_norm(model.model.layers[0].mlp.down_proj)
    model.model.layers[0].mlp.down_proj.parametrizations.weight.original0.data *= -2
    return model


def pruned(model, _):
    prune.l1_unstructured(model.model.layers[0].mlp.down_proj, "weight", amount=0.9)
    prune.random_structured(model.lm_head, "weight", amount=0.5, dim=1)
    return model


def with_adapter(model, _):
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return adapted.base_model.model.eval()


class Backwards(nn.Linear):
    """A class of someone's own, as bitsandbytes and GGUF put in the place of linear layers."""

    def forward(self, x):
        return -super().forward(x)


def with_class(model, _):
    model.model.layers[0].mlp.down_proj.__class__ = Backwards
    return model


def with_head_bias(model, _):
    head = nn.Linear(48, 199)
    head.weight = model.lm_head.weight
    nn.init.normal_(head.bias, std=20.0)
    model.lm_head = head
    return model


def with_norm_taken_out(model, _):
    model.model.layers[0].post_attention_layernorm = nn.Identity()
    return model


def with_scaling(model, _):
    model.model.layers[0].self_attn.scaling *= 30
    return model


def with_bounded_embedding(model, _):
    model.model.embed_tokens.max_norm = 1e-3
    return model


def sparse(model, _):
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = nn.Parameter((layer.weight.detach() * (layer.weight.abs() > 0.5)).to_sparse_csr(), False)
    return model


def offloaded_to_cpu(model, _):
    return cpu_offload(model, execution_device=torch.device("cpu"))


def offloaded_to_disk(model, folder):
    return disk_offload(model, folder, execution_device=torch.device("cpu"))


def shared(model, _):
    return model.share_memory()


CHANGES = [
    quantised, with_model_hook, with_forward, with_attention_forward, with_pre_hook, with_hook, with_parametrisation,
    with_weight_norm, pruned, with_adapter, with_class, with_head_bias, with_norm_taken_out, with_scaling,
    with_bounded_embedding, sparse, offloaded_to_cpu, offloaded_to_disk, shared,
]  # fmt: skip
SAME_VALUES = (offloaded_to_cpu, offloaded_to_disk, shared)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_way_of_writing_asks_the_network_as_it_is(change, laid_out, tmp_path):
    model = network()
    before = by_hand(model)
    changed = change(model, tmp_path)
    if laid_out:
        lay_out_for_decoding(changed)
    expected = by_hand(changed)
    assert by_generate(changed) == by_own_loop(changed) == expected
    assert (expected == before) == (change in SAME_VALUES)


@pytest.mark.parametrize("kind", [nn.Linear, GroundupForCausalLM])
def test_a_forward_given_to_a_whole_class_is_used(kind, monkeypatch):
    model, forward = network(), kind.forward
    before, seen = by_own_loop(model), []
    monkeypatch.setattr(kind, "forward", lambda *a, **k: [forward(*a, **k), seen.append(1)][0])
    assert isinstance(decoder_for(model, 32), ForwardDecoder)
    assert by_own_loop(model) == by_generate(model) == before and len(seen) >= 2 * NEW


def test_a_network_from_which_layers_were_taken_is_asked_itself():
    model = network(layers=3)
    assert isinstance(decoder_for(model, 32), FlatDecoder)
    del model.model.layers[0]
    assert isinstance(decoder_for(model, 32), ForwardDecoder)


def test_a_text_that_is_being_written_by_generate_makes_no_other_slower():
    model, kinds = network(), []
    model.generate(
        torch.tensor([PROMPT]), max_new_tokens=2, pad_token_id=0, eos_token_id=-1, do_sample=False,
        stopping_criteria=[lambda ids, scores: kinds.append(type(decoder_for(model, 32))) or torch.tensor([False])],
    )  # fmt: skip
    assert kinds == [FlatDecoder, FlatDecoder]


@pytest.mark.slow
def test_torchao_int8_weights_are_used_by_every_way_of_writing():
    torchao = pytest.importorskip("torchao.quantization")
    model = network()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    lay_out_for_decoding(model)
    assert by_generate(model) == by_own_loop(model) == by_hand(model)


@pytest.mark.parametrize("offload", ["disk", "cpu"])
def test_every_measure_of_a_model_that_lies_elsewhere_is_that_of_the_model_itself(offload, tmp_path):
    """Its parameters are on no device until they are called: ids go where it takes them."""
    rows = ConversationRows.from_lists([([*range(3, 20)], [False] * 5 + [True] * 12), ([8, 9], [False, True])])
    stream = TokenStream([np.arange(180, dtype=np.uint16) % 150], {"bytes": 180})
    reader = types.SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)))

    def measures(model):
        check_causal(model)
        return (
            write_answers(model, reader, [PROMPT, PROMPT[:2]], {198}, 4),
            answer_loss(model, rows),
            score_stream(model, stream, 32, special_ids=()),
        )

    plain = measures(network())
    model = network()
    cpu_offload(model) if offload == "cpu" else disk_offload(model, str(tmp_path / "disk"))
    assert model.device.type == "meta" and measures(model) == plain
