"""The verb from outside, on rows that a tiny model learns in seconds: which of two words stands in the text."""

import csv
import json
import signal

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    pipeline,
)

import groundup as package
from groundup.common.errors import InputError, Interrupted
from groundup.common.settings import Deadline, read_yaml
from groundup.data.encoding import for_classifying
from groundup.evaluation.classification import MAJORITY, SVM
from groundup.tokenization.folder import save_tokenizer
from groundup.tokenization.training import train_bpe
from groundup.training import classification, classification_preparation, classifier
from groundup.training.checkpoint import RunFolder
from groundup.training.classification_preparation import prepare_classification
from groundup.training.classifier import ClassificationRun
from groundup.training.lora import freeze
from groundup.training.objectives import LabelLoss
from groundup.training.settings import ClassifySettings

TINY = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "adapt_epochs": 1.0, "quiet": True}


def texts_of(count, seed=0):
    chance = np.random.default_rng(seed)
    words = ["cat", "dog", "house", "river", "stone", "bread", "apple", "window", "road", "light"]
    for number in range(count):
        label = "pos" if chance.random() < 0.4 else "neg"
        body = [*chance.choice(words, 4), "good" if label == "pos" else "bad"]
        chance.shuffle(body)
        yield {"text": f"{number + 1000 * seed} {' '.join(body)}", "label": label}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_rows):
    folder = tmp_path_factory.mktemp("classify")
    write_rows(folder / "rows.jsonl", texts_of(400))
    # Two texts of the test stand in training too; a label occurs that training has not.
    train = list(texts_of(400))
    test = [*texts_of(60, seed=1), train[0], train[1], {"text": "what", "label": "other"}]
    write_rows(folder / "test.jsonl", test)
    return folder


