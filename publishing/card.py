"""Write the model card (`README.md`) from `metrics.json` and `recipe.yaml` alone: it can be made again at any time.

The gate runs the Python code on the card unchanged: it loads the model and uses it once.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template

from groundup.common.errors import listed, public_name
from groundup.common.files import (
    ADAPTER_FILE,
    CARD_FILE,
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    CURVE_FILE,
    GENERATION_FILE,
    GGUF_WEIGHTS,
    METRICS_FILE,
    RECIPE_FILE,
    TOKENIZER_FILE,
    TOKENIZER_SETTINGS_FILE,
    atomic_write,
)
from groundup.common.settings import read_yaml
from groundup.evaluation.comparison import quantisation
from groundup.evaluation.metrics_json import (
    family_lines,
    markdown_table,
    notes,
    read_metrics,
    result_lines,
    section,
    shown,
    title,
)
from groundup.inference.folder import auto_class_of, overrides_of, read_json

_TEMPLATE = (Path(__file__).parent / "card_code.jinja").read_text(encoding="utf-8")
_CODE = Template(_TEMPLATE, trim_blocks=True, keep_trailing_newline=True)  # loads a model and uses it once

_TRUST = """
`trust_remote_code=True` runs the modeling files that lie beside the {whose}weights: read them first. With the package
`groundup` installed and `import groundup.modeling`, leave it out: the package's own code is used.
"""

# What to do with a model once it is loaded, by its Auto class: texts that suit any model of the kind.
_THEN = {
    "AutoModelForCausalLM": """\
prompt = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens={new_tokens}, do_sample=True, top_p=0.95)[0]))""",
    "AutoModelForSeq2SeqLM": """\
question = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**question, max_new_tokens={new_tokens})[0], skip_special_tokens=True))""",
    "AutoModelForSequenceClassification": """\
text = tokenizer("the text to be labelled", return_tensors="pt")
print(model.config.id2label[model(**text).logits.argmax(-1).item()])""",
}
_THEN_CHAT = """\
messages = [{{"role": "user", "content": "Say hello."}}]
question = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**question, max_new_tokens={new_tokens})[0{after}]
print(tokenizer.decode(answer, skip_special_tokens=True))"""
_AFTER_QUESTION = ', question["input_ids"].shape[1]:'  # where a decoder's answer begins in what it gives
_ELSE = """\
text = tokenizer("a text to be read", return_tensors="pt")
print(model(**text)[0].shape)"""

_USE_GGUF = """\
```bash
llama-cli -m model.gguf -p "Once upon a time"
ollama create my-model -f Modelfile && ollama run my-model
```

The file is read by llama.cpp and what is built on it (LM Studio, Ollama, ...); no Python is needed.
"""

# The Hub's name for the task of an Auto class, and a person's name for such a model.
_TASKS = {
    "AutoModelForCausalLM": ("text-generation", "causal language model"),
    "AutoModelForSeq2SeqLM": ("text-generation", "causal language model"),
    "AutoModelForMaskedLM": ("fill-mask", "masked language model"),
    "AutoModelForSequenceClassification": ("text-classification", "text classifier"),
    "AutoModelForTokenClassification": ("token-classification", "token classifier"),
    "AutoModelForQuestionAnswering": ("question-answering", "model that finds answers in a text"),
    "AutoModel": ("feature-extraction", "text encoder"),
}
_NEW_TOKENS = 50  # that the code on a card asks for, or half of what the model looks at


@dataclass(frozen=True)
class ModelKind:
    """The kind of model that a folder holds, and how it is loaded."""

    auto_class: str
    has_code: bool
    is_gguf: bool = False
    base: str | None = None  # of an adapter
    overrides: dict[str, Any] = field(default_factory=dict)  # what its base is told
    has_tokenizer: bool = True
    has_ends: bool = False  # an adapter's own generation_config.json
    new_tokens: int = _NEW_TOKENS
    converses: bool = False  # it was taught to answer through its chat template

    @property
    def pipeline(self) -> str:
        """Return the Hub's name for the task."""
        return _TASKS[self.auto_class][0]


