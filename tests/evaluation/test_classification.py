import csv
import io
import json
import warnings

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import f1_score

from groundup.data.encoding import ExampleRows, for_classifying
from groundup.data.examples import MOST_LABELS, Examples, is_one_text
from groundup.evaluation.classification import (
    MAJORITY,
    OWN_FONT,
    SVM,
    Measured,
    baselines,
    calibration_error,
    classification_rows,
    draw_confusion,
    label_texts,
    mean_rows,
    predict,
    scores,
    write_mistakes,
)
from groundup.evaluation.curves import plot_curve
from groundup.evaluation.metrics_json import notes, result_lines, shown, worth
from groundup.evaluation.report import results
from groundup.modeling import GroundupConfig, GroundupForSequenceClassification
from groundup.tokenization.folder import save_tokenizer

TRAIN = Examples(["win money now", "free money", "see you at home", "on my way home", "home soon"], list("ssggg"))


def test_scores_are_what_they_are_by_hand():
    truth, predicted = np.array([0, 0, 0, 1, 1, 0]), np.array([0, 0, 1, 1, 0, 0])
    found = scores(truth, predicted, ["ham", "spam"])
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx(0.5)  # 1 right, 1 false, 1 missed
    assert found["f1_macro"] == pytest.approx((0.5 + 0.75) / 2)
    assert found["mcc"] == pytest.approx((1 * 3 - 1 * 1) / (2 * 2 * 4 * 4) ** 0.5)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy_in_each_bin():
    right = np.array([True, True, False, True, False, False])
    assert calibration_error(right, np.full(6, 0.5)) == pytest.approx(0.0)
    assert calibration_error(right, np.full(6, 1.0)) == pytest.approx(0.5)
    two_bins = np.array([0.9, 0.9, 0.9, 0.6, 0.6, 0.6])  # 2 of 3 and 1 of 3 are right
    assert calibration_error(right, two_bins) == pytest.approx((abs(2.7 - 2) + abs(1.8 - 1)) / 6)


@pytest.mark.parametrize("label", ["macro", "accuracy", "loss", "mcc", "f1", "f1_macro", "LABEL_0", "0", "selection"])
def test_no_name_of_a_label_takes_the_place_of_a_score(label):
    measured = Measured(
        np.array([0, 0, 0, 1, 1, 0]), np.array([0, 0, 1, 1, 0, 0]), {SVM: np.zeros(6, np.int64)}, np.full(6, 0.75)
    )
    plain = classification_rows(measured, ["ham", "spam"], dataset="d", split="test", seed=0)
    rows = classification_rows(measured, ["ham", label], dataset="d", split="test", seed=0)
    assert [row | {"label": None} for row in rows] == [row | {"label": None} for row in plain]
    places = [(row["name"], row["baseline"]) for row in rows]
    assert len(set(places)) == len(places)
    assert {row["label"] for row in rows if row["name"] == "f1"} == {label}
    _, lines = result_lines(rows)
    assert ["macro F1", f"F1 of {label}"] == [line[0] for line in lines if "F1" in line[0]]


def test_the_mean_over_seeds_keeps_the_f1_of_one_label_apart_from_that_of_another():
    rows = [
        classification_rows(
            Measured(np.array(truth), np.array(truth), {}, np.ones(len(truth))),
            ["a", "b"],
            dataset="d",
            split="t",
            seed=0,
        )
        for truth in ([0, 1, 1], [0, 0, 1])
    ]
    assert [row["label"] for row in mean_rows(rows) if row["name"] == "f1"] == ["a", "b"]


def test_f1_is_averaged_over_the_labels_that_occur():
    truth, predicted = np.array([0, 0, 2]), np.array([0, 0, 2])
    assert scores(truth, predicted, ["a", "b", "c"])["f1_macro"] == 1.0
    assert f1_score(truth, predicted, labels=[0, 1, 2], average="macro", zero_division=0) < 1


