import math

import numpy as np
import pytest
import torch

from groundup.data.conversations import Conversation
from groundup.data.encoding import ConversationRows
from groundup.evaluation.instruction import (
    Answer,
    answer_loss,
    answer_rows,
    repetition,
    sample_table,
    score_answers,
    write_answers,
)
from groundup.evaluation.metrics_json import family_lines, family_notes, section
from groundup.modeling import GroundupConfig, GroundupForCausalLM, GroundupForConditionalGeneration
from groundup.tokenization.training import train_bpe

VOCABULARY = 300


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["Hello, hello. Be brief, be very brief and say no more. " * 10], VOCABULARY)


def model_of(**fields):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64, "vocab_size": VOCABULARY}
    kind = GroundupForConditionalGeneration if fields.get("is_encoder_decoder") else GroundupForCausalLM
    return kind(GroundupConfig(**sizes, zero_init=False, initializer_range=0.2, **fields)).eval()


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def model(request):
    pair = {"is_encoder_decoder": True, "decoder_start_token_id": 0}
    return model_of(**(pair if request.param == "encoder-decoder" else {}))


@pytest.fixture(scope="module")
def rows():
    chance = np.random.default_rng(0)
    return ConversationRows.from_lists(
        [
            (chance.integers(6, VOCABULARY, length).tolist(), [False] * cut + [True] * (length - cut))
            for length, cut in zip(chance.integers(8, 60, 40), chance.integers(1, 7, 40))
        ]
    )


def test_the_loss_of_each_row_is_the_same_alone_and_among_others(model, rows):
    """No row sees another, whatever stands beside it and however much it is filled up."""
    together = answer_loss(model, rows)
    alone = [answer_loss(model, rows, [index]) for index in range(len(rows))]
    assert together.tokens == sum(one.tokens for one in alone) == int(rows.trained.sum())
    assert together.nats == pytest.approx(sum(one.nats for one in alone), rel=1e-5)


def test_the_loss_is_transformers_own_where_labels_mask_the_prompt(rows):
    model = model_of()
    ids, trained = rows.row(0)
    labels = torch.from_numpy(np.where(trained, ids, -100).astype(np.int64))[None]
    peer = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], labels=labels).loss.item()
    assert answer_loss(model, rows, [0]).mean == pytest.approx(peer, rel=1e-5)


def test_the_loss_of_no_token_is_not_a_number():
    empty = ConversationRows.from_lists([([1, 2, 3], [False, False, False])])
    assert math.isnan(answer_loss(model_of(), empty).mean)


def test_answers_written_together_are_those_written_alone(model, tokenizer):
    chance = np.random.default_rng(2)
    prompts = [chance.integers(6, VOCABULARY, length).tolist() for length in (3, 9, 20, 5)]
    together = write_answers(model, tokenizer, prompts, {5}, longest=12)
    alone = [write_answers(model, tokenizer, [prompt], {5}, longest=12)[0] for prompt in prompts]
    assert together == alone


def test_an_answer_ends_before_its_end_token_or_did_not_stop(tokenizer):
    model = model_of()
    prompt = tokenizer.encode("Hello")
    free = write_answers(model, tokenizer, [prompt], {5}, longest=8)[0]
    first = model(torch.tensor([prompt])).logits[0, -1].argmax().item()
    assert not free.stopped and free.text
    assert write_answers(model, tokenizer, [prompt], {first}, longest=8)[0] == Answer("", stopped=True)


def test_a_prompt_that_fills_the_context_gets_no_answer(tokenizer):
    written = write_answers(model_of(), tokenizer, [[7] * 64, [7] * 63, [7, 8]], {5}, longest=4)
    assert written[0] == Answer("", stopped=False)
    assert written[1].text and written[2].text


def test_measures_tell_right_from_wrong_stopping_repeating_and_copying():
    answers = [
        Answer("quatre-vingts", True),
        Answer(" deux ", True),
        Answer("one two three", True),
        Answer("so it is so it is so it is", False),
    ]
    references = ["quatre-vingts", "deux", "three two one", "no"]
    measures = score_answers(answers, references, trained=["one two three", "deux"])
    assert measures["exact_match"] == 0.5
    assert measures["stopped"] == 0.75
    assert measures["copied"] == 0.25  # a right answer that was trained elsewhere is no copy
    assert measures["repetition"] == pytest.approx((1 - 3 / 6) / 4)
    perfect = score_answers(answers[:1], references[:1])
    assert (perfect["chrf"], perfect["rouge_l"]) == (100, 1)


def test_repetition_of_a_short_text_is_none():
    assert repetition("a a a") == 0


def test_each_family_has_rows_of_its_own_beside_those_of_all():
    conversations = [
        Conversation([{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}], family)
        for answer, family in (("a", "one"), ("b", "one"), ("c", "two"))
    ]
    about = {"dataset": "set", "split": "test", "seed": 0}
    rows = answer_rows(conversations, [Answer("a", True), Answer("x", True), Answer("c", False)], (), about)
    exact = {row["dataset"]: (row["value"], row["count"]) for row in rows if row["name"] == "exact_match"}
    assert exact == {"set": (pytest.approx(2 / 3), 3), "set/one": (0.5, 2), "set/two": (1.0, 1)}
    families = section(rows, "families")
    assert family_notes(families) == ["exact match by family, test: one 50.0%, two 100.0%"]
    header, lines = family_lines(families)
    assert header[2] == "exact match" and [line[:3] for line in lines] == [
        ["one", "test", "50.0%"],
        ["two", "test", "100.0%"],
    ]
    assert all(row["dataset"] == "set" for row in section(rows, "results"))


def test_samples_are_a_table_that_no_text_can_break():
    row = Conversation([{"role": "user", "content": "a|b\nc"}, {"role": "assistant", "content": "d"}])
    table = sample_table([row], [Answer("e\n\nf", False)], [Answer("d", True)])
    assert table.splitlines()[2] == "| a\\|b c | d | e f … | d |"
