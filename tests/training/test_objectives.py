"""What is minimised, against the loss that the model itself gives."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from groundup.data.tokens import TokenStream
from groundup.data.windows import Masking, PackedRows
from groundup.modeling import (
    GroundupConfig,
    GroundupForCausalLM,
    GroundupForConditionalGeneration,
    GroundupForMaskedLM,
)
from groundup.training import objectives
from groundup.training.objectives import PairLoss, TokenLoss, loss_in_pieces, loss_of_logits

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32, "zero_init": False}
DOCUMENTS = [[7, 8, 9], [10, 11, 12, 13, 14], [15, 16], [17] * 20, [18, 19, 20, 21]]


def decoder():
    torch.manual_seed(0)
    return GroundupForCausalLM(GroundupConfig(**SIZES)).eval()


def stock():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4)).eval()


def with_a_bias():
    model = stock()
    model.set_output_embeddings(nn.Linear(32, 60))
    return model


@pytest.mark.parametrize(("make", "plain"), [(decoder, True), (stock, True), (with_a_bias, False)])
def test_the_summed_loss_is_the_models_own_mean_times_the_labels(make, plain):
    model, ids = make(), torch.randint(0, 60, (3, 20))
    labels = torch.cat((ids[:, 1:], torch.full((3, 1), -100)), 1)
    labels[0, 3:9] = -100
    mean = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), labels.flatten())
    objective, whole_logits = TokenLoss(model), []
    model.get_output_embeddings().register_forward_hook(lambda *_: whole_logits.append(1))
    torch.testing.assert_close(objective(ids, labels), mean * (labels != -100).sum())
    assert bool(whole_logits) is not plain


@pytest.mark.parametrize("vectors", [1, 50, 64])
def test_logits_in_pieces_give_the_loss_and_the_gradients_of_logits_at_once(vectors, monkeypatch):
    monkeypatch.setattr(objectives, "LARGEST_LOGITS", 60 * 16)  # 16 vectors a piece
    torch.manual_seed(0)
    hidden, head = torch.randn(vectors, 32, requires_grad=True), torch.randn(60, 32, requires_grad=True)
    targets = torch.randint(60, (vectors,))
    sizes = []

    def noting(piece, head, wanted):
        sizes.append(piece.numel() // 32 * 60)
        return loss_of_logits(piece, head, wanted)

    whole = loss_of_logits(hidden, head, targets)
    pieces = loss_in_pieces(noting, hidden, head, targets)
    torch.testing.assert_close(pieces, whole)
    gradients = torch.autograd.grad(pieces, (hidden, head))
    torch.testing.assert_close(gradients, torch.autograd.grad(whole, (hidden, head)))
    assert max(sizes) <= 60 * 16 and len(sizes) == 2 * -(-vectors // 16)  # forward, and once more on the way back


@pytest.mark.parametrize("make", [decoder, stock])
def test_packed_rows_have_the_loss_of_the_documents_alone(make):
    model = make()
    ids = np.concatenate([[0, *document] for document in DOCUMENTS])
    rows = PackedRows(TokenStream([ids], {}), context_length=24, end_of_text=0)
    packed = sum(TokenLoss(model)(**rows.batch([row])) for row in range(len(rows)))
    alone = 0
    for number, document in enumerate(DOCUMENTS):
        following = [0] if number + 1 < len(DOCUMENTS) else []  # what ends a document is predicted too
        text = torch.tensor([[0, *document, *following]])
        alone = alone + TokenLoss(model)(text[:, :-1], text[:, 1:])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_the_masked_loss_is_the_encoders_own():
    torch.manual_seed(0)
    model = GroundupForMaskedLM(GroundupConfig(**SIZES, is_causal=False)).eval()
    batch = Masking(5, {0}, seed=0).apply(torch.randint(6, 60, (3, 20)), range(3))
    counted = (batch["labels"] != -100).sum()
    torch.testing.assert_close(TokenLoss(model)(**batch), model(**batch).loss * counted)


def test_the_loss_of_a_pair_is_its_own_mean_times_the_labels_and_no_padding_is_read():
    torch.manual_seed(0)
    whole = {"is_encoder_decoder": True, "decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}
    model = GroundupForConditionalGeneration(GroundupConfig(**SIZES | whole)).eval()
    read, labels = torch.randint(6, 60, (3, 12)), torch.randint(6, 60, (3, 7))
    labels[1, 4:], mask = -100, torch.ones_like(read)
    mask[2, 5:] = 0
    loss = PairLoss(model)(read, mask, labels)
    own = model(input_ids=read, attention_mask=mask, labels=labels).loss * (labels != -100).sum()
    torch.testing.assert_close(loss, own)
    other = read.masked_fill(mask == 0, 5)
    torch.testing.assert_close(PairLoss(model)(other, mask, labels), loss)
    fewer = labels.masked_fill(torch.arange(7) == 2, -100)
    assert PairLoss(model)(read, mask, fewer) < loss


def test_in_bf16_the_loss_is_the_same_but_for_rounding_and_is_itself_not_rounded():
    model, ids = decoder(), torch.randint(0, 60, (3, 20))
    exact = TokenLoss(model)(ids, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = TokenLoss(model)(ids, ids)
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0)
    halves = torch.randn(5, 32).bfloat16(), torch.randn(60, 32).bfloat16()
    assert loss_of_logits(*halves, torch.arange(5)).dtype == torch.float32


def test_large_logits_in_bf16_are_made_in_bf16_a_piece_at_a_time(monkeypatch):
    monkeypatch.setattr(objectives, "LARGEST_LOGITS", 60 * 16)
    model, ids, kinds = decoder(), torch.randint(0, 60, (3, 20)), []
    exact = TokenLoss(model)(ids, ids)
    exact.backward()
    wanted = model.lm_head.weight.grad.clone()
    model.zero_grad()

    def noting(piece, head, targets):
        kinds.append((piece.size(0), head.dtype))
        return loss_of_logits(piece, head, targets)

    objective = TokenLoss(model)
    objective._of_logits = noting
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = objective(ids, ids)
    rounded.backward()
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0)
    assert (model.lm_head.weight.grad - wanted).norm() < 0.05 * wanted.norm()
    assert {rows for rows, _ in kinds} == {16, 12} and {kind for _, kind in kinds} == {torch.bfloat16}


@pytest.mark.parametrize(("largest", "at_once"), [(60 * 60, True), (60 * 59, False)])
def test_a_compiled_loss_takes_its_logits_at_once_unless_they_are_too_large(largest, at_once, monkeypatch):
    model, ids, calls = decoder(), torch.randint(0, 60, (3, 20)), []

    def noting(function):
        return lambda *given: calls.append(1) or function(*given)

    monkeypatch.setattr(objectives, "LARGEST_LOGITS", largest)
    monkeypatch.setattr(torch, "compile", noting)
    torch.testing.assert_close(TokenLoss(model, compiled=True)(ids, ids), TokenLoss(model)(ids, ids))
    assert bool(calls) is at_once