@pytest.fixture(scope="module")
def base(folder):
    """Return a language model of ours, hardly trained."""
    return package.pretrain(
        data=[str(folder / "rows.jsonl")], max_steps=2, vocab_size=300, hidden_size=32, num_hidden_layers=1,
        context_length=32, out=str(folder / "base"), quiet=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(folder):
    package.classify(
        data=[str(folder / "rows.jsonl")],
        eval_data=[str(folder / "test.jsonl")],
        out=str(folder / "out"),
        epochs=12,
        learning_rate_scale=3.0,
        **TINY,
    )
    return folder / "out"


def test_a_new_model_learns_and_is_compared_with_both_baselines(made, scores_of):
    values = scores_of(made)
    assert values["accuracy", "validation", None]["value"] > 0.95
    assert values["accuracy", "test", None]["value"] > 0.9
    for name in ("accuracy", "f1_macro", "mcc", "f1"):
        for baseline in (MAJORITY, SVM):
            assert values[name, "test", baseline]["count"] == 63


def test_a_second_test_score_leaves_out_the_rows_seen_in_training(made, scores_of):
    values = scores_of(made)
    train = read_yaml(made / "recipe.yaml")["rows"]["train"]
    without = values["accuracy", "test without overlap", None]["count"]
    assert 61 <= without <= 62  # one of the two may have been kept for selection
    assert train < 400


def test_the_latest_step_within_one_standard_error_of_the_best_is_kept(made, scores_of):
    rows = [json.loads(line) for line in (made / "log.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "selection" in row]
    measured = {row["step"]: row["selection"] for row in validated}
    training = json.loads((made / "metrics.json").read_text())["training"]
    best = max(measured.values())
    near = [row["step"] for row in validated if best - row["selection"] < row["selection_error"]]
    assert training["best_step"] == near[-1]
    assert training["selection"] > measured[training["best_step"]]  # with the linear part
    model = AutoModelForSequenceClassification.from_pretrained(made)
    accuracy = scores_of(made)["accuracy", "validation", None]["value"]
    logged = next(row for row in rows if row["step"] == training["best_step"] and "selection" in row)
    assert accuracy == pytest.approx(logged["validation_accuracy"], abs=1e-6)
    assert model.config.id2label == {0: "neg", 1: "pos"}


def test_the_checkpoint_labels_in_a_pipeline_as_it_does_by_predict(made, tmp_path):
    texts = ["9 cat good road light dog", "8 bad bread stone", "x <|endoftext|> good"]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    out = package.classify(model=str(made), predict=str(tmp_path / "texts.txt"), out=str(tmp_path / "out"), quiet=True)
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows[:2]] == ["pos", "neg"]
    for row, scores in zip(rows, pipeline("text-classification", model=str(made))(texts, top_k=None)):
        assert row["text"] in texts
        for score in scores:
            assert float(row[score["label"]]) == pytest.approx(score["score"], abs=1e-4)


def test_texts_of_which_the_model_is_unsure_are_left_out_and_counted(made, folder, tmp_path, capsys):
    ask = {"model": str(made), "predict": str(folder / "test.jsonl"), "quiet": True}
    whole = list(csv.DictReader((package.classify(out=str(tmp_path / "all"), **ask) / "predictions.csv").open()))
    level = sorted(float(row["probability"]) for row in whole)[len(whole) // 2]
    out = package.classify(out=str(tmp_path / "sure"), threshold=level, **ask | {"quiet": False})
    kept = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row for row in whole if row in kept] == kept and 0 < len(kept) < len(whole)
    for row in whole:  # whose probabilities are rounded
        assert abs(float(row["probability"]) - level) < 1e-4 or (row in kept) == (float(row["probability"]) > level)
    assert f"{len(whole) - len(kept)} of {len(whole)} texts have no label of probability" in capsys.readouterr().err
    with pytest.raises(InputError, match="--threshold chooses among the texts of --predict"):
        package.classify(data=[str(folder / "rows.jsonl")], threshold=0.5, out=str(tmp_path / "no"))


def test_the_linear_part_goes_with_the_model_is_left_out_on_request_and_made_anew(made, folder, tmp_path):
    config = json.loads((made / "config.json").read_text())
    assert config["classifier_bag_buckets"] == classifier.BAG_BUCKETS
    load = AutoModelForSequenceClassification.from_pretrained
    asked = {"data": [str(folder / "rows.jsonl")], "max_steps": 2, "quiet": True}
    again = load(package.classify(model=str(made), out=str(tmp_path / "again"), **asked))
    before = load(made)
    assert again.bag.weight.any() and not torch.equal(again.bag.weight, before.bag.weight)
    alone = load(package.classify(model=str(made), bag=False, out=str(tmp_path / "alone"), **asked))
    assert alone.bag is None and alone.config.classifier_bag_buckets == 0


def test_empty_texts_are_labelled_in_their_places_and_counted(made, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("cat\n\n  \nbad\n", encoding="utf-8")
    out = package.classify(model=str(made), predict=str(tmp_path / "texts.txt"), out=str(tmp_path / "out"))
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file)] == ["cat", "", "  ", "bad"]
    assert "2 of 4 texts are empty" in capsys.readouterr().err


def test_one_text_is_labelled_in_the_terminal_and_leaves_no_folder(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert package.classify(model=str(made), predict="9 cat good road") == made
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[1] == "pos" and second.split()[1] == "neg" and not list(tmp_path.iterdir())


def test_pictures_mistakes_and_recipe_lie_beside_the_weights(made):
    assert (made / "confusion.png").read_bytes().startswith(b"\x89PNG")
    mistakes = [json.loads(line) for line in (made / "mistakes.jsonl").read_text().splitlines()]
    assert {"text": "what", "label": "other"}.items() <= next(m for m in mistakes if m["text"] == "what").items()
    recipe = read_yaml(made / "recipe.yaml")
    assert recipe["settings"]["data"] == ["rows.jsonl"]
    assert recipe["plan"]["labels"] == ["neg", "pos"]
    assert not (made / "work").exists()


def test_the_same_command_gives_the_same_weights_and_a_finished_run_is_left_alone(folder, tmp_path):
    options = {"data": [str(folder / "rows.jsonl")], "max_steps": 12, **TINY}
    first = package.classify(out=str(tmp_path / "a"), **options)
    second = package.classify(out=str(tmp_path / "b"), **options)
    weights = (first / "model.safetensors").read_bytes()
    assert weights == (second / "model.safetensors").read_bytes()
    package.classify(out=str(tmp_path / "a"), resume=True, **options)
    assert weights == (first / "model.safetensors").read_bytes()


def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(folder, base, tmp_path, cut_off):
    options = {"data": [str(folder / "rows.jsonl")], "model": str(base), "max_steps": 9, "save_every": 3, "quiet": True}
    whole = package.classify(out=str(tmp_path / "whole"), **options)
    with cut_off(6):
        package.classify(out=str(tmp_path / "cut"), **options)
    cut = package.classify(out=str(tmp_path / "cut"), resume=True, **options)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_ctrl_c_during_adaptation_stops_the_whole_run_and_resuming_gives_the_same_weights(
    folder, tmp_path, before_each_step
):
    options = {"data": [str(folder / "rows.jsonl")], "max_steps": 3, **TINY}
    whole = package.classify(out=str(tmp_path / "whole"), **options)
    done = []

    def interrupting(loop):
        done.append(loop.position.step)
        signal.raise_signal(signal.SIGINT)

    with before_each_step(interrupting), pytest.raises(Interrupted, match="resume with --resume"):
        package.classify(out=str(tmp_path / "cut"), **options)
    assert done == [0]
    assert not list((tmp_path / "cut" / "checkpoints").glob("step-*"))  # not yet at the labels
    cut = package.classify(out=str(tmp_path / "cut"), resume=True, **options)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_test_file_is_looked_for_before_and_read_after_training(folder, tmp_path):
    with pytest.raises(InputError, match=r"no file or folder .*missing.csv"):
        package.classify(
            data=[str(folder / "rows.jsonl")], eval_data=["missing.csv"], out=str(tmp_path / "x"), max_steps=2, **TINY
        )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"id": "1", "text": "win"}], "has no column 'label', it has id, text: .* --predict"),
        ([{"text": "win", "label": ""}], "has a label: test rows need labels"),
        ([{"text": "win", "label": "else"}], "no label of .* is one of --data: else there, neg, pos here"),
    ],
)
def test_rows_that_nothing_can_be_measured_on_are_refused_before_training(
    folder, tmp_path, monkeypatch, rows, says, write_rows
):
    monkeypatch.setattr(classification, "adapt", lambda *_: pytest.fail("trained"))
    write_rows(tmp_path / "test.jsonl", rows)
    given = {"data": [str(folder / "rows.jsonl")], "eval_data": [str(tmp_path / "test.jsonl")], **TINY}
    with pytest.raises(InputError, match=says):
        package.classify(**given, out=str(tmp_path / "out"), max_steps=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_goes_on_labels_what_the_first_command_asked_for(folder, tmp_path, monkeypatch, seeds):
    (tmp_path / "new.txt").write_text("one\ntwo\n", encoding="utf-8")
    given = {"data": [str(folder / "rows.jsonl")], "predict": str(tmp_path / "new.txt"), "out": str(tmp_path / "out")}
    with monkeypatch.context() as stopped:
        stopped.setattr(classification, "adapt", lambda *_: (_ for _ in ()).throw(Interrupted("stopped")))
        with pytest.raises(Interrupted, match="stopped"):
            package.classify(**given, max_steps=2, seeds=seeds, **TINY)
    out = package.classify(out=given["out"], resume=True, quiet=True)
    assert len((out / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_texts_to_label_that_are_gone_in_the_end_take_nothing_from_the_model(folder, tmp_path, monkeypatch, capsys):
    texts = tmp_path / "new.txt"
    texts.write_text("one\n", encoding="utf-8")
    real = classifier.ClassificationRun.score
    monkeypatch.setattr(
        classifier.ClassificationRun, "score", lambda run: (texts.unlink(missing_ok=True), real(run))[1]
    )
    out = package.classify(
        data=[str(folder / "rows.jsonl")], predict=str(texts), out=str(tmp_path / "out"), max_steps=2,
        **TINY | {"quiet": False},
    )  # fmt: skip
    assert (out / "model.safetensors").is_file() and not (out / "predictions.csv").exists()
    assert "no predictions.csv: no file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": True}, "give --model"),
        ({"test_share": 1.5}, "test_share 1.5: a number of at least 0 and below 1 is wanted"),
        ({"adapt_minutes": 1.0}, "give one of them"),
        ({"adapt_minutes": 0.0, "adapt_epochs": None}, "is pretrained on the texts first"),
        ({"adapt_epochs": 0.0}, "is pretrained on the texts first"),
        ({"predict": "x.txt", "data": []}, "give --model"),
        ({"predict": "missing.txt"}, "no file or folder missing.txt"),
        ({"minutes": 1.0, "max_steps": None, "adapt_minutes": 1.0, "adapt_epochs": None}, "leaves no time"),
        ({"minutes": 2.0, "max_steps": None, "adapt_minutes": 1.0, "adapt_epochs": None, "seeds": 2}, "leaves no time"),
        ({"model": "base"}, "--vocab-size is for a new model"),
        ({"seeds": 0}, "seeds 0: a whole number of at least 1"),
        ({"seeds": 2, "push_to": "me/it"}, "--push-to takes one run"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder, tmp_path, options, message):
    given = {"data": [str(folder / "rows.jsonl")], "out": str(tmp_path / "out"), "max_steps": 2, **TINY}
    with pytest.raises(InputError, match=message):
        package.classify(**given | options)
    assert not (tmp_path / "out").exists()


def test_for_the_test_the_baselines_learn_from_the_rows_that_chose_the_step_too(folder, tmp_path, monkeypatch):
    known, real = {}, classifier.baselines

    def noting(train, texts, names):
        known[len(texts)] = train
        return real(train, texts, names)

    monkeypatch.setattr(classifier, "baselines", noting)
    out = package.classify(data=[str(folder / "rows.jsonl")], out=str(tmp_path / "out"), max_steps=2, **TINY)
    rows = read_yaml(out / "recipe.yaml")["rows"]
    assert len(known[rows["selection"]]) == rows["train"]
    assert len(known[rows["test"]]) == rows["train"] + rows["selection"] == 320
    assert len({text for kept in known.values() for text in kept.texts}) == 320


def test_a_test_set_that_is_all_in_training_is_reported(folder, tmp_path, capsys, write_rows):
    write_rows(tmp_path / "some.jsonl", list(texts_of(400))[:7])
    package.classify(
        data=[str(folder / "rows.jsonl")],
        eval_data=[str(tmp_path / "some.jsonl")],
        out=str(tmp_path / "out"),
        max_steps=2,
        **TINY | {"quiet": False},
    )
    assert "test: 7 of 7 texts are in the training rows too" in capsys.readouterr().err


@pytest.fixture(scope="module")
def stock(folder):
    """Return a GPT-2 and a BERT of transformers' own classes, tiny and untrained, with a tokenizer each."""
    tokenizer = train_bpe((row["text"] for row in texts_of(400)), 300)
    sizes = {"vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **sizes))
    bert = BertForMaskedLM(
        BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            **sizes,
        )
    )
    for name, model in (("gpt2", gpt2), ("bert", bert)):
        model.save_pretrained(folder / name)
        save_tokenizer(tokenizer, folder / name)
    return folder


@pytest.mark.parametrize(("name", "train"), [("gpt2", "all"), ("gpt2", "last"), ("bert", "all"), ("bert", "head")])
def test_a_stock_decoder_or_encoder_is_a_model_to_start_from(stock, tmp_path, name, train):
    out = package.classify(
        data=[str(stock / "rows.jsonl")],
        model=str(stock / name),
        train=train,
        max_steps=5,
        out=str(tmp_path / "out"),
        quiet=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.model_type == name
    base = AutoModelForSequenceClassification.from_pretrained(stock / name, num_labels=2)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, base.state_dict()[key])}
    blocks = {key.split(".")[2 if name == "gpt2" else 3] for key in changed if ".h." in key or ".layer." in key}
    assert blocks == {"all": {"0", "1"}, "last": {"1"}, "head": set()}[train]


