"""A trained classifier and a file of texts -> a table of labels with their probabilities."""

import csv
import io

import numpy as np
from transformers import AutoModelForSequenceClassification

from groundup.common.console import ProgressBar, say
from groundup.common.errors import InputError
from groundup.data.example_rows import encode_examples
from groundup.data.examples import load_texts
from groundup.evaluation.classification import predict
from groundup.inference.loading import context_of, load_model

PREDICTIONS_FILE = "predictions.csv"
OURS = ("text", "label", "probability")  # columns, before those of the labels


def label_texts(classifier: str, data: str, text_column: str | None = None, trust_remote_code: bool = False) -> str:
    """Label the texts of a table, or the lines of a text file, in their order.

    Returns a CSV with the columns `text`, `label`, `probability` (of that label) and one for each label's, which has
    the label's name; where one of the labels is called as a column of ours, all of them are `probability of NAME`. A
    text longer than the context is judged by its beginning; how many were is said. Raises `InputError` for a model
    that is no classifier and for texts that cannot be read.
    """
    texts = load_texts(data, text_column)
    empty = sum(not text.strip() for text in texts)
    if empty:
        say(f"{empty:,} of {len(texts):,} texts are empty: their labels mean nothing")
    model, tokenizer = load_model(
        classifier, trust_remote_code=trust_remote_code, kind=AutoModelForSequenceClassification
    )
    names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    context = min(context_of(model), tokenizer.model_max_length)
    rows = encode_examples(texts, [""] * len(texts), names, tokenizer, context)
    if rows.cut:
        say(f"{rows.cut:,} of {len(texts):,} texts are longer than {context} tokens: cut there")
    if tokenizer.pad_token_id is None:
        raise InputError(f"the tokenizer of {classifier} has no padding token: train it with groundup classify")
    with ProgressBar("labelling", total=1.0) as bar:
        probabilities = predict(model, rows, int(tokenizer.pad_token_id), bar.update)  # type: ignore[arg-type]
    written = io.StringIO()
    table = csv.writer(written)  # whose lines end as in RFC 4180: with "\n" alone a text's own "\r" would get no quotes
    clash = not set(OURS).isdisjoint(names)
    table.writerow([*OURS, *(f"probability of {name}" if clash else name for name in names)])
    for text, row in zip(texts, probabilities):
        best = int(np.argmax(row))
        table.writerow([text, names[best], f"{row[best]:.4f}", *(f"{value:.4f}" for value in row)])
    return written.getvalue()
