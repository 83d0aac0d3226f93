"""What stands in a model's folder and does not go together is said by every door, in one line."""

import numpy as np
import pytest
import transformers

import groundup
from groundup.common.errors import InputError
from groundup.evaluation.classification import label_texts
from groundup.evaluation.likelihood import score_stream
from groundup.inference.generation import Sampling, complete
from groundup.inference.loading import load_model, load_writer
from groundup.tokenization.folder import save_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
ENCODERS = ["Bert", "Roberta", "Electra", "Camembert"]
BEYOND = "gives the text a token [0-9]+, and the model has only the ids 0 to 199"


def saved(folder, kind, config, bpe, **fields):
    getattr(transformers, kind)(config(**SIZES, **fields)).save_pretrained(folder)
    save_tokenizer(bpe, folder)
    return str(folder)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_no_writer_though_transformers_builds_one_of_it(name, bpe, tmp_path):
    config = getattr(transformers, f"{name}Config")
    encoder = saved(tmp_path / "encoder", f"{name}ForMaskedLM", config, bpe, vocab_size=400)
    for load in (load_model, load_writer):
        with pytest.raises(InputError, match="it is an encoder, which sees the tokens that follow: give a model that"):
            load(encoder)
    assert load_model(encoder, kind=transformers.AutoModelForMaskedLM)
    writer = "BertLMHeadModel" if name == "Bert" else f"{name}ForCausalLM"
    decoder = saved(tmp_path / "decoder", writer, config, bpe, vocab_size=400, is_decoder=True)
    assert load_model(decoder)[0].config.is_decoder


@pytest.fixture
def few(bpe, tmp_path):
    """Return a model with fewer embeddings than its tokenizer has tokens."""
    return saved(tmp_path / "few", "LlamaForCausalLM", transformers.LlamaConfig, bpe, vocab_size=200)


def test_tokens_that_a_model_does_not_know_are_said(few, bpe, texts, stream_of, tmp_path):
    model, tokenizer = load_model(few)
    with pytest.raises(InputError, match=BEYOND):
        complete(model, tokenizer, texts[0], Sampling(max_new_tokens=2))
    with pytest.raises(InputError, match=BEYOND):
        score_stream(model, stream_of(texts, bpe), 16, special_ids=())
    known = [token for token in range(8, 60) if tokenizer.decode([token]).isascii()]
    assert max(known) < 200
    complete(model, tokenizer, tokenizer.decode(known[:5]), Sampling(max_new_tokens=2))  # of what it knows it goes on
    classifier = saved(
        tmp_path / "judge",
        "LlamaForSequenceClassification",
        transformers.LlamaConfig,
        bpe,
        vocab_size=200,
        num_labels=2,
    )
    (tmp_path / "texts.txt").write_text(texts[0])
    with pytest.raises(InputError, match=BEYOND):
        label_texts(classifier, str(tmp_path / "texts.txt"))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
def test_a_classifier_learns_the_tokens_that_its_base_does_not_know(lora, few, tmp_path):
    """As pretrain and instruct do."""
    rows = "".join(f"the cat {n},a\nthe dog {n},b\n" for n in range(20))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    out = groundup.classify(
        model=few, data=[str(tmp_path / "rows.csv")], out=str(tmp_path / "out"), max_steps=2, quiet=True, lora=lora
    )
    labelled = label_texts(str(out), str(tmp_path / "rows.csv"))
    assert len(labelled.splitlines()) == 41 and not np.isnan(float(labelled.splitlines()[1].split(",")[3]))
