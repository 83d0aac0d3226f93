"""What a tokenizer costs on each kind of text and in each language, beside GPT-2's and a word-level one.

Languages are compared on the same sentences, article 1 of the Universal Declaration of Human Rights (as Petrov et al.
2023 do): a language that needs three times English's tokens has a third of the context, at three times the price.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedTokenizerFast

from groundup.common.files import TOKENIZER_FILE
from groundup.evaluation.parts import names_of
from groundup.tokenization.folder import load_tokenizer, plain_backend
from groundup.tokenization.token_bytes import TokenBytes, bytes_lost

GPT2 = "openai-community/gpt2"
LANGUAGES: dict[str, str] = {
    "English": "All human beings are born free and equal in dignity and rights. They are endowed with reason and "
    "conscience and should act towards one another in a spirit of brotherhood.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen "
    "begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "French": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "Spanish": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "Polish": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni "
    "rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью "
    "и должны поступать в отношении друг друга в духе братства.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι προικισμένοι "
    "με λογική και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα αδελφοσύνης.",
    "Arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا "
    "وعليهم أن يعامل بعضهم بعضًا بروح الإخاء.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और "
    "अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
    "人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. "
    "인간은 천부적으로 이성과 양심을 부여받았으며 서로 형제애의 정신으로 행동하여야 한다.",
}


def kinds_of_text(own: Mapping[str, str]) -> dict[str, str]:
    """The texts to measure on: `own` (the data, by name), Python code, numbers, and the languages."""
    numbers = "\n".join(f"{number * 7919 % 100_003}, {number * 0.37:.2f}" for number in range(500))
    return {**own, "Python code": inspect.getsource(json), "numbers": numbers, **LANGUAGES}


def tokenizer_rows(
    tokenizers: Mapping[str | None, PreTrainedTokenizerFast], kinds: Mapping[str, str], seed: int
) -> list[dict[str, Any]]:
    """Rows for metrics.json: of each kind of text and tokenizer `bytes_per_token` and, where it is known, the
    `unknown_rate` of its tokens; of each language also `tokens_against_english`, for the same meaning.

    `tokenizers` has the model's own under None, the others under the name of a baseline.
    """
    rows = []
    for baseline, tokenizer in tokenizers.items():
        backend, unknown = plain_backend(tokenizer), TokenBytes.of(tokenizer).unknown
        ids = {kind: backend.encode(text, add_special_tokens=False).ids for kind, text in kinds.items()}
        for kind, text in kinds.items():
            count = len(ids[kind])
            values = {"bytes_per_token": len(text.encode()) / max(1, count)}
            if unknown:
                values["unknown_rate"] = sum(map(ids[kind].count, unknown)) / max(1, count)
            elif not bytes_lost(tokenizer, [text]):
                values["unknown_rate"] = 0.0
            if kind in LANGUAGES:
                values["tokens_against_english"] = count / max(1, len(ids["English"]))
            shared = {"dataset": kind, "split": "tokenizer", "count": count, "seed": seed, "baseline": baseline}
            shared["bytes"] = len(text.encode())
            rows += [{"name": name, "value": value, **shared} for name, value in values.items()]
    return rows


def other_tokenizers(sources: Sequence[str]) -> dict[str | None, PreTrainedTokenizerFast]:
    """The tokenizers to compare with, by name: those named, else GPT-2's where it is in the Hub's cache."""
    if sources:
        return {f"tokenizer of {name}": load_tokenizer(source) for name, source in zip(names_of(sources), sources)}
    cached = try_to_load_from_cache(GPT2, TOKENIZER_FILE)
    return {"GPT-2's tokenizer": load_tokenizer(Path(cached).parent)} if isinstance(cached, str) else {}