def test_a_stock_model_can_go_on_with_its_pretraining_first(stock, tmp_path):
    for name in ("gpt2", "bert"):
        out = package.classify(
            data=[str(stock / "rows.jsonl")],
            model=str(stock / name),
            adapt_epochs=0.5,
            max_steps=2,
            out=str(tmp_path / name),
            quiet=True,
        )
        assert AutoModelForSequenceClassification.from_pretrained(out).config.model_type == name


@pytest.mark.parametrize("nothing", [{"adapt_minutes": 0.0}, {"adapt_epochs": 0.0}])
def test_without_adaptation_the_model_starts_as_it_is(stock, tmp_path, nothing):
    common = {"data": [str(stock / "rows.jsonl")], "model": str(stock / "gpt2"), "max_steps": 2, "quiet": True}
    out, plain = (package.classify(**common | more, out=str(tmp_path / str(len(more)))) for more in (nothing, {}))
    assert (out / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_an_encoder_that_reads_both_ways_predicts_no_next_token_beside_the_labels(stock, tmp_path):
    given = {"data": [str(stock / "rows.jsonl")], "model": str(stock / "bert"), "max_steps": 2, "quiet": True}
    with pytest.raises(InputError, match=r"--language-weight: .* has no head that predicts the next token"):
        package.classify(**given, language_weight=0.5, out=str(tmp_path / "out"))


def test_weights_smoothing_and_dropout_reach_the_loss_and_the_model(folder, tmp_path, monkeypatch):
    seen = []

    class Noting(LabelLoss):
        def __init__(self, model, **options):
            super().__init__(model, **options)
            seen.append((model.config, options))

    monkeypatch.setattr(classifier, "LabelLoss", Noting)
    out = package.classify(
        data=[str(folder / "rows.jsonl")], class_weights=True, label_smoothing=0.1, dropout=0.3, token_dropout=0.2,
        language_weight=0.7, max_steps=1, out=str(tmp_path / "out"), **TINY,
    )  # fmt: skip
    [(config, options)] = seen
    plan = read_yaml(out / "recipe.yaml")["plan"]
    weights, counts = np.array(options["label_weights"]), np.array(plan["label_counts"])
    assert weights * counts == pytest.approx(counts.sum() / 2)  # every label counts the same, and a row 1 on average
    assert (options["smoothing"], options["token_dropout"], options["language_weight"]) == (0.1, 0.2, 0.7)
    assert {config.embedding_dropout, config.residual_dropout, config.classifier_dropout} == {0.3}


def test_a_run_stops_early_only_without_a_budget(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ClassificationRun, "run", lambda run, resume: pytest.fail("trained"))
    monkeypatch.setattr(classification, "adapt", lambda *_: (_ for _ in ()).throw(Interrupted("prepared")))
    found = {}
    for budget in ({}, {"minutes": 1.0}, {"max_steps": 3}, {"epochs": 1.0}):
        out = tmp_path / "-".join(["out", *budget])
        with pytest.raises(Interrupted, match="prepared"):
            package.classify(data=[str(folder / "rows.jsonl")], out=str(out), **TINY | {"adapt_epochs": None} | budget)
        found[out.name] = read_yaml(out / "recipe.yaml")["plan"]["patience"]
    assert found == {"out": 4, "out-minutes": None, "out-max_steps": None, "out-epochs": None}


@pytest.mark.slow
def test_a_budget_in_minutes_is_for_the_texts_and_for_the_labels(folder, tmp_path, scores_of):
    given = {"data": [str(folder / "rows.jsonl")], **TINY, "adapt_epochs": None, "minutes": 0.5, "adapt_minutes": 0.15}
    out = package.classify(out=str(tmp_path / "out"), **given)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["training"]["steps"] > 1
    assert scores_of(out)["accuracy", "test", None]["count"] == 80


def test_lora_trains_an_adapter_alone(stock, tmp_path):
    out = package.classify(
        data=[str(stock / "rows.jsonl")],
        model=str(stock / "gpt2"),
        lora=True,
        lora_rank=2,
        max_steps=3,
        out=str(tmp_path / "out"),
        quiet=True,
    )
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "model.safetensors").exists()
    (tmp_path / "texts.txt").write_text("cat good\n", encoding="utf-8")
    package.classify(model=str(out), predict=str(tmp_path / "texts.txt"), out=str(tmp_path / "p"), quiet=True)
    assert len((tmp_path / "p" / "predictions.csv").read_text().splitlines()) == 2


