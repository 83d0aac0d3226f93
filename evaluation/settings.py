"""Declare the settings of `evaluate`; importing them costs nothing."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Interval

from groundup.common.options import (
    Count,
    CountOrNone,
    DataName,
    FileName,
    ModelName,
    OutOption,
    QuietOption,
    ResumeOption,
    SeedOption,
    SmokeOption,
    TextOptions,
    TrustOption,
)


@dataclass(kw_only=True)
class EvaluateSettings(QuietOption, SmokeOption, SeedOption, TrustOption, ResumeOption, OutOption, TextOptions):
    """Measure causal language models on text and on tasks, beside baselines; compare several models."""

    meaning: ClassVar[dict[str, str]] = {
        "data": "The test text: files, folders, globs or Hub datasets. The model must not have been trained on it.",
        "out": "Output folder for metrics.json and report.html (default: a new one under runs/).",
        "resume": "Resume the evaluation in --out: finished parts are kept, failed parts are tried again.",
        "seed": "Seed of the samples, the few-shot examples and the bootstrap.",
        "smoke": "Run the same steps in seconds: a little of the text, 8 rows of a task, 2 samples.",
    }

    model: list[ModelName] = field(default_factory=list)
    """A model's folder or Hub name: ours, or any that AutoModelForCausalLM loads. Of several, each is compared with the
    first."""
    train_data: list[DataName] = field(default_factory=list)
    """The text the model was trained on: adds baselines trained on it, and measures how much of it the model copies
    verbatim."""
    tasks: list[FileName] = field(default_factory=list)
    """Tasks of lm-eval: ours (docs_last_word, docs_module, docs_text, instruction_...), a standard one (needs the Hub),
    or a YAML file; separate several with commas."""
    num_fewshot: list[Annotated[int, Interval(ge=0, le=10_000)]] = field(default_factory=lambda: [0])
    """Few-shot examples before each question of a task; several numbers, such as 0,1,2,4,8, give a curve."""
    limit: Count | None = None
    """Use only this many rows of each task, from the first (default: all)."""
    stride: Count | None = None
    """Also measure with overlapping windows, one every this many tokens, so that every token has context before it."""
    by_document: bool = False
    """Also measure each document alone, so that no token is predicted from another document."""
    samples: CountOrNone = 8
    """Texts to generate from the beginnings of documents of --data, to measure their quality; 0: none."""
    compare_tokenizer: list[ModelName] = field(default_factory=list)
    """Tokenizer folders to compare with the model's tokenizer (default: GPT-2's, if it is in the Hub's cache)."""
    batch_rows: Count = 16
    """Windows scored at once (fewer if windows are long); changes only the speed."""

    def __post_init__(self) -> None:
        """Bring every value into its type; a comma may separate tasks."""
        super().__post_init__()
        self.tasks = [task for item in self.tasks for task in item.split(",") if task]
