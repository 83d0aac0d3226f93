"""An adapter alone, read by peft and transformers in a clean process, and folded into its base by `merge`."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

import groundup as package
from groundup.common.errors import InputError
from groundup.inference.loading import load_adapter, load_model, load_network, load_writer, save_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM, GroundupForSequenceClassification
from groundup.publishing.proof import prove
from groundup.tokenization.folder import save_tokenizer
from groundup.tokenization.training import train_bpe
from groundup.training.checkpoint import load_weights
from groundup.training.lora import add_lora
from groundup.training.settings import LoraOptions

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 64}
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the cat saw a dog here, and a dog saw the cat."] * 20, 280)


@pytest.fixture(scope="module")
def bases(tokenizer, tmp_path_factory):
    """Save causal models: ours, tied and untied, stock ones with fused and with separate matrices, and one that names
    no context."""
    size, ends = len(tokenizer), {"bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    models = {
        "untied": GroundupForCausalLM(GroundupConfig(vocab_size=size, zero_init=False, **SIZES)),
        "tied": GroundupForCausalLM(
            GroundupConfig(vocab_size=size, zero_init=False, tie_word_embeddings=True, **SIZES)
        ),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=2, n_head=2, **ends)),
        "llama": LlamaForCausalLM(
            LlamaConfig(vocab_size=size, intermediate_size=16, num_attention_heads=2, **SIZES | ends)
        ),
        "bloom": BloomForCausalLM(BloomConfig(vocab_size=size, hidden_size=16, n_layer=2, n_head=2, **ends)),
    }
    folder = tmp_path_factory.mktemp("bases")
    for name, model in models.items():
        save_model(folder / name, model, tokenizer)
    return folder


def far_from_zero(adapted):
    """Set weights as after much training: every part of the adapter has an effect on the logits."""
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapted.eval()


def logits(model, **inputs):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(20)[None] * 7 % 280, **inputs).logits


def saved_adapter(base, folder, tokenizer, tokens=(), **options):
    model, _ = load_model(base)
    adapted = far_from_zero(add_lora(model, LoraOptions(lora_rank=4, **options), trained_tokens=tokens))
    folder.mkdir()
    save_model(folder, adapted, tokenizer)
    return folder, logits(adapted)


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("untied", {}),
        ("untied", {"lora_rslora": True, "lora_dora": True}),
        ("untied", {"tokens": [3, 5]}),
        ("tied", {}),
        ("tied", {"tokens": [3, 5]}),
        ("tied", {"lora_targets": ["lm_head", "q_proj"]}),
        ("tied", {"lora_targets": ["embed_tokens", "q_proj"]}),
        ("gpt2", {}),
        ("gpt2", {"lora_dora": True}),
        ("gpt2", {"lora_targets": ["wte", "c_attn"]}),
        ("llama", {}),
        ("bloom", {}),
    ],
)
def test_the_merged_model_and_every_loader_give_the_adapters_logits(base, options, bases, tokenizer, tmp_path):
    adapter, wanted = saved_adapter(bases / base, tmp_path / "adapter", tokenizer, **options)
    assert (logits(AutoModelForCausalLM.from_pretrained(bases / base)) - wanted).abs().max() > 0.01
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(adapter)), wanted, rtol=0, atol=0)
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases / base), adapter)
    torch.testing.assert_close(logits(beside), wanted, rtol=0, atol=0)
    for load in (load_model, load_writer):
        torch.testing.assert_close(logits(load(adapter)[0]), wanted, rtol=0, atol=ROUNDING)
    merged = package.merge(adapter=str(adapter), out=str(tmp_path / "merged"), quiet=True)
    model = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=ROUNDING)
    was_tied = base in ("tied", "gpt2", "bloom")
    assert model.config.tie_word_embeddings is (was_tied and "lora_targets" not in options)
    assert AutoTokenizer.from_pretrained(merged).get_vocab() == tokenizer.get_vocab()


def test_merging_by_peft_alone_would_break_a_tied_head(bases, tokenizer, tmp_path):
    """Why `fold` unties first; when this fails, peft has learned it and `fold` can go."""
    adapter, wanted = saved_adapter(bases / "tied", tmp_path / "adapter", tokenizer, lora_targets=["lm_head"])
    merged = AutoPeftModelForCausalLM.from_pretrained(adapter).merge_and_unload()
    assert (logits(merged) - wanted).abs().max() > 0.01


def test_a_classifiers_adapter_has_head_labels_and_pooling_and_so_has_the_merged_model(bases, tokenizer, tmp_path):
    labels = {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}}
    model = AutoModelForSequenceClassification.from_pretrained(
        bases / "untied", **labels, classifier_pooling="mean", pad_token_id=tokenizer.pad_token_id
    )
    adapted = far_from_zero(add_lora(model, LoraOptions(lora_rank=4)))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_model(adapter, adapted, tokenizer)
    wanted = logits(adapted)
    told = json.loads((adapter / "config_overrides.json").read_text())
    assert set(told) == {"id2label", "label2id", "classifier_pooling", "pad_token_id"}
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(adapter, **told)
    torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=0)
    merged = package.merge(adapter=str(adapter), out=str(tmp_path / "merged"), quiet=True)
    classifier = AutoModelForSequenceClassification.from_pretrained(merged)
    assert isinstance(classifier, GroundupForSequenceClassification)
    torch.testing.assert_close(logits(classifier), wanted, rtol=0, atol=ROUNDING)
    assert classifier.config.id2label == labels["id2label"]
    with pytest.raises(InputError, match="SEQ_CLS"):
        load_model(adapter)


@pytest.fixture(params=["bert", "roberta", "deberta"])
def encoder(request, tokenizer, tmp_path):
    """Return the folder of an encoder that has learned masked tokens, and the layers a classifier of it has anew."""
    sizes = SIZES | {"vocab_size": len(tokenizer), "num_attention_heads": 2, "intermediate_size": 16}
    model_class, config, new = {
        "bert": (BertForMaskedLM, BertConfig(**sizes), {"bert.pooler", "classifier"}),
        "roberta": (RobertaForMaskedLM, RobertaConfig(**sizes | {"max_position_embeddings": 66}), {"classifier"}),
        "deberta": (DebertaV2ForMaskedLM, DebertaV2Config(**sizes), {"pooler", "classifier"}),
    }[request.param]
    torch.manual_seed(0)
    model_class(config).save_pretrained(tmp_path / "encoder")
    save_tokenizer(tokenizer, tmp_path / "encoder")
    return tmp_path / "encoder", new


def test_layers_that_the_base_had_no_weights_for_are_trained_and_travel_with_the_adapter(encoder, tokenizer, tmp_path):
    base, new = encoder
    model = load_network(base, AutoModelForSequenceClassification, new_head=True, num_labels=3)
    adapted = add_lora(model, LoraOptions(lora_rank=4))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    in_full = {name.removeprefix("base_model.model.").partition(".modules_to_save.")[0] for name in trained}
    assert {name for name in in_full if ".lora_" not in name} == new
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_model(adapter, far_from_zero(adapted), tokenizer)
    wanted = logits(adapted)
    merged = package.merge(adapter=str(adapter), out=str(tmp_path / "merged"), quiet=True)
    for seed in (1, 2):
        torch.manual_seed(seed)  # of whatever a loader draws itself
        theirs = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=3)
        torch.testing.assert_close(logits(theirs), wanted, rtol=0, atol=0)
        torch.testing.assert_close(logits(load_adapter(adapter)), wanted, rtol=0, atol=0)
        ours = AutoModelForSequenceClassification.from_pretrained(merged)
        torch.testing.assert_close(logits(ours), wanted, rtol=0, atol=ROUNDING)


def test_an_adapter_without_a_layer_that_its_base_lacks_is_refused(encoder, tokenizer, tmp_path):
    base, new = encoder
    model = AutoModelForSequenceClassification.from_pretrained(base)  # as peft alone would be given it
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_model(adapter, add_lora(model, LoraOptions(lora_rank=4)), tokenizer)
    if new == {"classifier"}:  # which peft saves unasked
        load_adapter(adapter)
    else:
        with pytest.raises(InputError, match=r"neither the adapter .* nor its base .* has weights for .*pooler: give"):
            load_adapter(adapter)


def test_an_adapters_folder_has_no_weights_of_the_base_and_the_same_bytes_each_time(bases, tokenizer, tmp_path):
    for name in ("once", "again"):
        saved_adapter(bases / "tied", tmp_path / name, tokenizer)
    names = {path.name for path in (tmp_path / "once").iterdir()}
    assert names == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    settings = json.loads((tmp_path / "once" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(bases / "tied")
    assert settings["target_modules"] == sorted(settings["target_modules"])


def test_weights_come_back_as_they_were_saved(bases, tokenizer, tmp_path):
    adapter, wanted = saved_adapter(bases / "untied", tmp_path / "adapter", tokenizer, tokens=[3], lora_dora=True)
    model, _ = load_model(bases / "untied")
    adapted = add_lora(model, LoraOptions(lora_rank=4, lora_dora=True), trained_tokens=[3])
    load_weights(adapter, adapted)
    torch.testing.assert_close(logits(adapted), wanted, rtol=0, atol=0)


def test_tokens_that_the_base_did_not_have_travel_with_the_adapter(bases, tmp_path):
    model, tokenizer = load_model(bases / "tied")
    known = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    model.resize_token_embeddings(len(tokenizer))
    adapted = far_from_zero(add_lora(model, LoraOptions(lora_rank=4), trained_tokens=[known]))
    (tmp_path / "adapter").mkdir()
    save_model(tmp_path / "adapter", adapted, tokenizer)
    merged = package.merge(adapter=str(tmp_path / "adapter"), out=str(tmp_path / "merged"), quiet=True)
    for other in (AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"), load_model(merged)[0]):
        torch.testing.assert_close(logits(other), logits(adapted), rtol=0, atol=ROUNDING)


def test_what_is_wrong_with_an_adapter_is_said_in_one_line(bases, tokenizer, tmp_path):
    adapter, _ = saved_adapter(bases / "untied", tmp_path / "adapter", tokenizer)
    settings = json.loads((adapter / "adapter_config.json").read_text())

    def said(**changes):
        (adapter / "adapter_config.json").write_text(json.dumps(settings | changes))
        with pytest.raises(InputError) as error:
            load_adapter(adapter)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "nowhere does not exist" in said(base_model_name_or_path=str(tmp_path / "nowhere"))
    assert "names no base" in said(base_model_name_or_path=None)
    assert "does not fit its base" in said(r=8)
    assert "FEATURE_EXTRACTION" in said(task_type="FEATURE_EXTRACTION")
    with pytest.raises(InputError, match="it has no adapter_config"):
        load_adapter(bases / "untied")
    with pytest.raises(InputError, match="there is no such folder"):
        load_adapter("nope")
    with pytest.raises(InputError, match="needs an adapter"):
        package.merge()


def test_an_adapter_that_lacks_a_tensor_is_refused_by_those_that_load_and_those_that_publish_it(
    bases, tokenizer, tmp_path, recwarn
):
    adapter, _ = saved_adapter(bases / "untied", tmp_path / "adapter", tokenizer)
    weights = load_file(adapter / "adapter_model.safetensors")
    lost = next(name for name in weights if name.endswith("lora_B.weight"))
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match="missing adapter keys"):
        load_adapter(adapter)
    with pytest.raises(InputError, match="missing adapter keys"):
        prove(adapter, "The", base=bases / "untied")
    assert not [one for one in recwarn if "adapter keys" in str(one.message)]


def test_an_adapter_on_an_adapter_is_refused_until_it_is_merged(bases, tokenizer, tmp_path):
    adapter, _ = saved_adapter(bases / "untied", tmp_path / "adapter", tokenizer)
    with pytest.raises(InputError, match="groundup merge"):
        add_lora(load_model(adapter)[0], LoraOptions())
