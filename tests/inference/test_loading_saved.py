"""What a save leaves beside the weights: a tokenizer that knows how long a text the model takes, and which inputs."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from groundup.inference.loading import save_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.tokenization.folder import load_tokenizer, without_length
from groundup.tokenization.training import train_bpe

CONTEXT, NO_LIMIT = 24, int(1e30)
SIZES = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}


def ours(**changes):
    return GroundupForCausalLM(GroundupConfig(**SIZES, max_position_embeddings=CONTEXT, **changes))


def adapter(tmp_path):
    ours().save_pretrained(tmp_path / "base")
    base = GroundupForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    return adapted


MODELS = {
    "ours": lambda _: ours(),
    "gpt2": lambda _: GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=CONTEXT)),
    "adapter": adapter,
    "no positions": lambda _: T5ForConditionalGeneration(
        T5Config(vocab_size=300, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ),
}


@pytest.mark.parametrize("own", [None, 10, 100])
@pytest.mark.parametrize("kind", MODELS)
def test_truncation_cuts_at_the_models_context_or_at_the_tokenizers_smaller_one(kind, own, tmp_path):
    tokenizer = train_bpe(["the river ran to the sea " * 9], 300)
    if own is not None:
        tokenizer.model_max_length = own
    save_model(tmp_path / "saved", MODELS[kind](tmp_path), tokenizer)
    limit = min(own or NO_LIMIT, NO_LIMIT if kind == "no positions" else CONTEXT)
    saved = load_tokenizer(tmp_path / "saved")
    assert saved.model_max_length == limit
    assert len(saved("a river " * 99, truncation=True)["input_ids"]) == min(
        limit, len(saved("a river " * 99).input_ids)
    )
    assert without_length(saved).model_max_length == NO_LIMIT
    # transformers 4 takes the list from here, and has `token_type_ids` in its own.
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]


def test_a_model_that_takes_token_types_gets_them_again(tmp_path):
    tokenizer = train_bpe(["the river ran to the sea " * 9], 300)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    save_model(tmp_path, BertForMaskedLM(BertConfig(vocab_size=300, **sizes)), tokenizer)
    assert "token_type_ids" in load_tokenizer(tmp_path)("a river")