def test_training_the_last_part_of_our_model_trains_its_last_block_final_norm_and_head():
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "pad_token_id": 0, "num_labels": 2}
    for what, expected in (("head", {"score"}), ("last", {"score", "model.layers.2", "model.norm"})):
        model = package.GroundupForSequenceClassification(package.GroundupConfig(**sizes))
        freeze(model, what)
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert {next(e for e in expected if name.startswith(e)) for name in trained} == expected


def test_what_is_frozen_gets_no_gradient():
    config = GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=50, num_labels=2, pad_token_id=0)
    for what, expected in (("head", {"score"}), ("last", {"score", "transformer.h.2", "transformer.ln_f"})):
        model = AutoModelForSequenceClassification.from_config(config)
        freeze(model, what)
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert {next(e for e in expected if name.startswith(e)) for name in trained} == expected


def test_the_loss_is_the_sum_over_rows_that_count_weighted_by_label():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, num_labels=2, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids, mask = torch.randint(1, 50, (3, 5)), torch.ones(3, 5, dtype=torch.long)
    objective = LabelLoss(model, label_weights=[1.0, 3.0]).eval()
    logs = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    expected = -(logs[0, 0] + 3 * logs[1, 1])
    torch.testing.assert_close(objective(ids, mask, torch.tensor([0, 1, -100])), expected)


