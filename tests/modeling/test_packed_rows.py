"""Rows packed with several documents: each sees only itself, with padding on any side, and any kernel, or is refused.

A document begins where `position_ids` start again, as `DataCollatorWithFlattening` and TRL write them.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DataCollatorWithFlattening, StaticCache

from groundup.modeling import GroundupForCausalLM, GroundupForMaskedLM
from groundup.modeling.modeling_groundup import documents_of

DECODERS = ["modern", "gpt2", "sliding"]
NEAR = {"rtol": 1e-4, "atol": 1e-4}


pytestmark = pytest.mark.usefixtures("no_gradients")


def logits(model, *arguments, **named):
    return model(*arguments, **named).logits


@st.composite
def packed_rows(draw):
    """Draw the lengths of each row's documents, the side on which it is padded, and what is under the padding."""
    lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)
    rows = draw(st.lists(lengths, min_size=1, max_size=3))
    sides = draw(st.lists(st.sampled_from(["left", "right", "both"]), min_size=len(rows), max_size=len(rows)))
    return rows, sides, draw(st.sampled_from(["zeros", "ones", "going on"])), draw(st.integers(0, 4))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=packed_rows(), kind=st.sampled_from([*DECODERS, "encoder", "learned encoder"]), data=st.data())
def test_documents_stay_apart_whatever_else_of_the_batch_is_padded(build, case, kind, data):
    rows, sides, under, extra = case
    model = build(kind, GroundupForMaskedLM if "encoder" in kind else GroundupForCausalLM)
    model.set_attn_implementation(data.draw(st.sampled_from(["sdpa", "eager"])))
    width = max(map(sum, rows)) + extra
    ids, positions, mask, places = [], [], [], []
    for lengths, side in zip(rows, sides):
        spare = width - sum(lengths)
        left = {"left": spare, "right": 0, "both": spare // 2}[side]
        row = torch.randint(1, 199, (sum(lengths),), generator=torch.Generator().manual_seed(sum(lengths))).tolist()
        filler = {"zeros": [0] * width, "ones": [1] * width, "going on": [*range(width)]}[under]
        ids.append([0] * left + row + [0] * (spare - left))
        own = [place for length in lengths for place in range(length)]
        positions.append(filler[:left] + own + filler[: spare - left])
        mask.append([0] * left + [1] * len(row) + [0] * (spare - left))
        begins = [left + sum(lengths[:number]) for number in range(len(lengths))]
        places.append([(begin, begin + length) for begin, length in zip(begins, lengths)])
    batch, named = torch.tensor(ids), {"position_ids": torch.tensor(positions), "attention_mask": torch.tensor(mask)}
    with torch.no_grad():
        together = logits(model, batch, **named, use_cache=data.draw(st.booleans()))
        for number, spans in enumerate(places):
            for begin, end in spans:
                alone = logits(model, batch[number : number + 1, begin:end])[0]
                torch.testing.assert_close(together[number, begin:end], alone, **NEAR)


def test_a_hole_in_a_document_does_not_part_it():
    positions = torch.tensor([[0, 1, 1, 1, 2, 3, 0, 1]])
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1]])
    assert documents_of(positions, mask)[mask == 1].tolist() == [0, 0, 0, 0, 1, 1]
    assert not documents_of(torch.arange(5)[None], None).any()


@pytest.mark.parametrize("options", [{}, {"return_flash_attn_kwargs": True, "return_seq_idx": True}])
def test_rows_flattened_by_transformers_collator_stay_apart(options, build, ids):
    rows = [{"input_ids": row[:length].tolist()} for row, length in zip(ids, (5, 12, 9))]
    batch = DataCollatorWithFlattening(**options)(rows)
    model, labels = build("modern"), batch["labels"]
    together = model(**batch)
    alone = torch.cat([logits(model, torch.tensor([row["input_ids"]])) for row in rows], 1)
    torch.testing.assert_close(together.logits, alone, **NEAR)
    loss = torch.nn.functional.cross_entropy(alone[0, :-1], labels[0, 1:], ignore_index=-100)
    torch.testing.assert_close(together.loss, loss, **NEAR)


@pytest.mark.parametrize("obstacle", ["flash attention, two rows", "flash attention, padding", "a static cache"])
def test_documents_that_could_not_be_kept_apart_are_refused(obstacle, build, ids):
    model, named = build("modern"), {}
    rows = ids[:2, :10] if "two rows" in obstacle else ids[:1, :10]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]).expand(len(rows), -1)
    if "static" in obstacle:
        named["past_key_values"] = StaticCache(config=model.config, max_cache_len=20)
    else:
        model.config._attn_implementation = "flash_attention_2"
    if "padding" in obstacle:
        named["attention_mask"] = torch.tensor([[1] * 8 + [0] * 2])
    with pytest.raises(ValueError, match="position_ids start again in a row"):
        model(rows, position_ids=positions, **named)
