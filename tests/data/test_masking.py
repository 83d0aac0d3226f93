"""Hidden tokens: which, how many, and always the same ones."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.data.masking import MASKED_SHARE, Masking

MASK, SPECIAL = 7, {0, 1}


def apply(ids, samples, seed=0):
    return Masking(MASK, SPECIAL, seed).apply(ids, samples)


@given(st.integers(0, 10), st.lists(st.integers(0, 1000), min_size=1, max_size=5))
def test_every_token_is_either_seen_or_a_label_and_special_ones_are_seen(seed, samples):
    ids = torch.randint(0, 50, (len(samples), 40), generator=torch.Generator().manual_seed(seed))
    batch = apply(ids, samples, seed)
    hidden = batch["labels"] != -100
    assert torch.equal(torch.where(hidden, batch["labels"], batch["input_ids"]), ids)
    assert (batch["input_ids"][hidden] == MASK).all()
    assert not hidden[(ids == 0) | (ids == 1)].any()


def test_a_sample_hides_the_same_tokens_in_whatever_batch_it_stands():
    ids = torch.randint(2, 50, (4, 30))
    together = apply(ids, [5, 6, 7, 8])
    for row, sample in enumerate([5, 6, 7, 8]):
        alone = apply(ids[row : row + 1], [sample])
        assert torch.equal(alone["labels"][0], together["labels"][row])
    assert not torch.equal(apply(ids[:1], [5])["labels"], apply(ids[:1], [9])["labels"])
    assert not torch.equal(apply(ids[:1], [5])["labels"], apply(ids[:1], [5], seed=1)["labels"])


def test_the_share_hidden_is_the_one_that_is_said():
    hidden = (apply(torch.full((200, 100), 5), range(200))["labels"] != -100).float().mean().item()
    assert abs(hidden - MASKED_SHARE) < 0.02
