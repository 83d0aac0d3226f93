"""The library `evaluate` on our checkpoints, without a network."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from transformers import pipeline

from groundup.common.errors import InputError
from groundup.evaluation.classification import scores
from groundup.evaluation.instruction import Answer, score_answers
from groundup.evaluation.standard_metrics import combine_metrics, load_metric, metric_names
from groundup.modeling import GroundupConfig, GroundupForSequenceClassification
from groundup.tokenization.folder import save_tokenizer

LABELS = {"predictions": [0, 1, 2, 2, 1, 0], "references": [0, 1, 1, 2, 1, 2]}

METRICS = {name: load_metric(name) for name in metric_names()}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, bpe):
    """Return the folder of a classifier of ours with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
    config = GroundupConfig(**sizes, vocab_size=len(bpe), max_position_embeddings=32, pad_token_id=bpe.pad_token_id)
    config.num_labels = 2
    folder = tmp_path_factory.mktemp("classifier")
    GroundupForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(bpe, folder)
    return folder


@pytest.fixture(scope="module")
def rows():
    return datasets.Dataset.from_dict(
        {"text": ["The cat sat", "A dull text", "log and frog", "One"], "label": [0, 1, 0, 1]}
    )


def test_every_metric_of_ours_loads_by_its_name():
    assert {"accuracy", "f1", "matthews_correlation", "sacrebleu", "rouge", "exact_match"} <= {*metric_names()}
    for name in metric_names():
        assert load_metric(name).name


def test_metrics_give_what_scikit_learn_gives():
    predictions, references = LABELS["predictions"], LABELS["references"]
    assert load_metric("accuracy").compute(**LABELS) == {"accuracy": metrics.accuracy_score(references, predictions)}
    f1 = load_metric("f1").compute(**LABELS, average="macro")["f1"]
    assert f1 == metrics.f1_score(references, predictions, average="macro")
    by_class = load_metric("recall").compute(**LABELS, average=None)["recall"]
    np.testing.assert_array_equal(by_class, metrics.recall_score(references, predictions, average=None))
    mcc = load_metric("matthews_correlation").compute(**LABELS)["matthews_correlation"]
    assert mcc == pytest.approx(metrics.matthews_corrcoef(references, predictions))


def test_metrics_of_text_are_right_about_the_same_text_and_about_nothing_in_common():
    same = {"predictions": ["the cat sat on the mat"], "references": ["the cat sat on the mat"]}
    many = same | {"references": [["the cat sat on the mat"]]}
    assert load_metric("sacrebleu").compute(**many)["score"] == pytest.approx(100)
    assert load_metric("chrf").compute(**many)["score"] == pytest.approx(100)
    assert load_metric("rouge").compute(**same)["rougeL"] == 1
    other = {"predictions": ["xyz"], "references": ["the cat"]}
    assert load_metric("rouge").compute(**other)["rouge1"] == 0
    assert load_metric("exact_match").compute(predictions=["A."], references=["a"]) == {"exact_match": 0}
    plain = {"ignore_case": True, "ignore_punctuation": True}
    assert load_metric("exact_match").compute(predictions=["A."], references=["a"], **plain) == {"exact_match": 1}


def test_several_metrics_are_computed_at_once():
    both = {"predictions": [1, 0, 1], "references": [1, 1, 1]}
    found = combine_metrics(["accuracy", "f1", "matthews_correlation"]).compute(**both)
    assert found == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "matthews_correlation": 0}


def test_a_metric_that_is_nowhere_is_the_users_error():
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        load_metric("acuracy")


class SpaceOfAMetric(BaseHTTPRequestHandler):
    """A hub with one Space, `evaluate-metric/brevity`."""

    SCRIPT = b""

    def do_GET(self):
        there = self.path.startswith("/spaces/evaluate-metric/brevity/") and self.path.endswith("/brevity.py")
        self.send_response(200 if there else 404)
        self.send_header("ETag", "one")
        self.send_header("Content-Length", str(len(self.SCRIPT) if there else 0))
        self.end_headers()
        if there and self.command == "GET":
            self.wfile.write(self.SCRIPT)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


