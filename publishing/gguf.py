"""Make a GGUF file, prove it in llama.cpp, and write what Ollama needs beside it.

llama.cpp opens the file that goes out. It must cut a set of hard texts into the very ids of our tokenizer, spell
conversations as our chat template does, and continue prompts with the tokens that the checkpoint itself finds
likeliest. Rounded to fewer bits a model may write something else; then the numbers are proven on the same weights in
fp32, and the rounded file gives ids and conversations.
"""

import contextlib
import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import ProgressBar
from groundup.evaluation.comparison import EXACT
from groundup.inference.generation import Sampling, encode_prompt, own_sampling, stop_ids_of, stream_tokens
from groundup.inference.llama_cpp import Engine, Written, llama_cpp_version, quantize
from groundup.inference.loading import context_of
from groundup.modeling.export import write_gguf
from groundup.publishing.proof import PROBE, logits_of
from groundup.tokenization.chat import ChatEncoder, Spelling
from groundup.tokenization.folder import plain_backend

# ---------------------------------------------------------------------------------------------------------------------
# The file

# The file's type in GGUF; the type of most matrices; of the head, and of some values and outputs of MLPs, which suffer
# most; of GPT-2's queries, keys and values in one. As llama.cpp chooses (src/llama-quant.cpp).
_TYPES = {
    "f16": ("MOSTLY_F16", "F16", "F16", "F16"),
    "q8_0": ("MOSTLY_Q8_0", "Q8_0", "Q8_0", "Q8_0"),
    "q6_k": ("MOSTLY_Q6_K", "Q6_K", "Q6_K", "Q6_K"),
    "q5_k_m": ("MOSTLY_Q5_K_M", "Q5_K", "Q6_K", "Q6_K"),
    "q4_k_m": ("MOSTLY_Q4_K_M", "Q4_K", "Q6_K", "Q5_K"),
}
_WINDOW = 512  # tokens at most
_MEASURED_BYTES = 16_384  # of held-out text: the same for each way, so that a small difference shows
_NARROW = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that no 256 values divide


def write_file(
    path: Path, twin: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str, quantization: str | None = None
) -> None:
    """Write a twin into a GGUF file that draws tokens as `groundup generate` does, rounded to `quantization` if given.

    Raises `ValueError` as `write_gguf` does, and `InputError` where the quantiser is missing.
    """
    own = Sampling(**own_sampling(twin))
    sampling = {
        "sequence": "penalties;temperature;top_k;top_p;min_p",  # the order of transformers, and ours
        "temp": own.temperature,
        "top_k": own.top_k,
        "top_p": own.top_p,
        "min_p": own.min_p,
        "penalty_repeat": own.repetition_penalty,
        "penalty_last_n": -1,  # the whole text, as there
    }
    chosen = None
    if quantization:
        layers, is_tied = twin.config.num_hidden_layers, bool(twin.config.tie_word_embeddings)
        pack = functools.partial(_packed, quantization=quantization, layers=layers, is_tied=is_tied)
        chosen = (_TYPES[quantization][0], pack)
    write_gguf(path, twin, tokenizer, name, sampling=sampling, quantization=chosen)


def cost_rows(
    twin: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, data: Sequence[str], exact: Path
) -> list[dict[str, Any]]:
    """Return rows of metrics.json: the bits per byte that llama.cpp needs for held-out text by each way to store it.

    `exact` is the file in fp32, beside which the others are made and removed again.
    """
    from groundup.evaluation.language import held_out_texts, score_gguf  # reads any kind of data

    texts, dataset = held_out_texts(data, _MEASURED_BYTES)
    rows: list[dict[str, Any]] = []
    context = min(context_of(twin), _WINDOW)
    with ProgressBar("measuring in llama.cpp", total=len(_TYPES) + 1) as bar:
        for number, quantization in enumerate([None, *_TYPES]):
            file = exact
            if quantization:
                file = exact.with_name("measured.gguf")
                write_file(file, twin, tokenizer, dataset, quantization)
            value, tokens, bytes_ = score_gguf(
                file, tokenizer, texts, context, lambda done, told, before=number: bar.update(before + done, told)
            )
            about = {"dataset": dataset, "split": "test", "count": tokens, "bytes": bytes_, "context": context}
            about |= {"quantization": quantization.upper() if quantization else EXACT, "size": file.stat().st_size}
            rows.append({"name": "bits_per_byte", "value": value, **about})
            if quantization:
                file.unlink()
    return rows