def test_the_language_loss_beside_it_is_each_rows_mean_over_its_next_tokens():
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "pad_token_id": 0, "zero_init": False}
    base = package.GroundupForCausalLM(package.GroundupConfig(**sizes)).eval()
    model = package.GroundupForSequenceClassification(package.GroundupConfig(**sizes, num_labels=2)).eval()
    model.model.load_state_dict(base.model.state_dict())
    ids, mask = torch.randint(1, 50, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    ids[1, 4:], mask[1, 4:] = 0, 0
    labels = torch.tensor([0, 1])
    head = base.lm_head.weight.detach()
    both = LabelLoss(model, language_head=head, language_weight=0.5).eval()(ids, mask, labels)
    alone = LabelLoss(model).eval()(ids, mask, labels)
    rows = [base(input_ids=ids[:1], labels=ids[:1]).loss, base(input_ids=ids[1:, :4], labels=ids[1:, :4]).loss]
    torch.testing.assert_close(both - alone, 0.5 * sum(rows))


def test_token_dropout_replaces_about_its_share_and_never_what_marks_structure():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, num_labels=2, pad_token_id=0)
    objective = LabelLoss(AutoModelForSequenceClassification.from_config(config), token_dropout=0.25, kept_ids=[0, 1])
    ids, read = torch.randint(0, 50, (200, 100)), []
    objective.model.get_input_embeddings().register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    objective.train()(ids, torch.ones_like(ids), torch.zeros(200, dtype=torch.long))
    [noisy] = read
    marks = ids < 2
    assert torch.equal(noisy[marks], ids[marks])
    assert not (noisy[~marks] < 2).any()
    share = (noisy != ids)[~marks].float().mean().item()
    assert share == pytest.approx(0.25 * 47 / 48, abs=0.01)


