"""The settings of the verbs of this room; importing them costs nothing."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class EvaluateSettings:
    """Measure causal language models, on a text and on tasks, with baselines beside them; several are compared."""

    model: list[str] = field(default_factory=list)
    """A model's folder or its name on the Hub: ours, or any that AutoModelForCausalLM loads. Of several the others are
    compared with the first."""
    data: list[str] = field(default_factory=list)
    """The text to predict: files, folders, globs or Hub datasets. It must not have been trained on."""
    train_data: list[str] = field(default_factory=list)
    """The text the model was trained on: adds baselines that learnt from it, and how much of it comes back word for
    word."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of lm-eval: ours (docs_last_word, docs_module, docs_text, instruction_...), a standard one if the Hub can
    be reached, or a YAML file. A comma separates several."""
    num_fewshot: list[int] = field(default_factory=lambda: [0])
    """Examples before each question of a task; several, as in 0,1,2,4,8, give a curve."""
    limit: int | None = None
    """Only the first rows of each task (default: all)."""
    stride: int | None = None
    """Also measure with a window every so many tokens, so that every token has context before it."""
    by_document: bool = False
    """Also measure each document alone, so that no token is predicted from another document."""
    samples: int = 8
    """Texts written, from the beginnings of documents of --data, to measure their quality; 0: none."""
    compare_tokenizer: list[str] = field(default_factory=list)
    """Folders of tokenizers to compare the model's with (default: GPT-2's, where it is in the Hub's cache)."""
    out: str | None = None
    """A new folder for metrics.json and report.html (default: a new one under runs/)."""
    resume: bool = False
    """Go on with the evaluation in --out: what it has is kept, what failed is tried again."""
    text_column: str | None = None
    """The column with the text, for rows with several (default: found by its name)."""
    batch_rows: int = 16
    """Windows scored at once (fewer where windows are long); changes the speed and nothing else."""
    trust_remote_code: bool = False
    """Run code that comes with the model, if it is not one of ours."""
    seed: int = 0
    """Decides the samples, the examples of a prompt and the draws of the bootstrap."""
    smoke: bool = False
    """The same path in seconds: a little of the text, 8 rows of a task, 2 samples."""
    quiet: bool = False
    """Print nothing but errors."""

    def __post_init__(self) -> None:
        """One name may stand for a list of one, and a comma may separate tasks."""
        for name in ("model", "data", "train_data", "tasks", "compare_tokenizer"):
            if isinstance(value := getattr(self, name), str):
                setattr(self, name, [value] if value else [])
        self.tasks = [task for item in self.tasks for task in item.split(",") if task]
        if isinstance(self.num_fewshot, int):
            self.num_fewshot = [self.num_fewshot]


@dataclass(kw_only=True)
class PublishSettings:
    """Publish a checkpoint on the Hub: prove that it loads for strangers, write its card, push one commit."""

    checkpoint: str = ""
    """The folder of a checkpoint: a model, an adapter, or an exported twin."""
    repo_id: str = ""
    """The repository, as OWNER/NAME; it is made if it does not exist."""
    license: str | None = None
    """The licence that the Hub shows, by its identifier there, such as apache-2.0 (default: the recipe's)."""
    language: list[str] = field(default_factory=list)
    """Languages of the text, as ISO 639 codes such as en; give it several times for more (default: the recipe's)."""
    base_model: str | None = None
    """The name on the Hub of the model that an adapter or a fine-tuned model was made from (default: as recorded)."""
    private: bool = False
    """Make a new repository private; an existing public one is refused."""
    branch: str | None = None
    """The branch to commit to (default: main); it is made if it does not exist."""
    pull_request: bool = False
    """Open a pull request instead of committing to main."""
    tag: str | None = None
    """A name for this version, such as v1.0, put on the commit."""
    message: str | None = None
    """The commit's message (default: says what is published)."""
    with_twin: list[Literal["llama", "qwen3", "arcee", "gpt2", "gguf"]] = field(default_factory=list)
    """Publish this stock form of the model too, in a repository beside it: OWNER/NAME-qwen3."""
    space: bool = False
    """Publish the playground for this model too, as a Space that the Hub runs: OWNER/NAME-space."""
    dry_run: bool = False
    """Go through the gate and show the files, their sizes and the card; send nothing."""
    trust_remote_code: bool = False
    """Run modeling files that are not this package's own, to prove that they work."""
    quiet: bool = False
    """Print nothing but errors."""
