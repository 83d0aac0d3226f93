"""What a classifier starts from: nothing, a language model, an encoder, another classifier, or an adapter to one.

An adapter is folded into its base first, so that what is trained is a model like any other. Of a classifier the head
stays: what it knows of a label is kept for that label, whatever place the label has in the new rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from groundup.common.errors import InputError, user_path
from groundup.data.encoding import for_classifying
from groundup.inference.folder import AUTO_CLASSES
from groundup.inference.loading import context_of, is_adapter, load_adapter, load_network
from groundup.inference.saving import save_model
from groundup.modeling import GroundupConfig
from groundup.tokenization.folder import load_tokenizer
from groundup.training.checkpoint import pretrained_elsewhere
from groundup.training.settings import ClassifySettings

LONGEST_CONTEXT, SHORTEST_CONTEXT = 512, 32  # of a new model, unless it is asked for another [tokens]
WHOLE_TEXTS = 0.98  # share of the texts that a new model's context holds whole
OUR_DROPOUTS = ("embedding_dropout", "residual_dropout", "classifier_dropout")
OTHER_DROPOUTS = (
    "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "classifier_dropout", "embd_pdrop",
    "hidden_dropout_prob", "resid_pdrop",
)  # fmt: skip
FOLDED = "folded"  # under work/: the model that an adapter and its base make


@dataclass(frozen=True)
class Start:
    """What the choices depend on: the longest row in tokens, and of `--model` its width and what it can do.

    `is_ours` says that the network is our own, `from_elsewhere` that its weights are somebody else's.
    `predicts` is "clm" for a model with a head for next tokens, "mlm" for one with a head for masked ones, else None;
    `labels` are those of a classifier, in its order.
    """

    context_length: int
    width: int | None = None
    is_ours: bool = True
    from_elsewhere: bool = False
    predicts: Literal["clm", "mlm"] | None = "clm"
    labels: tuple[str, ...] = ()
    dropouts: tuple[str, ...] = OUR_DROPOUTS


def base_of(settings: ClassifySettings, work: Path) -> str | Path | None:
    """`--model`, or where it is an adapter the folder in `work` with the model that it makes, which is made once.

    Raises `InputError` for an adapter that another one is wanted on.
    """
    if settings.model is None or not is_adapter(settings.model):
        return settings.model
    if settings.lora:
        raise InputError(f"--lora: {settings.model} is an adapter: merge it into its base first with groundup merge")
    folder = work / FOLDED
    if not folder.is_dir():
        from groundup.inference.folder import fold  # peft takes a while to import

        model = fold(load_adapter(settings.model, trust_remote_code=settings.trust_remote_code))
        save_model(folder, model, load_tokenizer(settings.model))
    return folder


def start_of(
    settings: ClassifySettings, source: str | Path | None, tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> Start:
    """What the model at `source` (that of `base_of`) is and how long its rows are. Raises `InputError`."""
    lengths = [len(ids) for ids in for_classifying(tokenizer, LONGEST_CONTEXT)(texts, truncation=True)["input_ids"]]
    enough = min(LONGEST_CONTEXT, max(SHORTEST_CONTEXT, -(-int(np.quantile(lengths, WHOLE_TEXTS)) // 32) * 32))
    if source is None:
        return Start(settings.context_length or enough)
    model = load_network(
        source, AutoModelForSequenceClassification, trust_remote_code=settings.trust_remote_code, new_head=True
    )
    limit, config = context_of(model), model.config.get_text_config()
    if settings.context_length is not None and settings.context_length > limit:
        raise InputError(
            f"--context-length {settings.context_length}: {settings.model} has a context of {limit:,}: give no more"
        )
    is_ours = config.model_type == GroundupConfig.model_type
    if settings.pooling is not None and not is_ours:
        raise InputError(
            f"--pooling is for our own models, and {settings.model} is a {config.model_type}: leave it out"
        )
    predicts = _predicts(model.config)
    _check_head(settings, predicts)
    return Start(
        context_length=settings.context_length or min(limit, enough),
        width=config.hidden_size,
        is_ours=is_ours,
        from_elsewhere=pretrained_elsewhere(settings.model or source),  # of an adapter its own folder has the recipe
        predicts=predicts,
        labels=labels_of(model) if _is_classifier(model.config.architectures) else (),
        dropouts=OUR_DROPOUTS if is_ours else tuple(name for name in OTHER_DROPOUTS if hasattr(config, name)),
    )


def _check_head(settings: ClassifySettings, predicts: str | None) -> None:
    """Raise `InputError` for what needs a head that `--model` has not."""
    if settings.language_weight and predicts != "clm":
        raise InputError(f"--language-weight: {settings.model} has no head that predicts the next token: leave it out")
    if predicts is None and (settings.adapt_minutes or settings.adapt_epochs):
        option = "--adapt-minutes" if settings.adapt_minutes else "--adapt-epochs"
        raise InputError(f"{option}: {settings.model} has no language-model head to pretrain with: leave it out")


def _predicts(config: Any) -> Literal["clm", "mlm"] | None:
    ends = [end for name in config.architectures or [] for end in AUTO_CLASSES if name.endswith(end)]
    classes = {AUTO_CLASSES[end] for end in ends}
    return "clm" if "AutoModelForCausalLM" in classes else "mlm" if "AutoModelForMaskedLM" in classes else None


def _is_classifier(architectures: list[str] | None) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in architectures or [])


def labels_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The labels of a classifier in the order of its head."""
    names = cast(dict[int, str], model.config.id2label or {})
    return tuple(str(names[number]) for number in sorted(names))


