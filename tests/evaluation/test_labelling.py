import csv
import io

import pytest

from groundup.data.example_rows import for_classifying
from groundup.evaluation.labelling import label_texts
from groundup.modeling import GroundupConfig, GroundupForSequenceClassification
from groundup.tokenization.folder import save_tokenizer


@pytest.fixture
def classifier(bpe, tmp_path):
    config = GroundupConfig(
        vocab_size=len(bpe),
        hidden_size=32,
        num_hidden_layers=1,
        max_position_embeddings=32,
        pad_token_id=bpe.eos_token_id,
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
    )
    GroundupForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    save_tokenizer(for_classifying(bpe, 32), tmp_path / "classifier")
    return str(tmp_path / "classifier")


def test_the_answer_has_a_row_for_every_text_whatever_it_holds(classifier, tmp_path):
    texts = ["one", "", "two\u2028three", "a lone\rreturn", '"four", five']
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8", newline="")
    rows = list(csv.DictReader(io.StringIO(label_texts(classifier, str(tmp_path / "texts.txt")), newline="")))
    assert [row["text"] for row in rows] == texts
    assert all(row["label"] == max(("no", "yes"), key=lambda name: float(row[name])) for row in rows)