def test_a_metric_that_is_not_ours_is_asked_of_the_hub(tmp_path, accuracy_script, monkeypatch):
    monkeypatch.setattr(SpaceOfAMetric, "SCRIPT", accuracy_script.replace("Accuracy(", "Brevity(").encode())
    server = ThreadingHTTPServer(("127.0.0.1", 0), SpaceOfAMetric)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from groundup.evaluation.standard_metrics import load_metric\n"
        "print(load_metric('brevity').compute(predictions=[1, 0], references=[1, 1]))"
    )
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | hub, capture_output=True, text=True)
    server.shutdown()
    assert done.stdout.strip() == "{'accuracy': 0.5}", done.stderr[-2000:]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_what_classify_reports_is_what_the_metrics_of_evaluate_give(pairs):
    truth, predicted = map(list, zip(*pairs))
    ours = scores(np.array(truth), np.array(predicted), ["a", "b", "c"])
    both = {"predictions": predicted, "references": truth}
    assert ours["accuracy"] == METRICS["accuracy"].compute(**both)["accuracy"]
    f1 = METRICS["f1"].compute(**both, average="macro", labels=sorted({*truth}))["f1"]
    assert ours["f1_macro"] == pytest.approx(f1)
    assert ours["mcc"] == pytest.approx(METRICS["matthews_correlation"].compute(**both)["matthews_correlation"])


def test_what_instruct_reports_is_what_the_metrics_of_evaluate_give():
    written, right = ["the cat sat", "a dog ", "no"], ["the cat sat", "a dog", "yes"]
    ours = score_answers([Answer(text, stopped=True) for text in written], right)
    theirs = METRICS["chrf"].compute(predictions=written, references=[[text] for text in right])["score"]
    assert ours["chrf"] == pytest.approx(theirs)
    rouge = METRICS["rouge"].compute(predictions=written, references=right)["rougeL"]
    assert ours["rouge_l"] == pytest.approx(rouge, abs=1e-4)
    exact = METRICS["exact_match"].compute(predictions=[text.strip() for text in written], references=right)
    assert ours["exact_match"] == pytest.approx(exact["exact_match"])


def test_the_evaluator_scores_our_classifier_as_its_pipeline_does(classifier, rows):
    found = evaluate.evaluator("text-classification").compute(
        model_or_pipeline=str(classifier),
        data=rows,
        metric=load_metric("accuracy"),
        label_mapping={"LABEL_0": 0, "LABEL_1": 1},
    )
    guessed = [int(answer["label"][-1]) for answer in pipeline("text-classification", str(classifier))(rows["text"][:])]
    assert found["accuracy"] == metrics.accuracy_score(rows["label"][:], guessed)
    assert found["samples_per_second"] > 0


def test_the_evaluator_gives_an_interval_by_bootstrap(classifier, rows):
    found = evaluate.evaluator("text-classification").compute(
        model_or_pipeline=str(classifier),
        data=datasets.concatenate_datasets([rows] * 5),
        metric=load_metric("accuracy"),
        label_mapping={"LABEL_0": 0, "LABEL_1": 1},
        strategy="bootstrap",
        n_resamples=50,
        random_state=0,
    )
    low, high = found["accuracy"]["confidence_interval"]
    assert low <= found["accuracy"]["score"] <= high


def test_an_evaluation_suite_runs_on_our_classifier(classifier, tmp_path):
    script = tmp_path / "suite.py"
    script.write_text(
        "import datasets\n"
        "import evaluate\n"
        "from evaluate.evaluation_suite import SubTask\n\n"
        "from groundup.evaluation.standard_metrics import load_metric\n\n"
        "ROWS = datasets.Dataset.from_dict({'text': ['The cat', 'A log'], 'label': [0, 1]})\n\n\n"
        "class Suite(evaluate.EvaluationSuite):\n"
        "    def __init__(self, name):\n"
        "        super().__init__(name)\n"
        "        arguments = {'metric': load_metric('accuracy'), 'label_mapping': {'LABEL_0': 0, 'LABEL_1': 1}}\n"
        "        self.suite = [SubTask('text-classification', data=ROWS, args_for_task=arguments)]\n"
    )
    (found,) = evaluate.EvaluationSuite.load(str(script)).run(str(classifier))
    assert 0 <= found["accuracy"] <= 1
