"""The settings of the verbs of this room; importing them costs nothing."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Interval

from groundup.common.options import (
    CheckpointOption,
    Count,
    CountOrNone,
    DataName,
    DryRunOption,
    FileName,
    ModelName,
    Name,
    NameOrNone,
    Names,
    OutOption,
    QuietOption,
    ResumeOption,
    SeedOption,
    SmokeOption,
    StockForm,
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


@dataclass(kw_only=True)
class PublishSettings(QuietOption, TrustOption, DryRunOption, CheckpointOption):
    """Publish a checkpoint on the Hub: prove that it loads for strangers, write its card, push one commit."""

    meaning: ClassVar[dict[str, str]] = {
        "checkpoint": "The folder of a checkpoint: a model, an adapter, or an exported twin.",
        "dry_run": "Go through the gate and show the files, their sizes and the card; send nothing.",
        "trust_remote_code": "Run modeling files that are not this package's own, to prove that they work.",
    }

    repo_id: NameOrNone = ""
    """The repository, as OWNER/NAME; it is made if it does not exist."""
    license: Name | None = None
    """The licence that the Hub shows, by its identifier there, such as apache-2.0 (default: the recipe's)."""
    language: Names = field(default_factory=list)
    """Languages of the text, as ISO 639 codes such as en; give it several times for more (default: the recipe's)."""
    base_model: Name | None = None
    """The name on the Hub of the model that an adapter or a fine-tuned model was made from (default: as recorded)."""
    private: bool = False
    """Make a new repository private; an existing public one is refused."""
    branch: Name | None = None
    """The branch to commit to (default: main); it is made if it does not exist."""
    pull_request: bool = False
    """Open a pull request instead of committing to main."""
    tag: Name | None = None
    """A name for this version, such as v1.0, put on the commit."""
    message: Name | None = None
    """The commit's message (default: says what is published)."""
    with_twin: list[StockForm] = field(default_factory=list)
    """Publish this stock form of the model too, in a repository beside it: OWNER/NAME-qwen3."""
    space: bool = False
    """Publish the playground for this model too, as a Space that the Hub runs: OWNER/NAME-space."""