def _packed(place: str, matrix: Any, *, quantization: str, layers: int, is_tied: bool) -> tuple[Any, Any]:
    """Return the bytes of a matrix and their type, by its name in the file."""
    import gguf

    kind = matrix_type(place, matrix.shape[1], quantization, layers, is_tied)
    return quantize(matrix, gguf.GGMLQuantizationType[kind]), gguf.GGMLQuantizationType[kind]


def matrix_type(place: str, columns: int, quantization: str, layers: int, is_tied: bool) -> str:
    """Return the type that a matrix is stored in, by its name in the file and the length of its rows."""
    _, usual, finer, fused = _TYPES[quantization]
    parts = place.split(".")
    kind = usual
    if parts[0] == "output" or (is_tied and parts[0] == "token_embd"):
        kind = finer
    elif parts[0] == "blk" and parts[2] == "attn_qkv":
        kind = fused
    elif parts[0] == "blk" and parts[2] in ("attn_v", "ffn_down"):
        layer, eighth = int(parts[1]), layers // 8
        kind = finer if layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2 else usual
    if kind.endswith("_K") and columns % 256:
        kind = _NARROW[kind]
    return "F16" if kind != "F16" and columns % 32 else kind


# ---------------------------------------------------------------------------------------------------------------------
# The proof

PROVEN = "llama_cpp"  # what metrics.json calls the proof
_NEW_TOKENS = 24  # written after each prompt
_CONTEXT = 1024  # tokens at most for a prompt and what follows: a long context takes gigabytes
_RIVALS = 8  # tokens whose logits are kept for each position
ROUNDING = 1e-4  # of the largest logit: two engines add up the same fp32 products in another order
_COARSE = 1e-2  # llama.cpp looks GPT-2's GELU up in a table of fp16 numbers
PROMPTS = ("Once upon a time", "def f(x):\n    return", PROBE, "1, 2, 3, 4,")
CONVERSATIONS = (
    [{"role": "user", "content": "Who are you?"}],
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": " 2 + 2 =\n"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "你好 🙂"},
    ],
)


