"""The settings of the verbs of this room; importing them costs nothing."""

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
    """Measure causal language models, on a text and on tasks, with baselines beside them; several are compared."""

    meaning: ClassVar[dict[str, str]] = {
        "data": "The text to predict: files, folders, globs or Hub datasets. It must not have been trained on.",
        "out": "A new folder for metrics.json and report.html (default: a new one under runs/).",
        "resume": "Go on with the evaluation in --out: what it has is kept, what failed is tried again.",
        "seed": "Decides the samples, the examples of a prompt and the draws of the bootstrap.",
        "smoke": "The same path in seconds: a little of the text, 8 rows of a task, 2 samples.",
    }

    model: list[ModelName] = field(default_factory=list)
    """A model's folder or its name on the Hub: ours, or any that AutoModelForCausalLM loads. Of several the others are
    compared with the first."""
    train_data: list[DataName] = field(default_factory=list)
    """The text the model was trained on: adds baselines that learnt from it, and how much of it comes back word for
    word."""
    tasks: list[FileName] = field(default_factory=list)
    """Tasks of lm-eval: ours (docs_last_word, docs_module, docs_text, instruction_...), a standard one if the Hub can
    be reached, or a YAML file. A comma separates several."""
    num_fewshot: list[Annotated[int, Interval(ge=0, le=10_000)]] = field(default_factory=lambda: [0])
    """Examples before each question of a task; several, as in 0,1,2,4,8, give a curve."""
    limit: Count | None = None
    """Only the first rows of each task (default: all)."""
    stride: Count | None = None
    """Also measure with a window every so many tokens, so that every token has context before it."""
    by_document: bool = False
    """Also measure each document alone, so that no token is predicted from another document."""
    samples: CountOrNone = 8
    """Texts written, from the beginnings of documents of --data, to measure their quality; 0: none."""
    compare_tokenizer: list[ModelName] = field(default_factory=list)
    """Folders of tokenizers to compare the model's with (default: GPT-2's, where it is in the Hub's cache)."""
    batch_rows: Count = 16
    """Windows scored at once (fewer where windows are long); changes the speed and nothing else."""

    def __post_init__(self) -> None:
        """Bring every value into its type; a comma may separate tasks."""
        super().__post_init__()
        self.tasks = [task for item in self.tasks for task in item.split(",") if task]
