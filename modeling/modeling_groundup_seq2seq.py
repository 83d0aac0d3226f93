"""The whole original Transformer: an encoder that reads one text, and a decoder that writes another from it.

Both are the model of `modeling_groundup`; the decoder's blocks also attend to the encoder's output (Vaswani et al.
2017, figure 1). The two share their token embeddings (section 3.4), and the head does too where `tie_word_embeddings`
is set.
"""

import copy
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring, can_return_tuple

from .configuration_groundup import GroundupConfig
from .generation_groundup import CACHE, GroundupGenerationMixin, either_cache_name
from .modeling_groundup import GroundupModel, GroundupPreTrainedModel


def half_of(config: GroundupConfig, **fields: Any) -> GroundupConfig:
    """Return the config of one of the two models: a copy of the whole one with these fields changed."""
    half = copy.deepcopy(config)
    for name, value in {"is_encoder_decoder": False, **fields}.items():
        setattr(half, name, value)
    return half


@auto_docstring
class GroundupForConditionalGeneration(GroundupPreTrainedModel, GroundupGenerationMixin):
    """Read one text and write another: score, at each position of it, every token as the one that comes next."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "encoder.embed_tokens.weight"}

    def __init__(self, config: GroundupConfig):
        super().__init__(config)
        if not config.is_encoder_decoder:
            raise ValueError("GroundupForConditionalGeneration needs is_encoder_decoder=True")
        self.encoder = GroundupModel(half_of(config, is_causal=False, add_cross_attention=False))
        self.decoder = GroundupModel(half_of(config, add_cross_attention=True))
        self.decoder.embed_tokens = None  # it is given embeddings, from the encoder's table
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head._is_zero_head = True
        self.loss_type = "ForMaskedLM"  # cross-entropy as it is: here the decoder's inputs are shifted, not the labels
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embeddings, which encoder and decoder share."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put other token embeddings in their place."""
        self.encoder.embed_tokens = value

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Return what the decoder reads to predict labels (B, T): the start token, then all labels but the last.

        Positions without a label (-100) end a row; what is read there reaches no loss, so any token will do.
        """
        start = torch.full_like(labels[:, :1], self.config.decoder_start_token_id)
        shifted = torch.cat((start, labels[:, :-1]), dim=1)
        return shifted.masked_fill(shifted == -100, self.config.decoder_start_token_id)

    @either_cache_name
    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: ModelOutput | tuple | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Turn token ids (B, S) and the decoder's (B, T) into logits (B, T, V).

        With `labels` (B, T), the text to write, the decoder's inputs are made from them and the mean loss [nats] is
        computed; -100 where a label does not count.

        Args:
            cache (`Cache`, *optional*):
                Keys and values of the tokens before these, which are added; `past_key_values` is another name for it.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        elif not isinstance(encoder_outputs, ModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if decoder_inputs_embeds is None:
            if decoder_input_ids is None and labels is not None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            if decoder_input_ids is None:
                raise ValueError("the decoder has nothing to read: give decoder_input_ids or labels")
            decoder_inputs_embeds = self.encoder.embed_tokens(decoder_input_ids)
        outputs = self.decoder(
            inputs_embeds=decoder_inputs_embeds,
            attention_mask=decoder_attention_mask,
            cache=cache,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


__all__ = ["GroundupForConditionalGeneration"]