def hard_texts(tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """Yield texts at which tokenizers differ: white space, digits, scripts, emoji, and special tokens spelt out."""
    yield from (
        PROBE,
        "a",
        " ",
        "  ",
        "   a  b ",
        "\n",
        "\n\n\n x",
        "\t\tx\t",
        "a\r\nb\r\n",
        " \n \n",
        "ends in a space ",
    )
    yield from ("it's IT'S we'LL don'T", "12345 1,234.5 ½ ²³ ٣٤٥ Ⅷ", "a1b22c333", "!?... --- ;;", "CamelCaseXYZ_snake")
    yield from ("Zażółć gęślą jaźń; naïveté", "e\u0301 n\u0303 ﬁ Å", "Привет, мир! Ελληνικά", "שלום עולם مرحبا نص")
    yield from (
        "你好，世界。日本語のテキスト、한국어 문장",
        "ไทย हिन्दी தமிழ் አማርኛ",
        "🙂👩‍👩‍👧 🇩🇪 👍🏽",
        "\u00a0\u2003\u200b\ufeff\u3000x",
    )
    yield from ("def f(x):\n\treturn x  # 1\n\n\n", "\ufffd \x7f", "a" * 200, " " * 50 + "x" + "\n" * 20)
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for token in added:
        yield token
        yield f"x {token} y{token}\n"
    yield "".join(added)


@dataclass(frozen=True)
class Expected:
    """Hold what a checkpoint writes after a prompt, for llama.cpp to write the same; the checkpoint may then be gone.

    Attributes:
        prompt: the ids to continue.
        limit: the most tokens to write.
        written: the likeliest token at each step, until the model stops or the limit is reached.
        rivals: the log probabilities of the likeliest tokens at each step, and after the last one: {id: value}.
        largest: the largest logit.
    """

    prompt: list[int]
    limit: int
    written: list[int]
    rivals: list[dict[int, float]]
    largest: float

    @classmethod
    def all_of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list["Expected"]:
        """Return what a model writes after every prompt and answers to every conversation, on the CPU in fp32."""
        context = min(context_of(model), _CONTEXT)
        prompts = [encode_prompt(tokenizer, prompt)[: max(1, context // 2)] for prompt in PROMPTS]
        return [cls._of(model, ids) for ids in [*prompts, *_conversations(tokenizer).values()] if len(ids) < context]

    @classmethod
    def _of(cls, model: PreTrainedModel, prompt: list[int]) -> "Expected":
        limit = min(_NEW_TOKENS, context_of(model) - len(prompt), _CONTEXT - len(prompt))
        written = list(stream_tokens(model, prompt, Sampling(temperature=0, max_new_tokens=limit)))
        logits = logits_of(model, {"input_ids": torch.tensor([prompt + written])})[0, len(prompt) - 1 :]  # (T, V)
        values, tokens = logits.log_softmax(-1).topk(min(_RIVALS, logits.shape[-1]))
        rivals = [dict(zip(*row)) for row in zip(tokens.tolist(), values.tolist())]
        return cls(prompt, limit, written, rivals, logits.abs().max().item())


def _conversations(tokenizer: PreTrainedTokenizerFast) -> dict[int, list[int]]:
    """Return the ids of each conversation that the chat template takes, by its number; none without a template."""
    found = {}
    for number, messages in enumerate(CONVERSATIONS if tokenizer.chat_template else ()):
        with contextlib.suppress(ValueError):  # the template has no such role
            found[number] = ChatEncoder(tokenizer).prompt_ids(messages)
    return found


@dataclass(frozen=True)
class Proven:
    """Hold what llama.cpp was found to do as the checkpoint does, and how far its log probabilities were from there.

    `exceptions` say what was otherwise, and why that is no fault: a near tie of two logits, a token that llama.cpp
    stops at.
    """

    engine: str
    texts: int
    conversations: int
    tokens: int
    largest_difference: float
    exceptions: list[str]

    def __str__(self) -> str:
        but = f"; but {'; '.join(self.exceptions)}" if self.exceptions else ""
        return (
            f"llama.cpp gives the same ids for {self.texts} texts and {self.conversations} conversations, and writes "
            f"the same {self.tokens} tokens (largest difference of log probabilities {self.largest_difference:.0e})"
            f"{but}"
        )


def prove_file(
    file: Path, tokenizer: PreTrainedTokenizerFast, expected: Sequence[Expected] = (), *, is_coarse: bool = False
) -> Proven:
    """Open a file in llama.cpp and compare it with the checkpoint's tokenizer and with what the checkpoint writes.

    Args:
        file: the GGUF file.
        tokenizer: of the checkpoint.
        expected: what the checkpoint writes; nothing for a file that is rounded, which may write something else.
        is_coarse: whether llama.cpp computes this kind of model with a table of numbers in fp16 (GPT-2's GELU).

    Raises:
        ValueError: with the first difference that rounding does not explain.
    """
    with Engine(file, context=_CONTEXT) as engine:
        texts = _compare_texts(engine, tokenizer)
        conversations = _compare_conversations(engine, tokenizer)
        tokens, difference, exceptions = 0, 0.0, []
        for text in expected:
            found = engine.write(text.prompt, text.limit, tokenizer)
            tolerance = (_COARSE if is_coarse else ROUNDING) * max(1.0, text.largest)
            try:
                same, gap, exception = _compare_writing(found, text, tolerance, tokenizer)
            except ValueError as error:
                raise ValueError(f"after {tokenizer.decode(text.prompt)!r} {error}") from error
            tokens, difference = tokens + same, max(difference, gap)
            exceptions += [exception] if exception else []
    return Proven(llama_cpp_version(), texts, conversations, tokens, difference, exceptions)


def _compare_texts(engine: Engine, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return how many hard texts were compared. Raises `ValueError` for the first that has other ids."""
    plain, texts = plain_backend(tokenizer), list(dict.fromkeys(hard_texts(tokenizer)))
    for text in texts:
        ours = {
            True: tokenizer.encode(text, add_special_tokens=False, verbose=False),
            False: plain.encode(text, add_special_tokens=False).ids,
        }
        for special, ids in ours.items():
            if (theirs := engine.encode(text, special=special)) != ids:
                raise ValueError(f"llama.cpp cuts {text!r} into other tokens: {_first_difference(theirs, ids)}")
        if tokenizer.decode(ours[True]) == text != (theirs := engine.decode(ours[True])):
            raise ValueError(f"llama.cpp gives the text {theirs!r} for the ids of {text!r}")
    return len(texts)


def _first_difference(theirs: Sequence[int], ours: Sequence[int]) -> str:
    at = next((n for n, pair in enumerate(zip(theirs, ours)) if pair[0] != pair[1]), min(len(theirs), len(ours)))
    return f"{list(theirs[at : at + 4])} at token {at}, where ours are {list(ours[at : at + 4])}"


def _compare_conversations(engine: Engine, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return how many conversations were compared. Raises `ValueError` for the first that is spelt otherwise."""
    conversations = _conversations(tokenizer)
    for number, ids in conversations.items():
        ours = tokenizer.apply_chat_template(CONVERSATIONS[number], tokenize=False, add_generation_prompt=True)
        theirs = engine.chat_text(CONVERSATIONS[number])
        if theirs != ours:
            raise ValueError(f"the chat template gives {theirs!r} in llama.cpp, where ours gives {ours!r}")
        if (found := engine.encode(theirs, special=True)) != ids:
            raise ValueError(f"llama.cpp cuts {theirs!r} into other tokens: {_first_difference(found, ids)}")
    return len(conversations)


def _compare_writing(
    found: Written, text: Expected, tolerance: float, tokenizer: PreTrainedTokenizerFast
) -> tuple[int, float, str | None]:
    """Return how many tokens are the same, how far their log probabilities differ, and what ended that for good reason.

    Raises `ValueError` for an end without one.
    """
    ours = [max(rivals, key=rivals.__getitem__) for rivals in text.rivals]  # and one more than was written
    differ = (place for place, pair in enumerate(zip(found.ids, ours)) if pair[0] != pair[1])
    same = next(differ, min(len(found.ids), len(ours)))
    pairs = [(value, text.rivals[place][ours[place]]) for place, value in enumerate(found.logprobs[:same])]
    difference = max((abs(theirs - mine) for theirs, mine in pairs if not math.isnan(theirs)), default=0.0)
    if difference > tolerance:
        raise ValueError(f"llama.cpp computes other numbers: log probabilities differ by {difference:.2g}")
    if same == len(found.ids):
        if found.stopped and same <= len(text.written):
            named = _token(ours[same - 1], tokenizer)
            return same, difference, f"llama.cpp takes {named} for the end of a text; the model goes on after it"
        if len(found.ids) < text.limit and not found.stopped:
            raise ValueError(f"llama.cpp ends the text after {same} tokens, the model goes on")
        return same, difference, None
    theirs, mine = found.ids[same], ours[same] if same < len(ours) else ours[-1]
    what = f"token {same} is {_token(theirs, tokenizer)} in llama.cpp and {_token(mine, tokenizer)} in the model"
    if same == len(ours):
        raise ValueError(f"llama.cpp goes on after {_token(mine, tokenizer)}, where the model stops")
    gap = text.rivals[same][mine] - text.rivals[same].get(theirs, -math.inf)
    if gap > 2 * tolerance:
        raise ValueError(f"{what}, although their logits are {gap:.2g} apart")
    return same, difference, f"{what}: their logits are {gap:.1g} apart, less than rounding"


def _token(token: int, tokenizer: PreTrainedTokenizerFast) -> str:
    return f"{token} ({tokenizer.decode([token])!r})"


# ---------------------------------------------------------------------------------------------------------------------
# Ollama


def modelfile(weights: str, twin: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a Modelfile for Ollama (https://docs.ollama.com/modelfile): file, template, stop tokens, parameters."""
    own, spelling = Sampling(**own_sampling(twin)), Spelling.of(tokenizer)
    values = {
        "num_ctx": context_of(twin),
        "temperature": own.temperature,
        "top_k": own.top_k,
        "top_p": own.top_p,
        "min_p": own.min_p,
        "repeat_penalty": own.repetition_penalty,
    }
    lines = [f"FROM ./{weights}"]
    if spelling:
        lines.append(f'TEMPLATE """{spelling.in_go()}"""')
    elif tokenizer.chat_template:
        lines.append(
            "# The chat template has no equal among Ollama's: use the model by its /api/generate, or llama.cpp."
        )
    lines += [f"PARAMETER {name} {value}" for name, value in values.items()]
    lines += [f"PARAMETER stop {json.dumps(tokenizer.decode([stop]))}" for stop in stop_ids_of(twin)]
    return "\n".join(lines) + "\n"
