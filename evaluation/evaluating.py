"""Run the verb `evaluate`: causal language models, a text and tasks -> metrics.json and report.html.

for each model: language ── tasks ── text it writes ── tokenizer        then: models side by side
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import ProgressBar, console, say
from groundup.common.errors import InputError, Interrupted, names_of, public_name, user_path
from groundup.common.files import MODEL_WEIGHTS, PAGE_FILE, TOKENIZER_FILE, content_of, digest, sha256_of
from groundup.common.output import claim, given_folder, is_begun, tidy
from groundup.common.processes import agreed, processes
from groundup.common.settings import verb
from groundup.common.verbs import EvaluateSettings
from groundup.data.preparation import TRAINING_BYTES
from groundup.data.sources import load_corpus, load_documents, sample, sample_texts
from groundup.data.tokens import content_of_texts
from groundup.evaluation.comparison import UnitSums, compare_language, compare_tasks
from groundup.evaluation.generated_text import writing_part
from groundup.evaluation.language import (
    BY_DOCUMENT,
    HEADLINE,
    STRIDED,
    Text,
    TokenScores,
    language_part,
    score_text,
    xz_part,
)
from groundup.evaluation.likelihood import Windows
from groundup.evaluation.metrics_json import TRAINED, read_metrics, write_metrics
from groundup.evaluation.parts import VERB, Key, Part, Parts
from groundup.evaluation.report import write_page
from groundup.evaluation.summary import summary
from groundup.inference.folder import require_next_token
from groundup.inference.loading import load_model
from groundup.tokenization.folder import load_tokenizer
from groundup.tokenization.report import kinds_of_text, tokenizer_rows
from groundup.tokenization.training import train_word_level

GPT2 = "openai-community/gpt2"
SMOKE_BYTES, SMOKE_ROWS, SMOKE_SAMPLES = 20_000, 8, 2
KIND_BYTES = 200_000  # of the data, to measure tokenizers on


@verb(EvaluateSettings)
def evaluate(settings: EvaluateSettings) -> Path:
    """Measure models, write `metrics.json`, `report.html` and `recipe.yaml` into a folder and return the folder.

    Takes an `EvaluateSettings` or its fields by keyword. What is done is kept: `resume` goes on from there, and a part
    that fails does not lose the others. Under torchrun the processes share the text; all else the first one does.
    Raises `InputError` for a model, a text or a task that cannot be read and, when all else is written, for a part that
    failed.
    """
    state = processes() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    console.quiet = settings.quiet or (state is not None and not state.is_main_process)
    if state and not settings.out:
        raise InputError("several processes need one output folder: give --out")
    if settings.resume and settings.out:
        out = given_folder(settings.out)
        if is_begun(out, VERB) and Parts(out).is_finished:
            Parts(out).refuse_changes(settings)
            tidy(out)
            say(f"{out} is finished: nothing to do")
            return out
    with contextlib.ExitStack() as held:  # on the first process alone

        def claimed() -> Path:
            name = public_name(settings.model[0]) if settings.model else "nothing"
            return held.enter_context(claim(settings.out, VERB, name, resume=settings.resume)).path

        return _evaluate(settings, Parts(agreed(state, claimed) if state else claimed()), state)


def _evaluate(settings: EvaluateSettings, parts: Parts, state: PartialState | None) -> Path:
    """Do what is not done yet of the evaluation in a folder."""
    try:
        if state:
            agreed(state, lambda: parts.begin(settings))
            settings = parts.begin(dataclasses.replace(settings, resume=True))
        else:
            settings = parts.begin(settings)
        evaluation = Evaluation(settings, parts, state)
        if state and not state.is_main_process:
            evaluation.help_with_text()
            return parts.out
        evaluation.measure()
        return evaluation.finish()
    except InputError:
        parts.give_up()
        raise
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"stopped, and finished parts are kept: resume with groundup evaluate --resume --out {parts.out}"
        ) from stop


class Evaluation:
    """One evaluation: what is to be measured, and the parts of it that are done."""

    def __init__(self, settings: EvaluateSettings, parts: Parts, processes: PartialState | None) -> None:
        self.settings, self.parts, self.processes = settings, parts, processes
        self.names = names_of(settings.model)
        self.limit = SMOKE_ROWS if settings.smoke else settings.limit
        self.text = _read_text(settings) if settings.data else None
        self.manager: Any = None
        if settings.tasks:
            from groundup.evaluation.benchmarks import find_tasks  # lm-eval takes seconds to import

            self.manager = find_tasks(settings.tasks)
        kinds = [HEADLINE] if self.text else []
        kinds += [STRIDED] if self.text and settings.stride is not None else []
        self.kinds = [*kinds, *([BY_DOCUMENT] if self.text and settings.by_document else [])]
        # Read before any process writes a part, so that all agree.
        self.inputs = self._inputs()
        self.to_score = {
            (name, kind) for name in self.names for kind in self.kinds if not parts.has(self._key(name, kind))
        }
        if processes:
            processes.wait_for_everyone()

    def measure(self) -> None:
        """Do every part that is not done, model by model."""
        for name, source in zip(self.names, self.settings.model):
            wanted = {part: work for part, work in self._work().items() if not self.parts.has(self._key(name, part))}
            if not wanted:
                continue
            if any(self.parts.is_old(self._key(name, part)) for part in wanted):
                say(f"{name}, or its test data, has changed since this evaluation was started: measured again")
            try:
                loaded = self._load(name, source)
            except InputError as error:
                if len(self.names) == 1:
                    raise
                self.parts.fail(name, error)
                continue
            for part, work in wanted.items():
                self.parts.do(self._key(name, part), partial(work, loaded))

    def help_with_text(self) -> None:
        """Do this process's share of the windows, in the order in which the first process asks for them."""
        for name, source in zip(self.names, self.settings.model):
            kinds = [kind for kind in self.kinds if (name, kind) in self.to_score]
            if kinds:
                loaded = self._load(name, source)
                for kind in kinds:
                    self._score(kind, loaded)

    def finish(self) -> Path:
        """Put the parts together, compare the models, write the files, and print the table."""
        found = {name: [self.parts.get(self._key(name, part)) or {} for part in self._work()] for name in self.names}
        several = len(self.names) > 1
        rows = [
            row | ({"model": name} if several else {})
            for name, parts in found.items()
            for part in parts
            for row in part.get("rows", [])
        ]
        if not rows:
            raise InputError(self.parts.failed)
        rows += self._comparison(found) if several else []
        self._label_trained(rows)
        about = {name: self.parts.get(self._key(name, "about")) or {} for name in self.names}
        hashes = [values.pop("weights_sha256", None) for values in about.values()]
        training, weights = ({"models": about}, None) if several else (about[self.names[0]], hashes[0])
        samples = [sample for parts in found.values() for part in parts for sample in part.get("samples", [])]
        out = self.parts.out
        if self.text is not None:
            self.parts.note_sources(self.text.sources)
        write_metrics(out, rows, training, weights, samples, self.parts.failures)
        write_page(out)
        self.parts.end()
        console.print(summary(read_metrics(out)))
        say(f"written to {out}; next: open {out / PAGE_FILE} in a browser")
        if self.parts.failures:
            again = f"try it again: groundup evaluate --resume --out {out}"
            raise InputError(f"all but this is written ({self.parts.failed}): {again}")
        return out

    def _label_trained(self, rows: list[dict[str, Any]]) -> None:
        """Say which models were trained on the text itself; mark their scores on it and what is compared by them."""
        if self.text is None:
            return
        trained = set()
        for name, source in zip(self.names, self.settings.model):
            if files := self.text.trained_on_by(source):
                say(f"{name} was trained on {', '.join(files)}, as its recipe says: that is no test score")
                trained.add(name)
        for row in rows:
            involved = {row.get("model", self.names[0]), row.get("against")}
            if involved & trained and (row.get("dataset"), row.get("split")) == (self.text.dataset, "test"):
                row["split"] = TRAINED

    def _work(self) -> dict[str, Callable[["Loaded"], Part]]:
        """Return the parts of one model's evaluation, in order: the name of each, and the function that does it."""
        work: dict[str, Callable[[Loaded], Part]] = {"about": _about}
        work |= {kind: partial(self._language, kind) for kind in self.kinds}
        for task in self.settings.tasks:
            for shots in self.settings.num_fewshot:
                work[f"{task}, {shots} examples"] = partial(self._task, task, shots)
        if self.text and self.settings.samples:
            work["writing"] = self._writing
        if self.text:
            work["tokenizer"] = self._tokenizer
        return work

    def _inputs(self) -> dict[str, str]:
        """Return for each model a hash of its content and of the contents of all that it is measured with."""
        settings, text = self.settings, self.text
        texts = [content_of_texts(part) for part in (text.documents, text.training) if part is not None] if text else []
        self._xz = Key("xz", digest(texts))
        names = ("stride", "limit", "samples", "seed", "smoke")
        shared = [texts, {name: getattr(settings, name) for name in names}]
        shared += [[name, content_of(name)] for name in settings.tasks]
        shared += [[name, content_of(name, "model")] for name in settings.compare_tokenizer]
        return {name: digest([content_of(source, "model"), shared]) for name, source in zip(self.names, settings.model)}

    def _key(self, name: str, part: str) -> Key:
        return Key(f"{name}: {part}", self.inputs[name])

    def _load(self, name: str, source: str) -> "Loaded":
        require_next_token(source)
        model, tokenizer = load_model(source, trust_remote_code=self.settings.trust_remote_code)
        return Loaded(name, source, model, tokenizer, self.parts.work / f"model-{self.inputs[name]}")

    def _score(self, kind: str, loaded: "Loaded") -> tuple[TokenScores, Windows]:
        assert self.text is not None
        options = {"stride": self.settings.stride, "batch_rows": self.settings.batch_rows, "processes": self.processes}
        return score_text(loaded.model, loaded.tokenizer, self.text, kind, loaded.folder, **options)

    def _language(self, kind: str, loaded: "Loaded") -> Part:
        assert self.text is not None
        scores, windows = self._score(kind, loaded)
        if kind == HEADLINE:
            self.parts.do(self._xz, partial(xz_part, self.text))
        xz = self.parts.get(self._xz) or {}
        return language_part(scores, windows, loaded.tokenizer, self.text, kind, loaded.folder, xz)

    def _task(self, task: str, shots: int, loaded: "Loaded") -> Part:
        from groundup.evaluation.benchmarks import as_lm, run_task

        options = {"manager": self.manager, "num_fewshot": shots, "limit": self.limit, "seed": self.settings.seed}
        with ProgressBar(f"{task}, {shots} examples in the prompt", total=1.0) as bar:
            lm = as_lm(loaded.model, loaded.tokenizer, self.settings.batch_rows)
            result = run_task(lm, task, progress=bar.update, **options)
        scores = [[*key, shots, values] for key, values in result.scores.items()]
        return {"rows": result.rows, "scores": scores}

    def _writing(self, loaded: "Loaded") -> Part:
        assert self.text is not None
        count = SMOKE_SAMPLES if self.settings.smoke else self.settings.samples
        with ProgressBar("writing", total=1.0) as bar:
            return writing_part(loaded.name, loaded.model, loaded.tokenizer, self.text, count, bar.update)

    def _tokenizer(self, loaded: "Loaded") -> Part:
        assert self.text is not None
        others = other_tokenizers(self.settings.compare_tokenizer)
        if self.text.training is not None:
            words = train_word_level(sample_texts(self.text.training, TRAINING_BYTES), len(loaded.tokenizer))
            others["word-level"] = words
        documents = sample(self.text.documents, KIND_BYTES).texts()
        kinds = kinds_of_text({self.text.dataset: "\n".join(documents)})
        return {"rows": tokenizer_rows({None: loaded.tokenizer, **others}, kinds, self.settings.seed)}

    def _comparison(self, found: dict[str, list[Part]]) -> list[dict[str, Any]]:
        """Return rows that compare other models with the first that has such scores, on the text and on the tasks."""
        units: dict[str, UnitSums] = {}
        scores: dict[str, dict[tuple[str, str, int], list[float]]] = {}
        for name, part in ((name, part) for name, parts in found.items() for part in parts):
            if part.get("units"):
                units[name] = UnitSums(**part["units"])
            for task, measure, shots, values in part.get("scores", []):
                scores.setdefault(name, {})[task, measure, shots] = values
        rows = []
        if self.text and len(units) > 1:
            rows += compare_language(units, next(iter(units)), dataset=self.text.dataset, seed=self.settings.seed)
        if len(scores) > 1:
            rows += compare_tasks(scores, next(iter(scores)), seed=self.settings.seed)
        return rows


