"""What a classifier may start from: another one, whose head stays where it knows a label, and an adapter, folded."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from groundup.common.errors import InputError
from groundup.common.settings import Deadline
from groundup.data.encoding import for_classifying
from groundup.data.examples import spread
from groundup.evaluation.classification import labels_of
from groundup.inference.folder import fold
from groundup.inference.loading import load_adapter, load_model, save_adapter, save_model
from groundup.modeling import (
    GroundupConfig,
    GroundupForCausalLM,
    GroundupForMaskedLM,
    GroundupForSequenceClassification,
)
from groundup.tokenization.folder import save_tokenizer
from groundup.tokenization.training import train_bpe
from groundup.training.checkpoint import RunFolder
from groundup.training.classification_preparation import (
    FOLDED,
    base_of,
    open_classification,
    prepare_classification,
    start_of,
)
from groundup.training.classifier import load_base
from groundup.training.lora import add_lora
from groundup.training.settings import ClassifySettings

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
}
KNOWN = ["ham", "spam", "news"]
IDS = torch.tensor([[1, 2, 3, 4]])


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["free money now, see you at home " * 10], 280)


def classifier(kind, folder, tokenizer):
    numbered = {"id2label": dict(enumerate(KNOWN)), "label2id": {name: number for number, name in enumerate(KNOWN)}}
    fields = {**SIZES, **numbered, "pad_token_id": 0, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    configs = {"ours": GroundupConfig, "bert": BertConfig, "llama": LlamaConfig}
    classes = {
        "ours": GroundupForSequenceClassification,
        "bert": BertForSequenceClassification,
        "llama": LlamaForSequenceClassification,
    }
    torch.manual_seed(1)
    model = classes[kind](configs[kind](**fields)).eval()
    model.save_pretrained(folder)
    save_tokenizer(for_classifying(tokenizer, 64), folder)
    return model


@pytest.mark.parametrize("kind", ["ours", "bert", "llama"])
@pytest.mark.parametrize(
    "names",
    [KNOWN, KNOWN[::-1], ["a", "b", "c"], ["a", "spam", "c"], ["spam", "ham"], ["x", *KNOWN, "y"], ["news", "z"]],
)
def test_a_label_keeps_what_the_classifier_knows_of_it_and_a_new_one_nobodys(tmp_path, tokenizer, kind, names):
    before = classifier(kind, tmp_path / "old", tokenizer)(IDS).logits[0]
    model = load_base(tmp_path / "old", names).eval()
    after = model(IDS).logits[0]
    assert after.shape == (len(names),) and labels_of(model) == names
    for place, name in enumerate(names):
        same = [torch.allclose(after[place], value, atol=1e-6) for value in before]
        assert same == [name == known for known in KNOWN]
    save_model(tmp_path / "new", model, tokenizer)
    again = load_base(tmp_path / "new", names).eval()
    assert torch.equal(again(IDS).logits[0], after)


def test_known_labels_keep_the_order_of_the_classifier(tmp_path, tokenizer, write_rows):
    classifier("ours", tmp_path / "m", tokenizer)

    def labels(names, **options):
        rows = [{"text": f"{n} free money", "label": names[n % len(names)]} for n in range(60)]
        data = [write_rows(tmp_path / "rows.jsonl", rows)]
        run = RunFolder(tmp_path / "-".join(["run", *names, *options]))
        settings = ClassifySettings(data=data, model=str(tmp_path / "m"), max_steps=1, **options)
        prepare_classification(settings, run, Deadline())
        return open_classification(run).plan.labels

    assert sorted(KNOWN) != KNOWN
    assert labels(sorted(KNOWN)) == labels(sorted(KNOWN), lora=True) == KNOWN
    with pytest.raises(InputError, match="m has other labels than the rows: leave --lora out"):
        labels(["ham", "spam"], lora=True)


@pytest.mark.parametrize("kind", ["classifier", "language model", "encoder"])
def test_only_what_has_a_head_for_next_tokens_goes_on_with_them(tmp_path, tokenizer, kind):
    if kind == "classifier":
        classifier("ours", tmp_path / "m", tokenizer)
    else:
        fields = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
        masked = kind == "encoder"
        network = GroundupForMaskedLM if masked else GroundupForCausalLM
        save_model(tmp_path / "m", network(GroundupConfig(**fields, is_causal=not masked)), tokenizer)

    def start(**options):
        settings = ClassifySettings(model=str(tmp_path / "m"), **options)
        return start_of(settings, settings.model, tokenizer, ["free money"])

    expected = {"classifier": None, "language model": "clm", "encoder": "mlm"}[kind]
    assert start().predicts == expected and start().labels == (tuple(KNOWN) if kind == "classifier" else ())
    if expected != "clm":
        with pytest.raises(InputError, match=r"--language-weight: .* has no head that predicts the next token"):
            start(language_weight=0.5)
    if expected is None:
        with pytest.raises(InputError, match=r"--adapt-epochs: .* has no language-model head"):
            start(adapt_epochs=1)


def adapter(tmp_path, tokenizer):
    config = GroundupConfig(**SIZES, vocab_size=len(tokenizer), max_position_embeddings=64)
    save_model(tmp_path / "base", GroundupForCausalLM(config), tokenizer)
    adapted = add_lora(load_model(tmp_path / "base")[0], ClassifySettings(lora=True))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save_adapter(tmp_path / "adapter", adapted)
    save_tokenizer(tokenizer, tmp_path / "adapter")
    return adapted


def test_an_adapter_is_folded_once_and_all_of_what_it_makes_can_be_trained(tmp_path, tokenizer):
    expected = adapter(tmp_path, tokenizer).eval()(IDS).logits
    assert all(weight.requires_grad for weight in fold(load_adapter(tmp_path / "adapter")).parameters())
    settings = ClassifySettings(model=str(tmp_path / "adapter"))
    folder = base_of(settings, tmp_path / "work")
    assert folder == tmp_path / "work" / FOLDED == base_of(settings, tmp_path / "work")
    model, _ = load_model(folder)
    assert torch.allclose(model(IDS).logits, expected, atol=1e-4)
    assert start_of(settings, folder, tokenizer, ["free money"]).predicts == "clm"
    with pytest.raises(InputError, match="is an adapter: merge it into its base first with groundup merge"):
        base_of(ClassifySettings(model=str(tmp_path / "adapter"), lora=True), tmp_path / "other")


@pytest.mark.parametrize("count", [1, 2, 8, 31, 40])
def test_a_part_of_the_rows_has_of_every_label_its_share(count):
    labels = np.array([0] * 24 + [1] * 8 + [2] * 8)
    chance = np.random.default_rng(0)
    chance.shuffle(labels)
    chosen = labels[spread(labels, count)]
    assert len(chosen) == count
    for label in range(3):
        assert abs((chosen == label).sum() - count * (labels == label).mean()) <= 1