def test_a_language_model_of_ours_is_a_model_to_start_from_and_keeps_its_tokenizer(folder, base, tmp_path):
    out = package.classify(
        data=[str(folder / "rows.jsonl")], model=str(base), max_steps=3, pooling="last", out=str(tmp_path / "out"),
        quiet=True,
    )  # fmt: skip
    assert AutoModelForSequenceClassification.from_pretrained(out).config.classifier_pooling == "last"
    assert AutoModelForCausalLM.from_pretrained(base).config.vocab_size == 300
    ours, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(base)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours("a cat")["input_ids"] == for_classifying(theirs, 32)("a cat")["input_ids"]


def test_the_test_may_name_its_columns_otherwise_than_the_rows_that_were_learned(tmp_path, scores_of):
    rows = list(texts_of(40))
    (tmp_path / "train.txt").write_text("".join(f"{row['label']}\t{row['text']}\n" for row in rows), encoding="utf-8")
    test = "".join(f"{row['label']},{row['text']}\n" for row in texts_of(30, seed=1))
    (tmp_path / "test.csv").write_text(f"category,message\n{test}", encoding="utf-8")
    out = package.classify(
        data=[str(tmp_path / "train.txt")],
        eval_data=[str(tmp_path / "test.csv")],
        out=str(tmp_path / "out"),
        max_steps=2,
        **TINY,
    )
    assert scores_of(out)["accuracy", "test", None]["count"] == 30


