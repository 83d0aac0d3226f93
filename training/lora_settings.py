"""The settings of LoRA, shared by the verbs that fine-tune, and of the verb `merge`; importing them costs nothing."""

from dataclasses import MISSING, dataclass, field, fields

from groundup.common.errors import InputError


@dataclass(kw_only=True)
class LoraOptions:
    """What a low-rank adapter looks like (Hu et al. 2021)."""

    lora: bool = False
    """Freeze the model and train a low-rank adapter beside its matrices; the adapter is saved alone."""
    lora_rank: int = 16
    """Rows of the adapter's smaller matrices: its size, and how far a matrix can move."""
    lora_alpha: int = 32
    """The adapter's part is multiplied by alpha / rank, so that one learning rate suits every rank."""
    lora_dropout: float = 0.0
    """Probability of dropping an input of the adapter in training."""
    lora_targets: list[str] = field(default_factory=list)
    """Matrices that get an adapter, by the ends of their names (default: all matrices of the blocks)."""
    lora_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski 2023), meant for large ranks."""
    lora_dora: bool = False
    """Train a length for each output of a matrix too (DoRA, Liu et al. 2024); slower."""


def check_lora(options: LoraOptions) -> None:
    """Raise `InputError` for options of an adapter without `lora`, which nothing would heed, or that make no sense."""
    if not options.lora:
        for option in fields(LoraOptions):
            usual = option.default if option.default_factory is MISSING else option.default_factory()
            if option.name != "lora" and getattr(options, option.name) != usual:
                raise InputError(f"--{option.name.replace('_', '-')} says what an adapter is like: add --lora")
    check_sizes(options)


def check_sizes(options: LoraOptions) -> None:
    """Raise `InputError` for a rank, an alpha or a dropout that no adapter can have."""
    if options.lora_rank < 1:
        raise InputError(f"--lora-rank {options.lora_rank} must be at least 1")
    if not options.lora_alpha > 0:
        raise InputError(f"--lora-alpha {options.lora_alpha} must be above 0")
    if not 0 <= options.lora_dropout < 1:
        raise InputError(f"--lora-dropout {options.lora_dropout} must be at least 0 and below 1")


@dataclass(kw_only=True)
class MergeSettings:
    """Fold a LoRA adapter into its base: one full checkpoint that computes the same."""

    adapter: str = ""
    """An adapter's folder or its name on the Hub."""
    base: str | None = None
    """The model that the adapter was trained on (default: the one that the adapter names)."""
    out: str | None = None
    """A new or empty folder for the checkpoint (default: a new one under runs/)."""
    trust_remote_code: bool = False
    """Run code that comes with the base, if it is not one of ours."""
    quiet: bool = False
    """Print nothing but errors."""
