"""An encoder and a decoder: our own pair, and the one that transformers makes of two models."""

import pytest
import torch
from transformers import EncoderDecoderConfig, EncoderDecoderModel

from groundup.modeling import GroundupForCausalLM, GroundupForConditionalGeneration, GroundupModel

WHOLE = {"is_encoder_decoder": True, "decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}
GREEDY = {"do_sample": False, "max_new_tokens": 12}
NEAR = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def pair(build):
    def pair(kind="modern", **knobs):
        return build(kind, GroundupForConditionalGeneration, **WHOLE | knobs)

    return pair


@pytest.fixture
def couple(config_of, perturb):
    """Return two models of ours in transformers' own frame."""

    def couple():
        encoder, decoder = config_of("encoder"), config_of("cross", is_decoder=True)
        config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
        torch.manual_seed(0)
        model = perturb(EncoderDecoderModel(config=config))
        model.generation_config.update(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2)
        return model

    return couple


def with_padding(ids):
    """Yield the rows with padding on the right and on the left, each with its mask."""
    pad = torch.zeros(len(ids), 4, dtype=torch.long)
    for padded in (torch.cat((ids, pad), 1), torch.cat((pad, ids), 1)):
        yield padded, (padded != 0).long()


def learns_to_reverse(model, steps=800):
    """Train on rows of digits and their reversal; the share of rows that `generate` then reverses without a fault."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        ids = torch.randint(3, 13, (32, 5), generator=generator)
        labels = torch.cat((ids.flip(1), torch.full((32, 1), 2)), 1)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
    ids = torch.randint(3, 13, (50, 5), generator=generator)
    written = model.eval().generate(ids, **GREEDY)[:, 1:6]
    return (written == ids.flip(1)[:, : written.shape[1]]).all(1).float().mean().item()


@pytest.mark.parametrize("kind", ["modern", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_it_writes_the_same_with_and_without_the_cache_and_whatever_the_padding(kind, tied, pair, ids):
    model, ids = pair(kind, tie_word_embeddings=tied), ids[:, :9]
    greedy = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, use_cache=False, **GREEDY), greedy)
    assert torch.equal(model.generate(ids, cache_implementation="static", **GREEDY), greedy)
    beams = model.generate(ids, num_beams=3, **GREEDY)
    assert torch.equal(model.generate(ids, num_beams=3, use_cache=False, **GREEDY), beams)
    for padded, mask in with_padding(ids):
        assert torch.equal(model.generate(padded, attention_mask=mask, **GREEDY), greedy)


@pytest.mark.parametrize("maker", ["pair", "couple"])
def test_the_encoder_looks_both_ways_and_its_padding_is_not_seen(maker, request, ids):
    model, ids, text = request.getfixturevalue(maker)(), ids[:, :9], ids[:, 10:16]
    with torch.no_grad():
        alone = model(input_ids=ids, decoder_input_ids=text).logits
        ones = model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=text).logits
        changed = ids.clone()
        changed[:, -1] = 5
        assert (model(input_ids=changed, decoder_input_ids=text).logits[:, 0] != alone[:, 0]).any(-1).all()
        torch.testing.assert_close(ones, alone, **NEAR)
        for padded, mask in with_padding(ids):
            seen = model(input_ids=padded, attention_mask=mask, decoder_input_ids=text).logits
            torch.testing.assert_close(seen, alone, **NEAR)


def test_the_encoders_output_may_be_given(pair, ids):
    model, ids, text = pair(), ids[:, :9], ids[:, 10:16]
    with torch.no_grad():
        encoded = model.get_encoder()(ids)
        wanted = model(input_ids=ids, decoder_input_ids=text).logits
        for given in (encoded, (encoded.last_hidden_state,)):
            assert torch.equal(model(encoder_outputs=given, decoder_input_ids=text).logits, wanted)
        kept = model(encoder_outputs=encoded, decoder_input_ids=text, logits_to_keep=2).logits
    torch.testing.assert_close(kept, wanted[:, -2:])
    with pytest.raises(ValueError, match="give decoder_input_ids or labels"):
        model(input_ids=ids)


def test_labels_are_shifted_into_the_decoder_and_padding_among_them_does_not_count(pair, ids):
    model, labels = pair(), ids[:, :7].clone()
    labels[0, 4:] = -100
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    assert shifted[0].tolist() == [1, *labels[0, :4].tolist(), 1, 1]
    with torch.no_grad():
        output = model(input_ids=ids[:, 8:16], labels=labels)
        short = model(input_ids=ids[:1, 8:16], labels=labels[:1, :4])
        wanted = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
        torch.testing.assert_close(output.loss, wanted)
        torch.testing.assert_close(output.logits[:1, :4], short.logits, **NEAR)


@pytest.mark.parametrize("tied", [True, False])
def test_one_table_embeds_both_texts_also_after_saving_and_growing(tied, pair, tmp_path, ids):
    model = pair(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    again = GroundupForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        wanted = model(input_ids=ids, labels=ids).logits
        assert torch.equal(again(input_ids=ids, labels=ids).logits, wanted)
        again.resize_token_embeddings(210)
        assert again.lm_head.out_features == len(again.get_input_embeddings().weight) == again.config.vocab_size == 210
        assert torch.equal(again(input_ids=ids, labels=ids).logits[..., :199], wanted)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied


def test_a_kernel_chosen_later_reaches_both_halves(pair, ids):
    model, found = pair(), []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            output = model(input_ids=ids[:, :9], labels=ids[:, :9].contiguous(), output_attentions=attention == "eager")
        found.append(output.logits)
        if attention == "eager":
            assert len(output.encoder_attentions) == len(output.decoder_attentions) == len(output.cross_attentions) == 2
    torch.testing.assert_close(*found, **NEAR)


def test_a_kernel_chosen_later_is_right_also_in_transformers_frame_around_finished_models(build, ids):
    # There the models' configs are replaced after their layers were made, and the two disagree about the kernel.
    found = []
    for attention in ("eager", "sdpa"):
        parts = build("encoder", GroundupModel), build("cross", GroundupForCausalLM)
        for part in parts:
            part.set_attn_implementation("eager")
        model = EncoderDecoderModel(encoder=parts[0], decoder=parts[1]).eval()
        model.set_attn_implementation(attention)
        mask = torch.ones_like(ids)
        mask[0, 30:] = 0
        with torch.no_grad():
            found.append(model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :9]).logits)
    torch.testing.assert_close(*found, **NEAR)


def test_two_of_our_models_write_in_transformers_frame(couple, ids):
    model, ids = couple(), ids[:, :9]
    greedy = model.generate(ids, **GREEDY)
    for ways in ({"use_cache": False}, {"num_beams": 1, "cache_implementation": "static"}):
        assert torch.equal(model.generate(ids, **GREEDY, **ways), greedy)
    for padded, mask in with_padding(ids):
        assert torch.equal(model.generate(padded, attention_mask=mask, **GREEDY), greedy)


def test_saved_models_of_ours_become_transformers_encoder_decoder(build, tmp_path, ids):
    build().save_pretrained(tmp_path / "decoder")
    build("encoder", GroundupModel).save_pretrained(tmp_path / "encoder")
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder")
    assert model.config.decoder.add_cross_attention
    assert not model.config.encoder.is_causal
    model.save_pretrained(tmp_path / "both")
    again = EncoderDecoderModel.from_pretrained(tmp_path / "both")
    with torch.no_grad():
        found = [each.eval()(input_ids=ids, decoder_input_ids=ids[:, :9]).logits for each in (model, again)]
    torch.testing.assert_close(*found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["modern", "gpt2"])
def test_it_learns_to_reverse_a_row_of_digits(kind, config_of):
    torch.manual_seed(0)
    model = GroundupForConditionalGeneration(config_of(kind, **WHOLE, tie_word_embeddings=True))
    assert learns_to_reverse(model) > 0.9


@pytest.mark.slow
def test_transformers_frame_around_two_of_ours_learns_it_too(config_of):
    torch.manual_seed(0)
    encoder, decoder = config_of("encoder"), config_of("cross", is_decoder=True)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = EncoderDecoderModel(config=config)
    model.generation_config.update(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2)
    assert learns_to_reverse(model) > 0.9


def test_what_is_no_pair_is_refused(build, config_of):
    with pytest.raises(ValueError, match="needs is_encoder_decoder=True"):
        GroundupForConditionalGeneration(config_of())
    with pytest.raises(ValueError, match="GroundupForConditionalGeneration holds them"):
        GroundupForCausalLM(config_of(**WHOLE))
