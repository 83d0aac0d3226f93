import csv
import io

import pytest

from groundup.data.example_rows import for_classifying
from groundup.evaluation.labelling import label_texts
from groundup.modeling import GroundupConfig, GroundupForSequenceClassification
from groundup.tokenization.folder import save_tokenizer


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
