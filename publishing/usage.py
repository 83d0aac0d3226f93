"""Write the Python code on a card, which loads a model and uses it once; the gate runs it as it stands there."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.common.errors import public_name
from groundup.common.files import ADAPTER_FILE, CONFIG_FILE, GGUF_WEIGHTS, TOKENIZER_FILE
from groundup.inference.kinds import auto_class_of, overrides_of, read_json

_USE = """\
from transformers import {auto_class}, AutoTokenizer

path = {path}{which}
tokenizer = AutoTokenizer.from_pretrained(path{distrust})
model = {auto_class}.from_pretrained(path{trust})
{then}
"""

_USE_ADAPTER = """\
from peft import PeftModel
from transformers import {auto_class}, AutoTokenizer{more}

path = {path}{which}
base = {base}
tokenizer = AutoTokenizer.from_pretrained({words}{distrust})
model = {auto_class}.from_pretrained(base{told}{trust})
{room}{ends}model = PeftModel.from_pretrained(model, path)
{then}
"""

# An adapter that came with tokens of its own has rows for them, which its base must have room for.
_ROOM = """\
if len(tokenizer) > model.get_input_embeddings().num_embeddings:
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
"""

# It ends its texts where it was trained to, which may be elsewhere than its base does.
_ENDS = """\
model.generation_config = GenerationConfig.from_pretrained(path)
"""

_CODE = """
`trust_remote_code=True` runs the modeling files that lie beside the {whose}weights: read them first. With the package
`groundup` installed and `import groundup.modeling`, leave it out: the package's own code is used.
"""

# What to do with a model once it is loaded, by its Auto class.
_THEN = {
    "AutoModelForCausalLM": """
prompt = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens={new_tokens}, do_sample=True, top_p=0.95)[0]))""",
    "AutoModelForSeq2SeqLM": """
question = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**question, max_new_tokens={new_tokens})[0], skip_special_tokens=True))""",
    "AutoModelForSequenceClassification": """
text = tokenizer("Once upon a time", return_tensors="pt")
print(model.config.id2label[model(**text).logits.argmax(-1).item()])""",
}
_ELSE = """
text = tokenizer("Once upon a time", return_tensors="pt")
print(model(**text)[0].shape)"""

_USE_GGUF = """\
```bash
llama-cli -m model.gguf -p "Once upon a time"
```

The file is read by llama.cpp and what is built on it (LM Studio, Ollama, ...); no Python is needed.
"""

_PIPELINES = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSeq2SeqLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModel": "feature-extraction",
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

    @property
    def pipeline(self) -> str:
        """Return the Hub's name for the task."""
        return _PIPELINES[self.auto_class]


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
            has_ends=(folder / "generation_config.json").is_file(),
            new_tokens=min(room, _new_tokens(config.parent)),
        )
    if (folder / CONFIG_FILE).is_file():
        return ModelKind(auto_class_of(folder), bool(read_json(folder / CONFIG_FILE).get("auto_map")), new_tokens=room)
    is_gguf = (folder / GGUF_WEIGHTS).is_file()
    return ModelKind("AutoModelForCausalLM", not is_gguf, is_gguf, new_tokens=room)


def _new_tokens(folder: Path) -> int:
    """Return how many tokens the code on a card may ask for: at most half of the model's context."""
    settings = folder / "tokenizer_config.json"
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
    code = _CODE.format(whose="" if kind.base is None else "base's ") if kind.has_code else ""
    return f"```python\n{_python(kind, path)}```\n{code}"


def _python(kind: ModelKind, path: str) -> str:
    """Return the code that loads a model and uses it once."""
    return (_USE if kind.base is None else _USE_ADAPTER).format(
        auto_class=kind.auto_class,
        path=json.dumps(path, ensure_ascii=False),
        which="  # this folder, or the name of its repository on the Hub" if path == "." else "",
        base=json.dumps(kind.base, ensure_ascii=False),
        words="path" if kind.has_tokenizer else "base",
        # Said outright, or transformers asks the user about the model's code when it loads a tokenizer without any.
        distrust=", trust_remote_code=False" if kind.has_code else "",
        trust=", trust_remote_code=True" if kind.has_code else "",
        told="".join(f", {name}={value!r}" for name, value in kind.overrides.items()),
        room=_ROOM if kind.has_tokenizer else "",
        more=", GenerationConfig" if kind.has_ends else "",
        ends=_ENDS if kind.has_ends else "",
        then=_THEN.get(kind.auto_class, _ELSE).format(new_tokens=kind.new_tokens),
    )
