"""Tiny networks of every kind, with random weights everywhere."""

import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.modeling.configuration_groundup import GPT2_KNOBS
from groundup.modeling.export import assemble
from groundup.modeling.stock import from_stock, groundup_config

SIZES = {"vocab_size": 199, "hidden_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
MODERN = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "zero_init": False}
NO_DROPOUT = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0}
KINDS = {
    "modern": MODERN,
    "gpt2": {**GPT2_KNOBS, **NO_DROPOUT, "num_attention_heads": 4, "bos_token_id": None, "eos_token_id": None},
    "sliding": MODERN | {"sliding_window": 8},
    "encoder": MODERN | {"is_causal": False},
    "learned encoder": MODERN | {"is_causal": False, "position_embedding": "learned"},
    "cross": MODERN | {"add_cross_attention": True},
}


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def equal_to_gpt2():
    """Return a function that tells whether two tensors are the same bits.

    GPT-2 keeps its matrices turned. In bf16 on a processor without instructions for it torch sums those up in another
    order than ours, so that only nearness can be asked there.
    """

    def equal(ours, theirs):
        if ours.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return bool((ours - theirs).abs().max() <= 0.02 * theirs.abs().max())
        return torch.equal(ours, theirs)

    return equal


@pytest.fixture
def ours_of():
    """Return a function that makes a network of ours with the weights and the kernel of a stock model."""

    def ours_of(peer):
        config = groundup_config(peer.config)
        config._attn_implementation = peer.config._attn_implementation
        return assemble(config, from_stock(peer.state_dict(), peer.config))

    return ours_of


@pytest.fixture
def perturb():
    """Return a function that makes all weights random, so that nothing is equal by being one or zero."""

    def perturb(model):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model.eval()

    return perturb


@pytest.fixture
def config_of():
    """Return a function that makes a tiny config of one of `KINDS`."""

    def config_of(kind="modern", **knobs):
        return GroundupConfig(**{**KINDS[kind], **SIZES, **knobs})

    return config_of


@pytest.fixture
def build(config_of, perturb):
    """Return a function that makes a tiny model of a kind, in evaluation mode, causal unless told otherwise."""

    def build(kind="modern", model_class=GroundupForCausalLM, **knobs):
        torch.manual_seed(0)
        return perturb(model_class(config_of(kind, **knobs)))

    return build


@pytest.fixture
def ids():
    """Return three rows of 40 token ids, none of them 0."""
    return torch.randint(1, 199, (3, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokenizer():
    """Return a tokenizer of 199 words, "w4" to "w198" after the special ones; it knows a conversation."""
    words = ["<pad>", "<end>", "<mask>", "<unk>", *(f"w{number}" for number in range(4, 199))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", mask_token="<mask>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] }} <end>{% endgeneration %}{% else %}w4 {{ message['content'] }} w5 {% endif %}"
        "{% endfor %}"
    )
    return tokenizer


@pytest.fixture
def compiler():
    """Skip where torch.compile has no C++ compiler to call."""
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs g++")
