"""What a classifier minimises beside its labels: smoothing, noise, and the language that it keeps."""

import torch

from groundup.modeling import GroundupConfig, GroundupForCausalLM, GroundupForSequenceClassification
from groundup.training.objectives import LabelLoss

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "pad_token_id": 0, "zero_init": False}


def with_language(**options):
    """Return an objective with everything beside the labels, the base whose language it keeps, and rows for it."""
    torch.manual_seed(0)
    base = GroundupForCausalLM(GroundupConfig(**SIZES)).eval()
    model = GroundupForSequenceClassification(GroundupConfig(**SIZES, num_labels=3)).eval()
    model.model.load_state_dict(base.model.state_dict())
    ids, mask = torch.randint(1, 50, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    ids[1, 4:], mask[1, 4:] = 0, 0
    return LabelLoss(model, language_head=base.lm_head.weight.detach(), **options), base, ids, mask


def test_smoothing_spreads_its_share_over_all_labels():
    objective, _, ids, mask = with_language()
    labels = torch.tensor([0, 2, 1])
    logs = objective.model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    expected = -(0.8 * logs[range(3), labels] + 0.2 * logs.mean(1)).sum()
    torch.testing.assert_close(LabelLoss(objective.model, smoothing=0.2).eval()(ids, mask, labels), expected)


def test_a_row_that_does_not_count_adds_nothing_to_either_loss():
    objective, _, ids, mask = with_language()
    objective.eval()
    whole = objective(ids, mask, torch.tensor([0, 2, -100]))
    torch.testing.assert_close(whole, objective(ids[:2], mask[:2], torch.tensor([0, 2])))


def test_token_dropout_applies_only_in_training_and_the_targets_are_the_original_tokens():
    objective, base, ids, mask = with_language(token_dropout=0.5, language_weight=0.5)
    labels, seen = torch.tensor([0, 2, 1]), []
    objective.model.get_input_embeddings().register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    clean = LabelLoss(objective.model).eval()
    for training in (True, False):
        seen.clear()
        objective.train(training)
        objective.model.eval()  # no dropout
        loss = objective(ids, mask, labels)
        read = seen[0]
        assert torch.equal(read, ids) is not training
        language = 0
        for row, length in enumerate(mask.sum(1).tolist()):
            logits = base(input_ids=read[row : row + 1, :length]).logits[0, :-1]
            language = language + torch.nn.functional.cross_entropy(logits, ids[row, 1:length])
        torch.testing.assert_close(loss, clean(read, mask, labels) + 0.5 * language)
