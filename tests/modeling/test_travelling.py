"""A saved checkpoint is at home anywhere: with this package and without it, in pipelines, grown, and with adapters."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, pipeline

from groundup.modeling import GroundupConfig, GroundupForCausalLM, GroundupForMaskedLM
from groundup.modeling.export import make_twin

# One checkpoint each: the Auto class that reads it, the kind of network and its knobs.
HEADS = {
    "AutoModelForCausalLM": ("modern", {}),
    "AutoModelForMaskedLM": ("encoder", {}),
    "AutoModelForSequenceClassification": ("gpt2", {"pad_token_id": 0}),
    "AutoModelForTokenClassification": ("encoder", {}),
    "AutoModelForQuestionAnswering": ("modern", {}),
    "AutoModelForSeq2SeqLM": ("modern", {"is_encoder_decoder": True, "decoder_start_token_id": 1}),
    "AutoModel": ("sliding", {}),
}
CODE = {"configuration_groundup.py", "generation_groundup.py", "modeling_groundup.py"}

# What a reader with nothing but torch and transformers does; AutoModel last, since other heads must not need it.
CLEAN_PROCESS = """
import sys, json
sys.modules["groundup"] = None
import torch, transformers
folder, *heads = sys.argv[1:]
ids, found = torch.arange(1, 41)[None], {}
for head in heads:
    assert type(transformers.AutoConfig.from_pretrained(f"{folder}/{head}", trust_remote_code=True)).__module__ != "x"
    model = getattr(transformers, head).from_pretrained(f"{folder}/{head}", trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    named = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found[head] = model(ids, **named)[0].flatten()[:5].tolist()
    if head == "AutoModelForCausalLM":
        base = transformers.AutoModel.from_pretrained(f"{folder}/{head}", trust_remote_code=True)
        assert torch.equal(base(ids)[0], model.model(ids)[0])
        write = transformers.pipeline("text-generation", f"{folder}/{head}", trust_remote_code=True)
        assert write("w4 w5", max_new_tokens=3)[0]["generated_text"].startswith("w4 w5")
print(json.dumps(found))
"""


def first_numbers(model):
    ids = torch.arange(1, 41)[None]
    with torch.no_grad():
        output = model(ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}))
    return output[0].flatten()[:5]


@pytest.fixture
def model_of(build):
    def model_of(head):
        kind, knobs = HEADS[head]
        return build(kind, getattr(transformers, head)._model_mapping[GroundupConfig], **knobs)

    return model_of


def read_by_a_clean_process(folder, home, *heads):
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLEAN_PROCESS, folder, *heads],
        capture_output=True, text=True, env={"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def save_all(model_of, tokenizer, folder, heads=HEADS):
    """Save a checkpoint of each head, load it with this package and save it again: the code must travel on."""
    numbers = {}
    for head in heads:
        model = model_of(head)
        model.save_pretrained(folder / "first" / head)
        again = getattr(transformers, head).from_pretrained(folder / "first" / head).eval()
        assert type(again) is type(model)
        again.save_pretrained(folder / "again" / head)
        tokenizer.save_pretrained(folder / "again" / head)
        numbers[head] = first_numbers(model)
        assert torch.equal(first_numbers(again), numbers[head])
        assert {path.name for path in (folder / "again" / head).glob("*.py")} == CODE
    return numbers


def test_every_head_is_read_with_this_package_and_without_it(model_of, tokenizer, tmp_path):
    numbers = save_all(model_of, tokenizer, tmp_path)
    found = read_by_a_clean_process(tmp_path / "again", tmp_path / "home", *HEADS)
    for head in HEADS:
        torch.testing.assert_close(torch.tensor(found[head]), numbers[head], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_the_first_thing_that_a_clean_process_may_read(head, model_of, tokenizer, tmp_path):
    numbers = save_all(model_of, tokenizer, tmp_path, [head])
    found = read_by_a_clean_process(tmp_path / "again", tmp_path / "home", head)
    torch.testing.assert_close(torch.tensor(found[head]), numbers[head], rtol=1e-4, atol=1e-4)


def test_code_from_a_checkpoint_is_not_run_unasked(build, tmp_path):
    build().save_pretrained(tmp_path)
    code = (
        "import sys; sys.modules['groundup'] = None; from transformers import AutoModelForCausalLM;"
        f"AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, trust_remote_code=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode
    assert "trust_remote_code=True" in done.stderr.splitlines()[-1]


def test_a_saved_config_names_every_head_that_the_checkpoint_can_be_read_as(model_of, tmp_path):
    for head, names in {
        "AutoModelForCausalLM": {"AutoConfig", *HEADS} - {"AutoModelForSeq2SeqLM", "AutoModelForMaskedLM"},
        "AutoModelForMaskedLM": {"AutoConfig", *HEADS} - {"AutoModelForSeq2SeqLM", "AutoModelForCausalLM"},
        "AutoModelForSeq2SeqLM": {"AutoConfig", "AutoModelForSeq2SeqLM"},
    }.items():
        model_of(head).save_pretrained(tmp_path / head)
        classes = AutoConfig.from_pretrained(tmp_path / head).auto_map
        assert set(classes) == names
        assert all((tmp_path / head / f"{place.split('.')[0]}.py").is_file() for place in classes.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["modern", "encoder"])
def test_weights_survive_saving_in_pieces_loading_and_a_larger_vocabulary(kind, tied, build, tmp_path, ids):
    model_class = GroundupForMaskedLM if kind == "encoder" else GroundupForCausalLM
    model = build(kind, model_class, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
        again.resize_token_embeddings(210)
        assert torch.equal(again(ids).logits[..., :199], model(ids).logits)
    assert again.config.vocab_size == 210
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_trains_travels_and_merges_and_a_tie_holds(tied, dora, build, perturb, tmp_path, ids):
    build(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=dora)
    model = get_peft_model(GroundupForCausalLM.from_pretrained(tmp_path / "base"), config)
    assert not any("lm_head" in name or "embed" in name for name in model.targeted_module_names)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        wanted = model.eval()(ids).logits
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(GroundupForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    merged = GroundupForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, wanted)
        torch.testing.assert_close(merged(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied


def test_an_adapter_on_an_untied_head_merges_and_on_a_tied_one_peft_warns(build, ids):
    # On a tied head it would be merged into the embedding too, and every token would be read as another.
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(build(), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        wanted = model(ids).logits
        torch.testing.assert_close(model.merge_and_unload()(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        get_peft_model(build(tie_word_embeddings=True), config)


def test_pipelines_write_classify_and_fill_in(model_of, tokenizer, tmp_path):
    for head in ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"):
        model = model_of(head)
        model.config.id2label = {0: "dull", 1: "merry"}
        model.save_pretrained(tmp_path / head)
        tokenizer.save_pretrained(tmp_path / head)
    write = pipeline("text-generation", str(tmp_path / "AutoModelForCausalLM"))
    texts = write(["w4 w5 w6", "w7"], max_new_tokens=4, do_sample=False, batch_size=2)
    alone = write("w7", max_new_tokens=4, do_sample=False)
    assert texts[1][0]["generated_text"] == alone[0]["generated_text"]
    answer = write([{"role": "user", "content": "w8 w9"}], max_new_tokens=4, do_sample=False)
    assert answer[0]["generated_text"][-1]["role"] == "assistant"
    classify = pipeline("text-classification", str(tmp_path / "AutoModelForSequenceClassification"))
    (label,) = classify("w4 w5")
    assert label["label"] in ("dull", "merry")
    assert 0.5 <= label["score"] <= 1
    fill = pipeline("fill-mask", str(tmp_path / "AutoModelForMaskedLM"))
    assert len(fill("w4 <mask> w6", top_k=3)) == 3


@pytest.mark.parametrize("kind", ["modern", "gpt2"])
def test_a_pipeline_asked_for_more_than_the_context_writes_on_or_ends_there(kind, build, tokenizer, tmp_path):
    # Unasked it writes 256 tokens: models that were trained for minutes have contexts shorter than that.
    model = build(kind)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write = pipeline("text-generation", str(tmp_path))
    assert write("w4 w5 w6")
    text = write("w4 w5 w6", do_sample=False)[0]["generated_text"]
    ids = tokenizer(text)["input_ids"]
    if kind == "gpt2":
        assert len(ids) <= 65
    else:
        twin = pipeline("text-generation", make_twin(model, "qwen3"), tokenizer=tokenizer)
        assert text == twin("w4 w5 w6", do_sample=False)[0]["generated_text"] and len(ids) > 200


@pytest.mark.slow
def test_trl_tunes_on_conversations_and_on_preferences(build, tokenizer, tmp_path):
    import datasets  # slow to import, and no other test here needs them
    import trl

    said = [{"role": "user", "content": "w6 w7"}]
    good, bad = ([{"role": "assistant", "content": words}] for words in ("w8 w9", "w10"))
    common = {
        "output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True,
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "bf16": False, "learning_rate": 1e-2,
    }  # fmt: skip
    talks = datasets.Dataset.from_list([{"messages": [*said, *good]}] * 4)
    pairs = datasets.Dataset.from_list([{"prompt": said, "chosen": good, "rejected": bad}] * 4)
    for packing in (False, True):
        arguments = trl.SFTConfig(**common, assistant_only_loss=True, packing=packing, max_length=32)
        trainer = trl.SFTTrainer(build(), args=arguments, train_dataset=talks, processing_class=tokenizer)
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        assert losses[1] < losses[0]
    build().save_pretrained(tmp_path / "saved")  # from there it loads the model that it compares with
    model, arguments = GroundupForCausalLM.from_pretrained(tmp_path / "saved"), trl.DPOConfig(**common, max_length=32)
    trainer = trl.DPOTrainer(model, args=arguments, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # ln 2: model and reference still agree
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_lm_eval_sees_the_likelihoods_that_the_model_gives(build, tokenizer):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = build()
    harness = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=2, device="cpu")
    requests = [("w6 w7", " w8 w9"), ("w10", " w11")]
    found = harness.loglikelihood(
        [Instance("loglikelihood", {}, request, number) for number, request in enumerate(requests)]
    )
    for (context, continuation), (value, _) in zip(requests, found):
        ids = tokenizer(context + continuation, return_tensors="pt").input_ids
        start = len(tokenizer(context).input_ids)
        with torch.no_grad():
            scores = model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
        assert value == pytest.approx(scores.gather(1, ids[0, start:, None]).sum().item(), rel=1e-4)
