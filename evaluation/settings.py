"""The settings of the verbs of this room; importing them costs nothing."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class EvaluateSettings:
    """Measure how well a causal language model predicts a text, with baselines beside it."""

    model: str = ""
    """A model's folder or its name on the Hub: ours, or any that AutoModelForCausalLM loads."""
    data: list[str] = field(default_factory=list)
    """The text to predict: files, folders, globs or Hub datasets. It must not have been trained on."""
    out: str | None = None
    """A new folder for metrics.json (default: a new one under runs/)."""
    text_column: str | None = None
    """The column with the text, for rows with several (default: found by its name)."""
    batch_rows: int = 16
    """Windows scored at once (fewer where windows are long); changes the speed and nothing else."""
    trust_remote_code: bool = False
    """Run code that comes with the model, if it is not one of ours."""
    seed: int = 0
    """Written beside every number; nothing here is left to chance."""
    quiet: bool = False
    """Print nothing but errors."""
