"""What stands on the network: losses, classifiers, and training by transformers' Trainer in parts or at once."""

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from groundup.modeling import (
    GroundupForCausalLM,
    GroundupForConditionalGeneration,
    GroundupForMaskedLM,
    GroundupForQuestionAnswering,
    GroundupForSequenceClassification,
    GroundupForTokenClassification,
)

NEAR = {"rtol": 1e-4, "atol": 1e-4}


def test_the_language_models_losses_are_cross_entropies_over_the_labels_that_count(build, ids):
    labels = ids.clone()
    labels[0, :15] = -100
    causal, encoder = build(), build("encoder", GroundupForMaskedLM)
    with torch.no_grad():
        output = causal(ids, labels=labels)
        wanted = cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        torch.testing.assert_close(output.loss, wanted)
        output = encoder(ids, labels=labels)
        torch.testing.assert_close(output.loss, cross_entropy(output.logits.flatten(0, 1), labels.flatten()))
        shifted = torch.cat((labels[:, 1:], torch.full((3, 1), -100)), 1)
        torch.testing.assert_close(causal(ids, labels=labels, shift_labels=shifted).loss, wanted)


@pytest.mark.parametrize("kind", ["modern", "encoder"])
def test_the_loss_counts_labels_over_all_micro_batches(kind, build, ids):
    model = build(kind, GroundupForMaskedLM if kind == "encoder" else GroundupForCausalLM)
    labels = ids.clone()
    labels[0, 5:] = -100  # a mean of means would weigh this row's few labels more
    counted = labels if kind == "encoder" else labels[:, 1:]
    items = (counted != -100).sum()
    with torch.no_grad():
        mean = model(ids, labels=labels).loss
        parts = [model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=items).loss for i in range(3)]
    torch.testing.assert_close(sum(parts), mean)


def test_packed_documents_have_the_loss_of_separate_ones(build, ids):
    model, (first, second) = build(), (ids[:1, :12], ids[1:2, :18])
    packed = torch.cat((first, second), 1)
    labels = packed.clone()
    labels[0, [0, 12]] = -100
    with torch.no_grad():
        together = model(packed, labels=labels, position_ids=torch.tensor([[*range(12), *range(18)]])).loss
        apart = (model(first, labels=first).loss * 11 + model(second, labels=second).loss * 17) / 28
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("buckets", [0, 32])
@pytest.mark.parametrize("pooling", ["last", "first", "mean", "max"])
@pytest.mark.parametrize("kind", ["modern", "gpt2", "encoder", "learned encoder"])
def test_a_classifier_gives_the_same_logits_whatever_the_padding(pooling, kind, buckets, build, ids):
    knobs = {"classifier_pooling": pooling, "classifier_bag_buckets": buckets}
    model = build(kind, GroundupForSequenceClassification, pad_token_id=0, num_labels=3, **knobs)
    if buckets:
        nn.init.normal_(model.bag.weight)
    row, pad = ids[:1, :20], torch.zeros(1, 7, dtype=torch.long)
    with torch.no_grad():
        alone = model(row).logits
        for padded in (torch.cat((pad, row), 1), torch.cat((row, pad), 1)):
            torch.testing.assert_close(model(padded).logits, alone, **NEAR)  # found by the pad token
            torch.testing.assert_close(model(padded, attention_mask=(padded != 0).long()).logits, alone, **NEAR)


def test_pooling_takes_what_its_name_says(build, ids):
    for pooling in ("last", "first", "mean", "max"):
        model = build("modern", GroundupForSequenceClassification, classifier_pooling=pooling, num_labels=3)
        with torch.no_grad():
            vectors = model.model(ids[:1]).last_hidden_state[0]
            pooled = {
                "last": vectors[-1], "first": vectors[0], "mean": vectors.mean(0), "max": vectors.amax(0),
            }[pooling]  # fmt: skip
            torch.testing.assert_close(model(ids[:1]).logits[0], model.score(pooled), **NEAR)


