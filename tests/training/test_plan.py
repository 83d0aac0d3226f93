"""`groundup plan`: what it says is what pretrain does, and its arithmetic is right."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import groundup
from groundup.cli.main import main
from groundup.common.errors import InputError
from groundup.modeling import GroundupConfig, GroundupForCausalLM, GroundupForSequenceClassification
from groundup.tokenization.training import bytes_a_token
from groundup.training.forecast import HARDWARE, USED_SHARE_OF_GPU, expected_bits_per_byte, forecast_of, plan
from groundup.training.machine import cost_of, sizes_of
from groundup.training.plan import Given, make_plan, suitable_batch
from groundup.training.pretraining import Pretraining
from groundup.training.settings import PlanSettings


def test_the_plan_shown_is_the_plan_that_pretrain_makes():
    shown = forecast_of(PlanSettings(text_bytes=2e6, max_steps=100)).plan
    made = make_plan(Given(), 2e6, None)
    assert shown == made


def test_the_cost_of_a_token_is_that_of_its_multiplications():
    fields = {"hidden_size": 64, "num_hidden_layers": 2}
    parameters, flop = cost_of(fields, 300, 32)
    model = GroundupForCausalLM(GroundupConfig(**fields, vocab_size=300, max_position_embeddings=32))
    assert parameters == model.num_parameters()
    # Weights that are multiplied, not looked up: 2 FLOP forward and 4 backward. Half of the scores and of the mixing.
    assert flop == 6 * (parameters - 300 * 64) + 6 * 2 * 64 * 32


def test_hours_and_dollars_follow_from_compute_speed_and_price():
    few = forecast_of(PlanSettings(text_bytes=1e10, preset="gpt2", tokens=1e9, hardware="h100"))
    many = forecast_of(PlanSettings(text_bytes=1e10, preset="gpt2", tokens=2e9, hardware="h100", cards=4))
    assert many.flop == pytest.approx(2 * few.flop)
    timed = forecast_of(PlanSettings(text_bytes=1e10, preset="gpt2", minutes=60, hardware="h100", cards=2))
    assert timed.flop == pytest.approx(2 * HARDWARE["h100"].peak_flops * USED_SHARE_OF_GPU * 3600)


def test_more_tokens_never_mean_a_smaller_batch_or_model():
    batches = [suitable_batch(10**power) for power in range(4, 13)]
    assert batches == sorted(batches)
    assert batches[2] == 2048
    widths = [
        forecast_of(PlanSettings(text_bytes=1e10, tokens=10.0**power)).plan.model["hidden_size"]
        for power in range(5, 12)
    ]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_the_longer_a_model_trains_the_farther_back_it_sees():
    powers = [6 + number / 3 for number in range(13)]
    plans = [forecast_of(PlanSettings(text_bytes=1e10, tokens=10**power)).plan for power in powers]
    contexts = [chosen.context_length for chosen in plans]
    assert contexts == sorted(contexts)
    assert {128, 256, 512} <= set(contexts)
    given = forecast_of(PlanSettings(text_bytes=1e10, tokens=1e6, context_length=640)).plan
    assert (given.context_length, given.reasons["context"]) == (640, "as given")


def test_a_text_that_is_seen_often_gets_the_vocabulary_nearest_to_its_square_root():
    def vocabulary(text_bytes, epochs, **options):
        tokens = epochs * text_bytes / bytes_a_token(4096)
        return forecast_of(PlanSettings(text_bytes=text_bytes, tokens=tokens, **options)).plan.vocab_size

    assert [vocabulary(4.6e6, epochs) for epochs in (1, 4.9, 5.1, 30)] == [4096, 4096, 2048, 2048]
    assert vocabulary(4.6e6, 30, vocab_size=4096) == 4096
    assert vocabulary(2.2e6, 1) == vocabulary(2.2e6, 30) == 2048  # whose root is 1,483


def test_more_epochs_mean_more_weight_decay_unless_it_is_given():
    def decay(text_bytes, **options):
        return make_plan(Given(batch_tokens=2048, vocab_size=2048, **options), text_bytes, None).weight_decay

    decays = [decay(10.0**power) for power in (4, 5.8, 6.2, 7, 11)]
    assert decays == sorted(decays, reverse=True)
    assert (decays[0], decays[-1]) == (3.0, 0.1)
    # Steps until a weight that nothing renews has shrunk to 1 / e: three tenths of a pass.
    forgotten = 1 / (0.015 * decay(1.4e6))
    assert forgotten * 2048 == pytest.approx(0.3 * 1.4e6 / bytes_a_token(2048), rel=0.01)
    assert decay(1.4e6, learning_rate_scale=2.0) == pytest.approx(decay(1.4e6) / 2, rel=0.01)
    assert decay(1.4e6, weight_decay=0.7) == 0.7
    assert decay(1.4e6, from_scratch=False) == decay(1.4e6, optimizer="adamw") == 0.1


def test_the_score_foretold_is_that_of_the_measured_runs_and_falls_with_compute():
    # FLOP (the tokens of docs/performance.md, each at its cost) and the bits per byte they bought
    measured = {6.63e12: 2.064, 8.74e12: 2.014, 2.85e13: 1.923, 9.52e13: 1.779}
    power, factor = np.polyfit(np.log([*measured]), np.log([*measured.values()]), 1)
    nearest = {flop: np.exp(factor) * flop**power for flop in measured}
    assert {flop: expected_bits_per_byte(flop) for flop in measured} == pytest.approx(nearest, abs=0.003)
    assert nearest == pytest.approx(measured, rel=0.01)
    scores = [forecast_of(PlanSettings(text_bytes=1e8, tokens=10.0**power)).bits_per_byte for power in (6, 7, 8)]
    assert scores == sorted(scores, reverse=True)


def test_every_choice_can_be_overridden():
    chosen = forecast_of(
        PlanSettings(
            text_bytes=1e6, minutes=1, hardware="a100", hidden_size=96, num_hidden_layers=3, context_length=48,
            vocab_size=700, batch_tokens=960, optimizer="adamw",
        )
    ).plan  # fmt: skip
    assert (chosen.model["hidden_size"], chosen.model["num_hidden_layers"]) == (96, 3)
    assert (chosen.context_length, chosen.vocab_size, chosen.batch_tokens, chosen.optimizer) == (48, 700, 960, "adamw")
    assert chosen.reasons["size"] == chosen.reasons["batch"] == "as given"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text_bytes": 1e6, "hardware": "h10"}, "did you mean"),
        ({"text_bytes": 1e6, "minutes": 1, "tokens": 1e6}, "one budget"),
        ({"text_bytes": 1e6, "minutes": -1}, "above 0"),
        ({"minutes": 1}, "needs the training text: give --data"),
        ({"text_bytes": 1e6, "data": ["x"]}, "--data and --text-bytes both give the size of the text"),
        ({"text_bytes": 1e6, "hidden_size": 100, "model_config": {"num_attention_heads": 7}}, "do not fit together"),
    ],
)
def test_what_makes_no_plan_is_said(options, words):
    with pytest.raises(InputError, match=words):
        forecast_of(PlanSettings(**options))


def test_the_verb_prints_both_tables(story, capsys):
    assert main(["plan", "--data", str(story), "--max-steps", "10"]) == 0
    printed = capsys.readouterr().err
    for words in ("vocabulary", "tokens a step", "epochs", "NVIDIA H100", "US dollars"):
        assert words in printed
    assert plan(text_bytes=1e6, max_steps=3).steps == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_config": {"nonsense": 1}}, "GroundupConfig has no 'nonsense'"),
        ({"model_config": {"qk_nrm": True}}, "did you mean 'qk_norm'"),
        ({"model_config": {"num_labels": 3}}, "has no 'num_labels'"),
        ({"model_config": {"vocab_size": 1000}}, "vocab_size: it comes from the tokenizer"),
        ({"model_config": {"eos_token_id": 1}}, "eos_token_id: it comes from the tokenizer"),
        ({"model_config": {"add_cross_attention": True}}, "comes from the kind of model"),
        ({"model_config": {"is_causal": False}}, "is_causal False and --objective contradict each other"),
        (
            {"model_config": {"hidden_size": 64}, "hidden_size": 32},
            "hidden_size 64 and --hidden-size contradict each other",
        ),
        ({"model_config": {"n_layer": 3}, "num_hidden_layers": 2}, "num_hidden_layers 3 and --num-hidden-layers"),
        ({"model_config": {"n_positions": 16}, "context_length": 32}, "is more than --model-config's 16 positions"),
    ],
)
def test_no_field_of_the_architecture_is_taken_and_not_obeyed(options, message):
    with pytest.raises(InputError, match=message):
        make_plan(Given(smoke=True, **options), 1e5, None)


def test_architecture_fields_may_use_gpt2s_names_and_may_repeat_an_option():
    chosen = {"n_embd": 96, "num_hidden_layers": 2, "is_causal": True}
    made = make_plan(Given(hidden_size=96, model_config=chosen, smoke=True), 1e5, None)
    assert made.model == {"hidden_size": 96, "num_hidden_layers": 2, "is_causal": True}


def test_a_longer_row_than_a_presets_makes_the_model_longer():
    made = make_plan(Given(preset="nano", context_length=512), 1e5, None)
    assert made.context_length == 512 and "max_position_embeddings" not in made.model


@pytest.mark.parametrize("verb", ["pretrain", "classify", "instruct"])
def test_a_model_that_the_memory_cannot_hold_is_refused_before_anything_is_made(verb, tmp_path, monkeypatch):
    rows = {
        "pretrain": "a text with words\n" * 200,
        "classify": "text,label\n" + "".join(f"words {i},{'ab'[i % 2]}\n" for i in range(120)),
        "instruct": "".join(f'{{"instruction": "say {i}", "output": "words"}}\n' for i in range(60)),
    }[verb]
    data = tmp_path / {"pretrain": "x.txt", "classify": "x.csv", "instruct": "x.jsonl"}[verb]
    data.write_text(rows)
    monkeypatch.setattr("groundup.training.machine.free_memory", lambda: 10**6)
    with pytest.raises(InputError, match=r"million parameters needs at least .* GB of memory.*--hidden-size"):
        getattr(groundup, verb)(data=[str(data)], out=str(tmp_path / "out"), hidden_size=1024, smoke=True, quiet=True)
    assert not (tmp_path / "out").exists()


def test_the_end_of_the_memory_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("a text with words\n" * 200)
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")

    def out_of_memory(*_):
        raise full

    monkeypatch.setattr(Pretraining, "make_batches", out_of_memory)
    options = {"data": [str(tmp_path / "x.txt")], "out": str(tmp_path / "out"), "smoke": True, "quiet": True}
    with pytest.raises(InputError, match="the memory does not hold"):
        groundup.pretrain(**options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("verb", "options", "named"),
    [
        ("pretrain", {"init_from": "m", "hidden_size": 64}, "--hidden-size is for a new model.*--init-from"),
        ("pretrain", {"init_from": "m", "model_config": {"qk_norm": False}}, "--model-config is for a new model"),
        ("pretrain", {"init_from": "m", "preset": "nano"}, "--preset is for a new model"),
        ("pretrain", {"init_from": "m", "vocab_size": 777}, "--vocab-size is for a new model"),
        ("pretrain", {"tokenizer": "t", "vocab_size": 777}, "--vocab-size is for a new tokenizer"),
        ("classify", {"model": "m", "num_hidden_layers": 2}, "--num-hidden-layers is for a new model.*--model"),
        ("instruct", {"model": "m", "hidden_size": 64}, "--hidden-size is for a new model.*--model"),
        ("instruct", {"model": "m", "model_config": {"qk_norm": False}}, "--model-config is for a new model"),
    ],
)
def test_options_for_a_new_model_are_refused_beside_an_existing_one(verb, options, named, tmp_path):
    with pytest.raises(InputError, match=named):
        getattr(groundup, verb)(data=["x.txt"], out=str(tmp_path / "out"), quiet=True, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_of_a_model_that_there_is_are_those_that_are_multiplied(tied):
    config = GroundupConfig(
        hidden_size=64, num_hidden_layers=2, vocab_size=300, max_position_embeddings=32, tie_word_embeddings=tied
    )
    model = GroundupForCausalLM(config)
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    looked_up = 0 if tied else sum(table.numel() for table in tables)
    assert sizes_of(model) == {
        "from_scratch": False,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "weights": model.num_parameters() - looked_up,
    }
    body = sizes_of(GroundupForSequenceClassification(config))["weights"]
    assert body == model.num_parameters() - 300 * 64 * (1 if tied else 2) + 2 * 64  # and two labels


def test_a_large_model_with_little_time_takes_smaller_steps_and_an_adapter_larger_ones_than_all_weights():
    large = {"from_scratch": False, "hidden_size": 576, "num_hidden_layers": 30, "weights": 135_000_000}

    def batch(seconds, **options):
        given = Given(**large | {"context_length": 256, "vocab_size": 49_152} | options)
        return make_plan(given, 1e6, seconds, flops=1e11).batch_tokens

    assert [batch(60 * minutes) for minutes in (2, 20, 240)] == [256, 512, 2048]
    assert batch(60 * 20, lora=True) == 1024
    assert batch(60 * 2, batch_tokens=2048) == 2048
    small = {"hidden_size": 128, "num_hidden_layers": 3, "weights": 1_700_000}
    assert batch(60 * 10, **small) == suitable_batch(0.55 * 1e11 * 600 / 1e7)


def test_a_model_to_go_on_with_is_planned_by_its_config_alone(tmp_path, capsys):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=300, intermediate_size=128, tie_word_embeddings=True, **sizes)
    config.save_pretrained(tmp_path)
    model = LlamaForCausalLM(config)
    usual = {"init_from": str(tmp_path), "text_bytes": 1e6, "max_steps": 10}
    whole, adapter = (forecast_of(PlanSettings(**usual, lora=lora)) for lora in (False, True))
    held = forecast_of(PlanSettings(**usual, lora=True, base_precision="int8"))
    assert whole.parameters == whole.trained == adapter.parameters == model.num_parameters()
    inside = [
        module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "layers" in name
    ]
    assert adapter.trained == 16 * sum(sum(layer.weight.shape) for layer in inside)
    assert whole.memory > adapter.memory > held.memory
    assert adapter.memory - held.memory == 3 * sum(layer.weight.numel() for layer in inside)
    assert whole.flop / whole.tokens > adapter.flop / adapter.tokens
    assert (
        main(["plan", "--init-from", str(tmp_path), "--text-bytes", "1e6", "--lora", "--base-precision", "int8"]) == 0
    )
    shown = " ".join("".join(capsys.readouterr()).split())
    assert "in int8" in shown and "bits per byte" not in shown


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lora": True}, "--lora adapts an existing model: give --init-from"),
        ({"init_from": "m", "hidden_size": 64}, "--hidden-size is for a new model: leave it out, or --init-from"),
        ({"init_from": "m", "base_precision": "int8"}, "--base-precision is an option of LoRA: add --lora"),
        (
            {"init_from": "m", "lora": True, "lora_dora": True, "base_precision": "int8"},
            "--lora-dora needs the base as",
        ),
        ({"init_from": "./nothing"}, "does not exist: give the folder of a model"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(options, named):
    with pytest.raises(InputError, match=named):
        forecast_of(PlanSettings(text_bytes=1e6, **options))