def test_a_label_that_training_had_not_counts_as_a_mistake():
    assert scores(np.array([0, 1, -100]), np.array([0, 1, 1]), ["a", "b"])["accuracy"] == pytest.approx(2 / 3)


def test_baselines_learn_from_the_training_rows_alone():
    found = baselines(TRAIN, ["free money", "at home"], ["g", "s"])
    assert list(found[MAJORITY]) == [0, 0]
    assert list(found[SVM]) == [1, 0]


def test_texts_without_a_word_leave_the_svm_at_the_majority():
    found = baselines(Examples(["!", "?", "?"], ["a", "b", "b"]), ["!"], ["a", "b"])
    assert list(found[SVM]) == list(found[MAJORITY]) == [1]


def measured(right, by_svm):
    truth = np.zeros(100, np.int64)
    truth[:50] = 1
    wrong = {"model": 100 - right, "svm": 100 - by_svm}
    predicted = {who: np.where(np.arange(100) < count, 1 - truth, truth) for who, count in wrong.items()}
    return Measured(truth, predicted["model"], {MAJORITY: np.zeros(100, np.int64), SVM: predicted["svm"]}, np.ones(100))


@pytest.mark.parametrize(
    ("right", "words"),
    [(95, "5.00 points above TF-IDF"), (90, "does not beat the baseline"), (85, "5.00 points below TF-IDF")],
)
def test_the_verdict_says_whether_it_was_worth_it(right, words):
    rows = classification_rows(measured(right, 90), ["a", "b"], dataset="d", split="test", seed=0)
    assert words in worth(rows)


@pytest.mark.parametrize(("bits", "found"), [(2.0, False), (2.7, True), (3.6, True)])
def test_a_language_model_that_is_no_better_than_its_best_baseline_is_told_so(bits, found):
    def row(value, baseline=None, **more):
        return {"name": "bits_per_byte", "value": value, "dataset": "d", "split": "test", "baseline": baseline} | more

    rows = [row(bits), row(3.05, "unigram"), row(2.7, "xz -9e"), row(2.0, "xz -9e", split="another")]
    said = worth(rows)
    assert (said is not None) == found
    if found:
        assert said is not None and "no better than xz -9e (2.700)" in said and "--minutes" in said
    assert worth([row(bits, model="a"), row(bits, model="b"), row(1.0, "xz -9e")]) is None


def test_seeds_become_a_mean_and_a_standard_deviation():
    runs = [
        classification_rows(measured(right, 90), ["a", "b"], dataset="d", split="test", seed=seed)
        for seed, right in enumerate((90, 92, 97))
    ]
    row = next(row for row in mean_rows(runs) if row["name"] == "accuracy" and row["baseline"] is None)
    assert row["value"] == pytest.approx(0.93)
    assert row["std"] == pytest.approx(np.std([0.90, 0.92, 0.97], ddof=1))
    assert row["seeds"] == [0, 1, 2]


def test_the_summary_shows_the_spread_and_says_whether_it_was_worth_it():
    runs = [
        classification_rows(measured(right, 90), ["a", "b"], dataset="d", split="test", seed=seed)
        for seed, right in enumerate((80, 84))
    ]
    rows = mean_rows(runs)
    assert shown(rows[0]) == "82.0% ± 2.8%"
    assert notes(rows) == [worth(rows)]
    assert "does not beat the baseline" in results({"metrics": rows})
    assert notes([{"name": "accuracy", "value": 0.5, "dataset": "d", "split": "test", "baseline": None}]) == []