def load_base(source: str | Path, names: list[str], trust_remote_code: bool = False, **fields: Any) -> PreTrainedModel:
    """The model at `source` with a head for the labels `names`: a classifier's own where it knows them, else a new one.

    `new_weights` of the result names the head, so that an adapter trains it in full and saves it. Raises `InputError`.
    """
    known = PreTrainedConfig.get_config_dict(str(user_path(source)))[0].get("architectures")
    if not _is_classifier(known):
        fields["id2label"] = dict(enumerate(names))
        fields["label2id"] = {name: number for number, name in enumerate(names)}
    model = load_network(
        source, AutoModelForSequenceClassification, trust_remote_code=trust_remote_code, new_head=True, **fields
    )
    if _is_classifier(known):
        relabel(model, names)
    return model


def relabel(model: PreTrainedModel, names: list[str]) -> None:
    """Give a classifier a head for these labels, in place: of those it knows its own weights, of others random ones."""
    known = labels_of(model)
    inside = f"{model.base_model_prefix}."
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == len(known) and not name.startswith(inside)
    ]
    if not heads:
        raise InputError(f"{model.name_or_path} has no layer with {len(known)} outputs that could be its head")
    name, old = heads[-1]
    new = nn.Linear(
        old.in_features, len(names), bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype
    )
    model._init_weights(new)  # type: ignore[operator]
    pairs = [(place, known.index(label)) for place, label in enumerate(names) if label in known]
    with torch.no_grad():
        for place, before in pairs:
            new.weight[place] = old.weight[before]
            if old.bias is not None:
                new.bias[place] = old.bias[before]
    model.set_submodule(name, new)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {label: number for number, label in enumerate(names)}
    model.config.problem_type = None
    about: Any = model
    about.num_labels = len(names)
    about.new_weights = frozenset(f"{name}.{weight}" for weight, _ in new.named_parameters())


def freeze(model: PreTrainedModel, what: str) -> None:
    """Leave of a classifier's weights trainable: "all"; the "last" block, what follows it and the head; or the "head".

    The head is what lies outside the base model. Raises `InputError` for a base whose blocks cannot be found.
    """
    if what == "all":
        return
    base = model.base_model
    base.requires_grad_(False)
    if what == "head":
        return
    stacks = [module for module in base.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not stacks:
        raise InputError(f"--train last: {type(base).__name__} has no list of blocks: use --train all or head")
    blocks = max(stacks, key=lambda stack: sum(weight.numel() for weight in stack.parameters()))
    blocks[-1].requires_grad_(True)
    inside = {id(weight) for weight in blocks.parameters()}
    for module in base.children():  # the norm behind the blocks, but no embedding in front of them
        if not isinstance(module, nn.Embedding) and not inside & {id(weight) for weight in module.parameters()}:
            if any(isinstance(part, nn.Embedding) for part in module.modules()):
                continue
            module.requires_grad_(True)