def kind_of(folder: Path, base: Path | None = None) -> ModelKind:
    """Return the kind by the folder's config; a folder without one counts as a language model of ours.

    `base` is where an adapter's base lies; by default where the adapter says, if that is a folder.
    """
    room = _new_tokens(folder)
    if (folder / ADAPTER_FILE).is_file():
        named = str(read_json(folder / ADAPTER_FILE).get("base_model_name_or_path"))
        config = (base or Path(named)) / CONFIG_FILE
        return ModelKind(
            auto_class_of(folder),
            has_code=not config.is_file() or bool(read_json(config).get("auto_map")),
            base=public_name(named),
            overrides=overrides_of(folder),
            has_tokenizer=(folder / TOKENIZER_FILE).is_file(),
            has_ends=(folder / GENERATION_FILE).is_file(),
            new_tokens=min(room, _new_tokens(config.parent)),
            converses=_converses(folder),
        )
    if (folder / CONFIG_FILE).is_file():
        has_code, converses = bool(read_json(folder / CONFIG_FILE).get("auto_map")), _converses(folder)
        return ModelKind(auto_class_of(folder), has_code, new_tokens=room, converses=converses)
    is_gguf = (folder / GGUF_WEIGHTS).is_file()
    return ModelKind("AutoModelForCausalLM", not is_gguf, is_gguf, new_tokens=room)


def _converses(folder: Path) -> bool:
    """Return whether a folder has a chat template and says that it was taught on conversations."""
    recipe = folder / RECIPE_FILE
    is_taught = recipe.is_file() and read_yaml(recipe).get("verb") == "instruct"
    return is_taught and (folder / CHAT_TEMPLATE_FILE).is_file()