def test_the_curve_of_a_classifier_has_its_accuracy_and_is_per_text(tmp_path):
    log = [{"step": 1, "loss": 0.9, "learning_rate": 0.1}]
    log += [{"step": 1, "validation_loss": 0.7, "validation_accuracy": 0.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    plot_curve(tmp_path / "log.jsonl", tmp_path / "curve.svg")
    drawn = (tmp_path / "curve.svg").read_text()
    for words in ("loss (nats per text)", "accuracy (validation)", "training, with its noise"):
        assert f"<!-- {words}" in drawn


def test_mistakes_are_written_with_the_surest_first(tmp_path):
    examples = Examples(["one", "two", "three"], ["a", "b", "a"])
    probabilities = np.array([[0.4, 0.6], [0.1, 0.9], [0.05, 0.95]])
    assert write_mistakes(tmp_path / "m.jsonl", examples, probabilities, ["a", "b"]) == 2
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [(row["text"], row["predicted"], row["probability"]) for row in rows] == [
        ("three", "b", 0.95),
        ("one", "b", 0.6),
    ]


@pytest.mark.parametrize(("count", "words"), [(2, 0), (2, 20), (30, 20), (40, 0), (100, 20)])
def test_the_confusion_of_however_many_labels_is_a_picture_of_bounded_size(tmp_path, count, words):
    labels = np.arange(count)
    draw_confusion(labels, labels, [f"{label} {'word ' * words}" for label in labels], tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert 300 <= picture.width == picture.height <= 3100  # 0.55 inches for each of 30 labels, names of 30 letters


def test_the_most_labels_there_may_be_are_drawn_at_the_size_of_few_with_some_of_their_names(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    few, most = np.arange(31), np.arange(MOST_LABELS)
    draw_confusion(few, few, [f"{label:>4}" for label in few], tmp_path / "few.png")
    draw_confusion(most, most, [f"{label:>4}" for label in most], tmp_path / "most.png")
    assert tuple(figures[0].get_size_inches()) == tuple(figures[1].get_size_inches())
    shown = [[label.get_text() for label in figure.axes[0].get_yticklabels()] for figure in figures]
    assert shown[0] == [str(label) for label in few]
    assert 100 < len(shown[1]) < 200 and shown[1][0] == "0"
    assert not any(figure.axes[0].texts for figure in figures)


def test_the_numbers_in_the_confusion_are_those_of_the_rows_whose_label_is_known(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    truth, predicted = np.array([0, 0, 0, 1, -100]), np.array([1, 1, 0, 1, 0])
    draw_confusion(truth, predicted, ["a", "b"], tmp_path / "some.png")
    draw_confusion(truth[-1:], predicted[-1:], ["a", "b"], tmp_path / "none.png")
    texts = [
        {(text.get_position(), text.get_text()) for text in figure.axes[0].texts if text.get_text()}
        for figure in figures
    ]
    assert texts == [{((0, 0), "1"), ((1, 0), "2"), ((1, 1), "1")}, set()]


@pytest.mark.parametrize("names", [["$^$", "x$ $"], [r"\frac{", "$x$"], ["a\nb", "_^"]])
def test_the_labels_of_the_confusion_are_drawn_as_the_text_they_are(tmp_path, names):
    draw_confusion(np.array([0, 1]), np.array([1, 1]), names, tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")


SCRIPTS = [
    "正面",
    "负面",
    "حسن",
    "שלום",
    "नमस्ते",
    "สวัสดี",
    "🙂 fine",
    "a\x00b",
    "x" * 300,
    "",
    "Ελλάδα",
    "\ue000",
    "e\u0301",
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fonts", ["those that are installed", "no more than matplotlib's own"])
def test_labels_in_any_script_are_drawn_or_numbered_and_never_boxes(tmp_path, monkeypatch, fonts):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: [figures.append(figure), save(figure, path)])
    if fonts == "no more than matplotlib's own":
        own = [entry for entry in font_manager.fontManager.ttflist if entry.name == OWN_FONT]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    labels = np.arange(len(SCRIPTS))
    draw_confusion(labels, labels, SCRIPTS, tmp_path / "confusion.png")
    shown = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    for number, (name, words) in enumerate(zip(SCRIPTS, shown)):
        assert words in (f"label {number}", name, name[:29] + "…")
    assert shown[2:4] == ["label 2", "label 3"] and shown[10] == "Ελλάδα"  # from right to left, and Greek
    assert "config.json" in figures[0].get_suptitle()


def test_predictions_do_not_depend_on_the_batch_a_row_is_in():
    config = GroundupConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_labels=3, max_position_embeddings=64, pad_token_id=0
    )
    model = GroundupForSequenceClassification(config).eval()
    chance = np.random.default_rng(0)
    ids = [chance.integers(1, 50, length).astype(np.int32) for length in chance.integers(1, 60, 300)]
    rows = ExampleRows(ids, np.zeros(300, np.int64))
    together = predict(model, rows, 0)
    alone = [predict(model, ExampleRows([ids[place]], np.zeros(1, np.int64)), 0)[0] for place in (0, 7, 150)]
    np.testing.assert_allclose(together[[0, 7, 150]], alone, atol=1e-5)
    np.testing.assert_allclose(together.sum(1), 1.0)


def save_classifier(bpe, folder, names):
    config = GroundupConfig(
        vocab_size=len(bpe),
        hidden_size=32,
        num_hidden_layers=1,
        max_position_embeddings=32,
        pad_token_id=bpe.eos_token_id,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    GroundupForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(for_classifying(bpe, 32), folder)
    return str(folder)


@pytest.fixture
def classifier(bpe, tmp_path):
    return save_classifier(bpe, tmp_path / "classifier", ["no", "yes"])


def test_the_answer_has_a_row_for_every_text_whatever_it_holds(classifier, tmp_path):
    texts = ["one", "", "two\u2028three", "a lone\rreturn", '"four", five']
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8", newline="")
    rows = list(csv.DictReader(io.StringIO(label_texts(classifier, str(tmp_path / "texts.txt")), newline="")))
    assert [row["text"] for row in rows] == texts
    assert all(row["label"] == max(("no", "yes"), key=lambda name: float(row[name])) for row in rows)


@pytest.mark.parametrize("names", [["text", "label"], ["probability", "no"], ["probability of text", "text"]])
def test_labels_that_are_called_as_our_columns_leave_every_column_its_own_name(bpe, tmp_path, names):
    classifier = save_classifier(bpe, tmp_path / "odd", names)
    (tmp_path / "texts.txt").write_text("one\ntwo\n", encoding="utf-8")
    header, *rows = csv.reader(io.StringIO(label_texts(classifier, str(tmp_path / "texts.txt"))))
    assert len(set(header)) == len(header) == 5 and header[:3] == ["text", "label", "probability"]
    assert [row[0] for row in rows] == ["one", "two"]
    assert all(row[2] == max(row[3:]) and header[3 + row[3:].index(row[2])].endswith(row[1]) for row in rows)


def test_the_tables_other_columns_are_kept_with_names_of_their_own(classifier, tmp_path):
    rows = [{"id": 7, "text": "one", "label": "yes", "tags": ["a", 1]}, {"id": "007", "text": "two", "no": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first, second = csv.DictReader(io.StringIO(label_texts(classifier, str(tmp_path / "rows.jsonl")), newline=""))
    assert list(first)[:4] == ["id", "label in the table", "tags", "no in the table"]
    assert (first["id"], first["label in the table"], first["tags"]) == ("7", "yes", '["a", 1]')
    assert (second["id"], second["tags"], second["no in the table"], second["text"]) == ("007", "", "", "two")
    assert {first["label"], second["label"]} <= {"no", "yes"}


@pytest.mark.parametrize(
    ("text", "is_text"),
    [("win a prize", True), ("see www.x.test/y now", True), ("texts", False), ("no such.csv", False), ("a b/c", False)],
)
def test_one_text_is_told_from_a_file(text, is_text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    assert is_one_text(text) == is_text
    (tmp_path / "win a prize").write_text("x")
    assert not is_one_text("win a prize")


@pytest.mark.parametrize(("truth", "predicted"), [([1, 1], [1, 1]), ([0, 0], [0, 0]), ([0], [1]), ([0, 1], [1, 0])])
def test_of_few_labels_the_scores_come_without_warnings(truth, predicted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(np.array(truth), np.array(predicted), ["a", "b"])
    assert found["mcc"] == (-1.0 if truth == [0, 1] else 0.0)