@dataclass(frozen=True)
class Loaded:
    """A model in memory, what it is called, where it came from, and a folder for its parts."""

    name: str
    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    folder: Path


def _about(loaded: Loaded) -> Part:
    """Describe a model for `training` in metrics.json."""
    model, weights = loaded.model, user_path(loaded.source) / MODEL_WEIGHTS
    return {
        "parameters": model.num_parameters(),
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights_sha256": sha256_of(weights) if weights.is_file() else None,
    }


def _read_text(settings: EvaluateSettings) -> Text:
    """Return the documents to predict, and of those trained on the part that `pretrain` does not hold out."""
    documents, sources = load_documents(settings.data, settings.text_column)
    training = load_corpus(settings.train_data, settings.text_column).train if settings.train_data else None
    if settings.smoke:
        documents = sample(documents, SMOKE_BYTES)
        training = None if training is None else sample(training, 10 * SMOKE_BYTES)
    return Text(documents, training, public_name(settings.data[0]), settings.seed, sources)


def other_tokenizers(sources: Sequence[str]) -> dict[str | None, PreTrainedTokenizerFast]:
    """Return the tokenizers to compare with, by name: those given, else GPT-2's where it is in the Hub's cache."""
    if sources:
        return {f"tokenizer of {name}": load_tokenizer(source) for name, source in zip(names_of(sources), sources)}
    cached = try_to_load_from_cache(GPT2, TOKENIZER_FILE)
    return {"GPT-2's tokenizer": load_tokenizer(Path(cached).parent)} if isinstance(cached, str) else {}