def _new_tokens(folder: Path) -> int:
    """Return how many tokens the code on a card may ask for: at most half of the model's context."""
    settings = folder / TOKENIZER_SETTINGS_FILE
    limit = read_json(settings).get("model_max_length") if settings.is_file() else None
    return min(_NEW_TOKENS, max(1, int(limit) // 2)) if isinstance(limit, int | float) else _NEW_TOKENS


def code_on_card(folder: Path, path: str, base: Path | None = None) -> str:
    """Return the Python code on the card of a folder, with `path` and `base` in the place of the names."""
    kind = kind_of(folder, base)
    return _python(dataclasses.replace(kind, base=None if kind.base is None else str(base or kind.base)), path)


def how_to_use(kind: ModelKind, path: str) -> str:
    """Return how to load the model, as Markdown, to be copied as it is."""
    if kind.is_gguf:
        return _USE_GGUF
    code = _TRUST.format(whose="" if kind.base is None else "base's ") if kind.has_code else ""
    return f"```python\n{_python(kind, path)}```\n{code}"


def _python(kind: ModelKind, path: str) -> str:
    """Return the code that loads a model and uses it once."""
    return _CODE.render(
        kind=kind,
        path=json.dumps(path, ensure_ascii=False),
        is_here=path == ".",
        base=kind.base and json.dumps(kind.base, ensure_ascii=False),
        trust=", trust_remote_code=True" if kind.has_code else "",
        distrust=", trust_remote_code=False" if kind.has_code else "",
        told="".join(f", {name}={value!r}" for name, value in kind.overrides.items()),
        then=_use_once(kind),
    )


def _use_once(kind: ModelKind) -> str:
    after = _AFTER_QUESTION if kind.auto_class == "AutoModelForCausalLM" else ""
    is_asked = kind.converses and kind.auto_class in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    then = _THEN_CHAT if is_asked else _THEN.get(kind.auto_class, _ELSE)
    return then.format(new_tokens=kind.new_tokens, after=after)


# What a kind of model cannot do.
_LIMITS = {
    "writes": """\
It continues text in the manner of what it was trained on. It was not taught to answer questions, to follow
instructions or to be truthful: what it says may be wrong, unfit for use or offensive, and may repeat its training text
verbatim.""",
    "instructed": """\
It was taught to answer on the rows named above and on nothing else. What it says may be wrong, unfit for use or
offensive, and may repeat its training text verbatim.""",
    "imported": """\
It was trained elsewhere: the card of the model that it was imported from says on what, and for what it is fit. What it
says may be wrong, unfit for use or offensive, and may repeat its training text verbatim.""",
    "judges": """\
It knows the labels above and no "none of these": a text of another kind gets one of them as well. Do not let it decide
about people.""",
}
_HOLDS = "The numbers above hold for text like the one they were taken on: measure it again for any other."

_WHERE_ALL_IS = (
    f"Every setting, and every choice that was made for the run, is in [`{RECIPE_FILE}`]({RECIPE_FILE}); every number "
    f"is in [`{METRICS_FILE}`]({METRICS_FILE})."
)
_MEMORISED = ("copied", "continued_word_for_word")
_SHOWN_SAMPLES = 3
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(folder: Path, path: str = ".", base: Path | None = None) -> Path:
    """Write the model card `README.md` from `metrics.json` and `recipe.yaml` alone, and return its path.

    Of the recipe it names `name`, `license`, `language`, `base_model` and `sources` (a list of name, bytes, sha256) are
    used where they are given; for every other setting the card points to it. How to load the model follows from its
    config; `path` is where from: the folder itself, or its repository on the Hub; `base` is where an adapter's base
    lies.
    """
    folder = Path(folder)
    metrics, recipe = read_metrics(folder), read_yaml(folder / RECIPE_FILE)
    name, kind = recipe.get("name") or "groundup", kind_of(folder, base)
    sources = recipe.get("sources") or []
    header = list(dict.fromkeys(key for source in sources for key in source if key != "columns_not_read"))
    rows = [[_plain(source.get(key)) for key in header] for source in sources]
    sections = {
        "Use": how_to_use(kind, path),
        "Results": _results(metrics),
        "Quantisation": quantisation(section(metrics["metrics"], "quantizations")),
        "Training data": markdown_table(header, rows) if sources else "Not recorded.",
        "Limits": _limits(kind, metrics, recipe),
        "Samples": _samples(metrics),
        "Training": _training(metrics, recipe, (folder / CURVE_FILE).is_file()),
    }
    body = "\n".join(f"## {title}\n\n{text.strip()}\n" for title, text in sections.items() if text)
    heading = path.partition("/")[2] if HUB_NAME.fullmatch(path) else name
    data = _card_data(name, kind, recipe, section(metrics["metrics"], "results"))
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {heading}\n\n{_summary(kind, metrics, recipe)}\n\n{body}")
    atomic_write(folder / CARD_FILE, str(card).encode())
    return folder / CARD_FILE


def _card_data(name: str, kind: ModelKind, recipe: dict[str, Any], rows: Sequence[dict[str, Any]]) -> ModelCardData:
    """Return what the Hub reads: how to load the model, what it is for, and the model's own results (no baselines).

    Results go into `model-index`, which holds numbers on any data set; `.eval_results/` takes only those that the Hub
    has registered as benchmarks (hub docs, eval-results).
    """
    results = [
        EvalResult(
            task_type=kind.pipeline,
            dataset_type=row["dataset"],
            dataset_name=row["dataset"],
            dataset_split=row["split"],
            metric_type=row["name"],
            metric_name=title(row) if "label" in row else None,
            metric_value=row["value"],
        )
        for row in rows
        if not row.get("baseline") and row["value"] is not None
    ]
    settings = recipe.get("settings") or {}
    named = (settings.get(option) for option in ("model", "init_from", "source"))
    candidates = (recipe.get("base_model"), kind.base, *named)
    base = next((name for name in candidates if isinstance(name, str) and HUB_NAME.fullmatch(name)), None)
    # Of a twin the Hub has no word that fits: its weights are the same, only the class is another.
    made = None if recipe.get("verb") in ("export", "import") else "finetune"
    relation = "adapter" if kind.base is not None else "quantized" if kind.is_gguf else made
    return ModelCardData(
        license=recipe.get("license"),
        language=recipe.get("language") or None,
        library_name="peft" if kind.base is not None else None if kind.is_gguf else "transformers",
        pipeline_tag=kind.pipeline,
        base_model=base,
        base_model_relation=relation if base else None,
        datasets=[source["name"] for source in recipe.get("sources") or [] if "revision" in source] or None,
        tags=["groundup", *["custom_code"] * (kind.has_code and kind.base is None), *["gguf"] * kind.is_gguf],
        model_name=name,
        eval_results=results or None,
    )


def _summary(kind: ModelKind, metrics: dict[str, Any], recipe: dict[str, Any]) -> str:
    training = metrics["training"]
    parameters = training.get("trained_parameters" if kind.base is not None else "parameters")
    size = f" of {parameters:,} {'trained ' * (kind.base is not None)}parameters" if parameters else ""
    verb, settings = recipe.get("verb"), recipe.get("settings") or {}
    made = "imported" if verb == "import" else "made"
    article = "An adapter for a" if kind.base is not None else "A"
    what = f"{article} {_TASKS[kind.auto_class][1]}{size}, {made} with the package `groundup`."
    if verb == "import":
        what += f" It has the weights of `{settings.get('source')}`, and its logits are the same."
    if kind.base is not None:
        whole = f" ({training['parameters']:,} parameters)" if training.get("parameters") else ""
        what += f" It is a LoRA adapter and needs its base, `{kind.base}`{whole}."
    if labels := (recipe.get("plan") or {}).get("labels"):
        what += f" It gives a text one of {len(labels):,} labels: {listed(map(str, labels))}."
    if merged := recipe.get("merged"):
        what += f" It is the LoRA adapter `{merged['adapter']}` folded into its base, `{merged['base']}`."
    if verb == "export":
        original = recipe.get("base_model") or settings.get("checkpoint")
        what += f" It has the weights of `{original}` in a form that needs no code of ours; "
        stored = settings.get("quantize")
        what += f"they are rounded to {stored.upper()}." if stored else "its logits are the same."
    return what


def _limits(kind: ModelKind, metrics: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Say what the model cannot do and, where it was measured, how much of its training text it gives back."""
    if kind.pipeline == "text-generation":
        text = _LIMITS[{"instruct": "instructed", "import": "imported"}.get(str(recipe.get("verb")), "writes")]
    else:
        text = _LIMITS["judges"] if "classification" in kind.pipeline else ""
    for row in metrics["metrics"]:
        if row["name"] in _MEMORISED and not row.get("baseline") and row["value"] is not None:
            text += f" Measured: {title(row)} {shown(row)}."
    return f"{text} {_HOLDS}" if metrics["metrics"] else text


def _samples(metrics: dict[str, Any]) -> str:
    """Show the first texts that the model wrote when it was measured."""
    blocks = []
    for sample in (metrics.get("samples") or [])[:_SHOWN_SAMPLES]:
        text = (str(sample["prompt"]) + str(sample["text"])).replace("```", "` ` `")
        blocks.append(f"Seed {sample['seed']}, the prompt is {sample['prompt']!r}:\n\n```text\n{text}\n```\n")
    return "\n".join(blocks)


def _results(metrics: dict[str, Any]) -> str:
    """Return the table of results, and say how they were taken."""
    rows = section(metrics["metrics"], "results")
    header, lines = result_lines(rows)
    if not lines:
        return "Not yet measured."
    text = markdown_table(header, lines, right_from=2)
    for row in {(row["dataset"], row["split"]): row for row in reversed(rows)}.values():
        if row.get("context"):
            text += f"\n{row['dataset']}, {row['split']}: {row['count']:,} tokens"
            text += f" ({row['bytes']:,} bytes of text)" if row.get("bytes") else ""
            text += f", in windows of {row['context']:,} tokens, one every {row['stride']:,}.\n"
    text += "".join(f"\n{note}\n" for note in notes(rows))
    if families := section(metrics["metrics"], "families"):
        text += "\n" + markdown_table(*family_lines(families), right_from=2)
    return text


def _training(metrics: dict[str, Any], recipe: dict[str, Any], has_curve: bool) -> str:
    """Return the curve and the main facts of how the model was made, and say where all of them are."""
    facts = {name: value for name, value in _facts(metrics, recipe).items() if value}
    curve = f"![The loss over the steps of training]({CURVE_FILE})\n\n" if has_curve else ""
    table = markdown_table(["", ""], [[name, value] for name, value in facts.items()]) + "\n" if facts else ""
    return f"{curve}{table}{_WHERE_ALL_IS}"


def _facts(metrics: dict[str, Any], recipe: dict[str, Any]) -> dict[str, str]:
    """Return the main facts of a run by the names that a person reads; an empty text where one is not known."""
    training, versions, settings = metrics["training"], metrics["versions"], recipe.get("settings") or {}
    number = {name: _plain(value) for name, value in training.items() if isinstance(value, int | float)}
    read = next((name for name in ("tokens", "rows") if name in number), "")
    epochs = f" ({number['epochs']} epochs)" if "epochs" in number else ""
    best = f", the best at {number['best_step']}" if "best_step" in number else ""
    device = " on " + ", ".join(map(str, filter(None, (training.get("device"), training.get("precision")))))
    trained, whole = number.get("trained_parameters", ""), number.get("parameters", "")
    made_with = [f"{name} {versions[name]}" for name in ("groundup", "torch", "transformers") if name in versions]
    return {
        "Parameters": whole,
        "Of these trained": trained if trained != whole else "",
        "Base": " ".join(filter(None, (_plain(training.get("base")), _plain(training.get("base_sha256"))))),
        "Steps": number.get("steps", "") + best if "steps" in number else "",
        f"{read.capitalize()} read": number[read] + epochs if read else "",
        "Time": f"{training['seconds']:,.0f} s{device if device.strip() != 'on' else ''}"
        if "seconds" in number
        else "",
        "Seed": _plain(settings.get("seed")),
        "Made with": ", ".join(made_with),
    }


def _plain(value: Any) -> str:
    """Return a value as the text of a table's cell."""
    if isinstance(value, bool | None):
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    if isinstance(value, dict):
        value = [f"{name}: {inner}" for name, inner in value.items()]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