@pytest.mark.parametrize("option", ["eval_data", "max_steps", "seeds", "label_column", "class_weights"])
def test_labelling_alone_takes_no_option_of_training(option, tmp_path):
    (tmp_path / "texts.txt").write_text("one\n")
    value = {"eval_data": ["x.csv"], "label_column": "x", "class_weights": True}.get(option, 2)
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} is for training: leave it out, or give --data"):
        package.classify(
            model=str(tmp_path), predict=str(tmp_path / "texts.txt"), out=str(tmp_path / "o"), **{option: value}
        )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("texts", [["the same"] * 40, [""] * 40])
def test_where_the_texts_held_out_are_all_in_training_that_is_the_reason_given(texts, tmp_path, write_rows):
    rows = [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(texts)]
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match="every text held out for validation is in the training rows"):
        package.classify(data=[str(tmp_path / "rows.jsonl")], out=str(tmp_path / "o"), smoke=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"test_share": 0.5, "eval_data": ["x"]}, "--test-share and --eval-data both give a test set"),
        ({"train": "head", "language_weight": 0.5}, "--language-weight trains what lies below the head"),
    ],
)
def test_options_of_which_one_would_not_be_heeded_are_refused(options, says, tmp_path):
    with pytest.raises(InputError, match=says):
        package.classify(data=[str(tmp_path)], model=str(tmp_path), out=str(tmp_path / "o"), max_steps=1, **options)


def test_a_share_for_pretraining_is_for_a_new_model(tmp_path):
    with pytest.raises(InputError, match="--pretrain-share is for a new model: leave it out, or --model"):
        package.instruct(data=[str(tmp_path)], model=str(tmp_path), pretrain_share=0.5, out=str(tmp_path / "o"))


@pytest.mark.parametrize(
    ("tokens", "options", "context_length", "batch_rows"),
    [
        (1e9, {}, 160, 32),  # the plan of a model with enough time
        (300_000, {}, 160, 16),
        (40_000, {}, 128, 8),
        (1_000, {}, 64, 8),
        (1_000, {"context_length": 96, "batch_rows": 12}, 96, 12),
        (600_000, {"average": 2}, 160, 16),  # of which each of two runs has half
    ],
)
def test_a_large_model_with_little_time_reads_less_of_each_text_in_smaller_steps(
    tokens, options, context_length, batch_rows, tmp_path, write_rows, monkeypatch
):
    rows = [{"text": f"{n} {'good' if n % 2 else 'bad'} " + "word " * 145, "label": str(n % 2)} for n in range(400)]
    data = [write_rows(tmp_path / "rows.jsonl", rows)]
    sizes = {"vocab_size": 270, "hidden_size": 16, "num_hidden_layers": 1, "context_length": 512}
    base = package.pretrain(data=data, max_steps=1, out=str(tmp_path / "base"), quiet=True, **sizes)
    whole = 0.7 * 60 * 5.0  # seconds of training in all the minutes
    monkeypatch.setattr(
        classification_preparation, "trainable_tokens", lambda given, length, seconds: tokens * seconds / whole
    )
    run = RunFolder(tmp_path / "run")
    settings = ClassifySettings(data=data, model=str(base), out=str(run.out), minutes=5.0, quiet=True, **options)
    prepare_classification(settings, run, Deadline())
    plan = run.read_recipe()[0]["plan"]
    assert (plan["context_length"], plan["batch_rows"]) == (context_length, batch_rows)
    assert plan["micro_batch_tokens"] == min(batch_rows, 2048 // context_length) * context_length
