"""The linear part of a classifier: what is fitted is what the network computes, and how both are weighed."""

import numpy as np
import pytest
import torch
from scipy import sparse

from groundup.data.encoding import ExampleRows
from groundup.modeling import GroundupConfig
from groundup.modeling.modeling_groundup import GroundupBagOfTokens
from groundup.training.objectives import bag_scores, count_features, fit_bag, scales_of, usual_scale


def bag_of(labels):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    bag = GroundupBagOfTokens(GroundupConfig(**sizes, num_labels=labels, classifier_bag_buckets=128))
    bag.joins[10:] = True
    return bag


def rows_of(count, labels, seed=0):
    """Return rows of which every label has a token of its own among others."""
    chance = np.random.default_rng(seed)
    truth = chance.integers(0, labels, count)
    ids = [np.concatenate((chance.integers(0, 50, chance.integers(1, 20)), [7 * n] * 3)) for n in truth]
    return ExampleRows([one.astype(np.int32) for one in ids], truth)


@pytest.mark.parametrize("labels", [2, 3])
def test_the_network_computes_what_was_fitted(labels):
    bag, rows = bag_of(labels), rows_of(60, labels)
    counts = count_features(bag, rows)
    fit_bag(bag, counts, rows.labels, factor=2.0)
    batch = rows.batch(range(60), 0)
    logits = bag(batch["input_ids"], batch["attention_mask"]).detach().numpy()
    np.testing.assert_allclose(logits, bag_scores(bag, counts), atol=1e-5)
    assert (logits.argmax(1) == rows.labels).mean() > 0.95
    fit_bag(bag, counts, rows.labels)
    np.testing.assert_allclose(logits, 2 * bag_scores(bag, counts), atol=1e-5)


def test_a_label_without_rows_is_never_the_likeliest():
    bag, rows = bag_of(4), rows_of(60, 3)
    counts = count_features(bag, rows)
    fit_bag(bag, counts, rows.labels)
    scores = bag_scores(bag, counts)
    assert (scores[:, 3] == -1).all() and (scores.argmax(1) != 3).all()


def test_with_class_weights_a_rare_label_is_found_more_often():
    chance = np.random.default_rng(0)
    truth = (np.arange(300) % 20 == 0).astype(np.int64)
    told, found = chance.random(300) < np.where(truth, 0.7, 0.3), []
    for class_weights in (False, True):
        bag = bag_of(2)
        counts = sparse.csr_array(np.eye(len(bag.weight))[told.astype(int)])  # one of two tokens, which hardly tells
        fit_bag(bag, counts, truth, class_weights=class_weights)
        found.append((bag_scores(bag, counts).argmax(1) == 1)[truth == 1].mean())
    assert found[0] < 0.1 and found[1] > 0.5


def test_factors_prefer_what_tells_the_labels_and_few_rows_change_little():
    chance = np.random.default_rng(0)
    truth = chance.integers(0, 3, 400)
    good, noise = np.eye(3)[truth] + 0.3 * chance.normal(size=(400, 3)), chance.normal(size=(400, 3))
    many, few = (scales_of([good[:rows], noise[:rows]], truth[:rows], [1.0, 1.0]) for rows in (400, 2))
    assert many[0] > 3 and many[1] < many[0] / 10
    assert np.abs(np.log(few)).max() < np.abs(np.log(many)).max() / 2


def test_the_usual_scale_makes_probabilities_of_scores():
    bag, rows, others = bag_of(3), rows_of(300, 3), rows_of(300, 3, seed=1)
    counts = count_features(bag, rows)
    scale = usual_scale(bag, counts, rows.labels)
    fit_bag(bag, counts, rows.labels)
    logits, truth = torch.from_numpy(bag_scores(bag, count_features(bag, others))), torch.from_numpy(others.labels)
    loss = torch.nn.functional.cross_entropy
    assert loss(scale * logits, truth) < 0.5 * loss(logits, truth)
