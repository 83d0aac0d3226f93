"""The verb `evaluate`: any causal language model and a text -> metrics.json, with a baseline beside the model."""

import dataclasses
import tempfile
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import ProgressBar, console, say
from groundup.common.errors import InputError
from groundup.common.files import atomic_folder, output_folder, require_new, sha256_of
from groundup.common.settings import verb, write_yaml
from groundup.data.documents import Documents
from groundup.data.sources import load_documents
from groundup.data.tokens import write_shards
from groundup.evaluation.language import (
    LanguageScore,
    context_of,
    language_rows,
    score_stream,
    structure_ids,
    token_byte_lengths,
    xz_bits_per_byte,
)
from groundup.evaluation.loading import load_model
from groundup.evaluation.report import RECIPE_FILE, read_metrics, summary_table, write_metrics
from groundup.evaluation.settings import EvaluateSettings


@verb(EvaluateSettings)
def evaluate(settings: EvaluateSettings) -> Path:
    """Score a model on a text, write `metrics.json` and `recipe.yaml` into a new folder and return the folder.

    Takes an `EvaluateSettings` or its fields by keyword. Raises `InputError` for a model or a text that cannot be read.
    """
    console.quiet = settings.quiet
    if not settings.model or not settings.data:
        raise InputError("evaluate needs a model and a text: give --model and --data")
    out = output_folder(settings.out, "evaluate", _name_of(settings.model))
    require_new(out)
    documents = load_documents(settings.data, settings.text_column)
    model, tokenizer = load_model(settings.model, trust_remote_code=settings.trust_remote_code)
    score = score_documents(model, tokenizer, documents, settings.batch_rows)
    rows = language_rows(
        score,
        dataset=_name_of(settings.data[0]),
        split="test",
        seed=settings.seed,
        xz=xz_bits_per_byte(documents.texts()),  # a unigram model would need the text the model was trained on
    )
    recipe = dataclasses.asdict(settings) | {"model": _name_of(settings.model), "out": None}
    recipe["data"] = [_name_of(item) for item in settings.data]
    about = {"parameters": model.num_parameters(), "device": model.device.type, "dtype": str(model.dtype)[6:]}
    with atomic_folder(out) as folder:
        write_metrics(folder, rows, about, _weights_sha256(settings.model))
        write_yaml(folder / RECIPE_FILE, recipe)
    console.print(summary_table(read_metrics(out)))
    say(f"written to {out}")
    return out


def score_documents(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, documents: Documents | Dataset, batch_rows: int
) -> LanguageScore:
    """Tokenise documents (column `text`) into a folder that is gone afterwards, and score the model on them."""
    with tempfile.TemporaryDirectory() as folder:
        stream = write_shards(documents, tokenizer, Path(folder) / "shards")
        with ProgressBar("scoring", total=1.0) as bar:
            return score_stream(
                model,
                stream,
                context_of(model),
                special_ids=structure_ids(tokenizer),
                token_bytes=token_byte_lengths(tokenizer),
                batch_rows=batch_rows,
                progress=bar.update,
            )


def _name_of(source: str) -> str:
    """A name that says no more of a path than its last part; a name on the Hub stays whole."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() else source


def _weights_sha256(model: str) -> str | None:
    """The sha256 of a model's weights where they are one file here."""
    weights = Path(model).expanduser() / "model.safetensors"
    return sha256_of(weights) if weights.is_file() else None