def test_the_linear_part_reads_tf_idf_of_tokens_pairs_and_words(build):
    model = build(model_class=GroundupForSequenceClassification, num_labels=3, classifier_bag_buckets=1 << 16)
    bag = model.bag
    for weight in (bag.weight, bag.bias):
        nn.init.normal_(weight)
    nn.init.uniform_(bag.rarity, 1, 5)
    bag.joins[5] = bag.joins[6] = torch.tensor([True, True])
    bag.joins[9] = torch.tensor([False, True])
    ids = [5, 6, 5, 8, 9, 6, 5, 5, 6, 5, 9, 6]  # 5-6-5, 8, 9-6-5-5-6-5, 9-6
    words = [ids[:3], ids[3:4], ids[4:10], ids[10:]]
    features = bag.features(torch.tensor([ids]))[0].tolist()
    of_words = [feature for feature in features[len(ids) * 2 - 1 :] if feature >= 0]
    assert features[: len(ids)] == ids
    assert len(set(features[len(ids) : len(ids) * 2 - 1])) == len(set(itertools.pairwise(ids)))
    assert len(set(of_words)) == len(of_words) == len(words)
    alone = [bag.features(torch.tensor([word]))[0].tolist()[len(word) * 2 - 1] for word in words]
    assert of_words == alone  # wherever a word stands

    counts = Counter(feature for feature in features if feature >= 0)
    values = torch.zeros(len(bag.weight))
    for feature, count in counts.items():
        values[feature] = (1 + math.log(count)) * bag.rarity[feature]
    wanted = values / values.norm() @ bag.weight + bag.bias
    with torch.no_grad():
        torch.testing.assert_close(bag(torch.tensor([ids]))[0], wanted)
        assert not torch.equal(model(torch.tensor([ids])).logits[0], wanted)
        model.score.weight.zero_()
        torch.testing.assert_close(model(torch.tensor([ids])).logits[0], wanted)
    with pytest.raises(ValueError, match="give input_ids"):
        model(inputs_embeds=torch.zeros(1, 6, model.config.hidden_size))


def test_a_classifier_learns_one_label_several_labels_and_a_number(build, ids):
    for problem, labels in {
        "single_label_classification": torch.tensor([0, 1, 2]),
        "multi_label_classification": torch.eye(3),
        "regression": torch.rand(3, 3),
    }.items():
        model = build(model_class=GroundupForSequenceClassification, num_labels=3, pad_token_id=0, problem_type=problem)
        loss = model(ids, labels=labels).loss
        loss.backward()
        assert loss.isfinite()
        assert model.score.weight.grad.any()


def test_a_classifier_that_cannot_know_what_is_padding_says_so(build, ids):
    model = build(model_class=GroundupForSequenceClassification)
    with pytest.raises(ValueError, match="needs attention_mask, or pad_token_id"):
        model(ids)
    assert model(ids[:1]).logits.shape == (1, 2)
    assert model(ids, attention_mask=torch.ones_like(ids)).logits.shape == (3, 2)


@pytest.mark.parametrize("kind", ["modern", "encoder"])
def test_tokens_are_labelled_and_answers_found(kind, build, ids):
    tagger = build(kind, GroundupForTokenClassification, num_labels=5)
    output = tagger(ids, labels=ids % 5)
    torch.testing.assert_close(output.loss, cross_entropy(output.logits.flatten(0, 1), (ids % 5).flatten()))
    finder = build(kind, GroundupForQuestionAnswering)
    starts, ends = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    output = finder(ids, start_positions=starts, end_positions=ends)
    assert output.start_logits.shape == output.end_logits.shape == (3, 40)
    wanted = (cross_entropy(output.start_logits, starts) + cross_entropy(output.end_logits, ends)) / 2
    torch.testing.assert_close(output.loss, wanted)


def rows_for(model_class):
    """Return eight rows; their labels are unevenly many wherever the head counts them."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(1, 199, (8, 16), generator=generator)
    if model_class is GroundupForSequenceClassification:
        return [{"input_ids": row, "labels": row[0] % 2} for row in ids]
    if model_class is GroundupForTokenClassification:
        return [{"input_ids": row, "labels": row % 2} for row in ids]
    lengths = torch.randint(2, 17, (8, 1), generator=generator)
    return [
        {"input_ids": row, "labels": row.where(torch.arange(16) < length, -100)} for row, length in zip(ids, lengths)
    ]


@pytest.mark.parametrize(
    ("model_class", "kind", "knobs"),
    [
        (GroundupForCausalLM, "modern", {}),
        (GroundupForMaskedLM, "encoder", {}),
        (GroundupForSequenceClassification, "modern", {"pad_token_id": 0}),
        (GroundupForTokenClassification, "encoder", {}),
        (GroundupForConditionalGeneration, "modern", {"is_encoder_decoder": True, "decoder_start_token_id": 0}),
    ],
)
def test_the_trainer_takes_the_same_step_at_once_and_in_parts(model_class, kind, knobs, build, tmp_path):
    # transformers' own heads that leave num_items_in_batch alone step four times as far in four parts.
    weights, losses = [], []
    for rows, parts in ((8, 1), (2, 4)):
        model = build(kind, model_class, **knobs)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=rows, gradient_accumulation_steps=parts, max_steps=1,
            learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True,
            report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=rows_for(model_class))
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        weights.append([parameter.detach() for parameter in model.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for at_once, in_parts in zip(*weights, strict=True):
        torch.testing.assert_close(at_once, in_parts, rtol=1e-4, atol=1e-5)
