"""An encoder and a decoder write what transformers lets them write, and are found and loaded as what they are."""

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, EncoderDecoderModel, GPT2Config, GPT2LMHeadModel

from groundup.common.errors import InputError
from groundup.inference.generation import Sampling, stream_tokens
from groundup.inference.loading import load_writer, save_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM, GroundupForConditionalGeneration, GroundupModel
from groundup.tokenization.training import train_bpe

SIZES = {"vocab_size": 199, "hidden_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
SIZES |= {"bos_token_id": 0, "eos_token_id": 0, "zero_init": False}
BART_SIDES = {"layers": 2, "attention_heads": 3, "ffn_dim": 64}
PROMPT = [7, 130, 12, 99, 5, 12, 99]


def of_ours():
    return GroundupForConditionalGeneration(GroundupConfig(**SIZES, is_encoder_decoder=True, decoder_start_token_id=0))


def bart():
    sizes = {
        "d_model": 48,
        "max_position_embeddings": 64,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
        "init_std": 0.5,
    }
    sides = {f"{side}_{name}": count for side in ("encoder", "decoder") for name, count in BART_SIDES.items()}
    return BartForConditionalGeneration(BartConfig(vocab_size=199, **sizes, **sides))


def two_in_transformers_frame():
    decoder = GroundupForCausalLM(GroundupConfig(**SIZES, is_decoder=True, add_cross_attention=True))
    model = EncoderDecoderModel(encoder=GroundupModel(GroundupConfig(**SIZES, is_causal=False)), decoder=decoder)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 0
    return model


@pytest.mark.parametrize("make", [of_ours, bart, two_in_transformers_frame])
def test_greedy_ids_are_those_of_generate(make):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that no two logits nearly tie
            parameter.add_(torch.randn_like(parameter) * 0.2)
    prompt = torch.tensor([PROMPT])
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=30, eos_token_id=-1
    )[0, 1:].tolist()
    steady = Sampling(temperature=0, max_new_tokens=30, stop_ids=(-1,))
    assert list(stream_tokens(model, PROMPT, steady)) == expected
    assert len(set(expected)) > 1


def test_a_long_prompt_leaves_the_decoder_its_whole_context():
    torch.manual_seed(0)
    model = of_ours().eval()
    ids = list(range(1, 65))
    assert len(list(stream_tokens(model, ids, Sampling(max_new_tokens=100, stop_ids=(-1,))))) == 64
    with pytest.raises(InputError, match="65 tokens"):
        list(stream_tokens(model, [*ids, 1], Sampling()))


def test_what_writes_is_loaded_by_its_own_kind(tmp_path):
    tokenizer = train_bpe(["once upon a time " * 20], 270)
    models = {"pair": of_ours(), "ours": GroundupForCausalLM(GroundupConfig(**SIZES))}
    models["stock"] = GPT2LMHeadModel(GPT2Config(vocab_size=199, n_embd=48, n_layer=1, n_head=2))
    for name, model in models.items():
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, model, tokenizer)
        assert type(load_writer(tmp_path / name)[0]) is type(model)
    with pytest.raises(InputError, match="does not exist"):
        load_writer(tmp_path / "nowhere")
