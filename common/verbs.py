"""Declare the settings of the verbs that do not train (those that do: training/settings.py), and of a push.

What several verbs share is declared in `options`. Importing this costs nothing.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from groundup.common.options import (
    CheckpointOption,
    ContextOption,
    Count,
    CountOrNone,
    DataName,
    DryRunOption,
    EvalDataOption,
    FileName,
    MaxNewTokens,
    ModelName,
    ModelNameOrNone,
    Name,
    NameOrNone,
    Names,
    OutOption,
    Quantization,
    QuietOption,
    ResumeOption,
    SamplingOptions,
    SeedOption,
    SmokeOption,
    StockForm,
    TextOptions,
    TokenizerOption,
    TrustOption,
    VocabularyOption,
)
from groundup.common.settings import Settings

_SEED = "Written into the recipe; nothing here is random."
_SMOKE = "Run the same steps with the first megabyte of text."


@dataclass(kw_only=True)
class TokenizerSettings(QuietOption, SmokeOption, SeedOption, OutOption, VocabularyOption, TextOptions):
    """Train a tokenizer on nine tenths of a text, and measure it on the last tenth."""

    meaning: ClassVar[dict[str, str]] = {
        "vocab_size": "Tokens in the vocabulary, special ones included (default: the power of two at the square root "
        "of the bytes).",
        "seed": _SEED,
        "smoke": _SMOKE,
    }

    kind: Literal["bpe", "word"] = "bpe"
    """bpe: byte-level BPE, which decodes any text exactly; word: whole words, for teaching and comparison."""


@dataclass(kw_only=True)
class PrepareSettings(QuietOption, SmokeOption, ResumeOption, SeedOption, OutOption, TextOptions, TokenizerOption):
    """Tokenize text into shards, nine tenths for training and the last tenth for validation."""

    meaning: ClassVar[dict[str, str]] = {
        "data": "Text to tokenize: files, folders, globs, Hub datasets, or python-docs; may be given several times.",
        "seed": _SEED,
        "resume": "Resume the same command, keeping its complete shards; start if there are none.",
        "smoke": _SMOKE,
    }

    part: Name | None = None
    """I/N: prepare only part I of N, in its own folder under --out, where all parts meet. Files are divided if there
    are at least N, otherwise documents; each part holds out its own last tenth."""


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


@dataclass(kw_only=True)
class MergeSettings(QuietOption, TrustOption, OutOption):
    """Merge a LoRA adapter into its base model: one full checkpoint with the same outputs."""

    adapter: ModelNameOrNone = ""
    """An adapter's folder or Hub name."""
    base: ModelName | None = None
    """The model that the adapter was trained on (default: the one named in the adapter)."""


@dataclass(kw_only=True)
class ImportSettings(QuietOption, OutOption, TokenizerOption):
    """Convert a stock model (GPT-2, Llama, Qwen, Mistral, ...) into a checkpoint of ours with the same outputs."""

    meaning: ClassVar[dict[str, str]] = {
        "tokenizer": "The tokenizer: a folder or a Hub name (default: the files beside the weights)."
    }

    source: ModelNameOrNone = ""
    """A model's folder, its safetensors or GGUF file, or a Hub name; of GPT-2 also pytorch_model.bin and model.ckpt."""


@dataclass(kw_only=True)
class ExportSettings(EvalDataOption, QuietOption, OutOption, CheckpointOption):
    """Convert a checkpoint of ours into a stock model with exactly the same outputs, which needs no code of ours."""

    meaning: ClassVar[dict[str, str]] = {
        "out": "A new or empty folder, or with --to gguf a new file NAME.gguf (default: a new folder under runs/).",
        "eval_data": "With --to gguf: held-out text, on which llama.cpp measures what each --quantize costs, for the "
        "card.",
    }

    to: StockForm | None = None
    """The target: a folder for transformers and every tool that reads its models, or (gguf) a file for llama.cpp."""
    quantize: Quantization | None = None
    """With --to gguf: store the matrices in about 16, 8.5, 6.6, 5.7 or 4.9 bits a weight (default: exactly)."""


@dataclass(kw_only=True)
class PublishSettings(QuietOption, TrustOption, DryRunOption, CheckpointOption):
    """Publish a checkpoint on the Hub: verify that it loads in a clean process, write its card, push one commit."""

    meaning: ClassVar[dict[str, str]] = {
        "checkpoint": "The folder of a checkpoint: a model, an adapter, or an exported twin.",
        "dry_run": "Run every check and print the files, their sizes and the card; send nothing.",
        "trust_remote_code": "Run modeling files that are not this package's own, to verify that they work.",
    }

    repo_id: NameOrNone = ""
    """The repository, OWNER/NAME; it is created if it does not exist."""
    license: Name | None = None
    """The licence shown on the Hub, by its identifier, such as apache-2.0 (default: the recipe's)."""
    language: Names = field(default_factory=list)
    """Languages of the text, as ISO 639 codes such as en; may be given several times (default: the recipe's)."""
    base_model: Name | None = None
    """The Hub name of the base model of an adapter or a fine-tuned model (default: as recorded)."""
    private: bool = False
    """Create the repository as private; an existing public one is refused."""
    branch: Name | None = None
    """The branch to commit to (default: main); it is created if it does not exist."""
    pull_request: bool = False
    """Open a pull request instead of committing to main."""
    tag: Name | None = None
    """A tag for the commit, such as v1.0."""
    message: Name | None = None
    """The commit message (default: names what is published)."""
    with_twin: list[StockForm] = field(default_factory=list)
    """Also publish this stock form of the model, in a repository of its own: OWNER/NAME-qwen3."""
    space: bool = False
    """Also publish the playground for this model, as a Space that the Hub runs: OWNER/NAME-space."""


@dataclass(kw_only=True)
class PushOptions(Settings):
    """Push the checkpoints of a run to the Hub while it trains."""

    push_to: Name | None = None
    """Push the finished checkpoint to this repository on the Hub, OWNER/NAME; it is created if it does not exist."""
    push_base_model: Name | None = None
    """The Hub name of the base model of --lora, if the base is a local folder: an adapter names its base."""
    push_every: Count | None = None
    """Steps between two pushes of the current model; each push saves the state and makes one commit."""
    push_branch: Name | None = None
    """The branch to push to (default: main); it is created if it does not exist."""
    push_private: bool = False
    """Create the repository as private; an existing public one is refused."""
    push_license: Name | None = None
    """The licence shown on the Hub, by its identifier, such as apache-2.0; --push-to requires it."""


@dataclass(kw_only=True)
class WritingOptions(TrustOption, SamplingOptions):
    """The model that generates, and how it samples."""

    model: ModelNameOrNone = ""
    """A model's folder or Hub name: ours, or any that AutoModelForCausalLM loads."""


@dataclass(kw_only=True)
class GenerateSettings(QuietOption, ResumeOption, OutOption, WritingOptions):
    """Generate text from a prompt, token by token, or from many prompts at once."""

    meaning: ClassVar[dict[str, str]] = {
        "seed": "The same seed gives the same text; of --prompts each row has the next one, and names it.",
        "out": "With --prompts: the file to write, of JSON lines (default: standard output).",
        "resume": "With --prompts: go on with a half-written --out; start if there is none.",
    }

    prompt: str | None = None
    """The text to continue (default: standard input where something is piped in, else none: a new text)."""
    prompts: FileName | None = None
    """Generate for every prompt of this file: its lines, or the column `prompt` of JSON lines or a table. Each becomes
    a JSON line of its row with `generated_text`, `finish_reason` (stop or length), `tokens` and `seed`."""
    batch_prompts: Count = 32
    """Prompts generated for at once; changes only speed and memory."""
    as_message: bool = False
    """Send the prompt as a user message in the model's chat template, and print only the answer."""


@dataclass(kw_only=True)
class ChatSettings(WritingOptions):
    """Chat with a model in the terminal. /quit or Ctrl-D ends the conversation."""

    meaning: ClassVar[dict[str, str]] = {
        "seed": "The same seed gives the same answers.",
        "temperature": "Divides the logits before sampling; 0: the likeliest token (default: the model's, else 0.7).",
    }

    system: str = ""
    """The system message, if the model's chat template has one."""
    max_new_tokens: MaxNewTokens = 300
    """Most tokens in an answer."""


@dataclass(kw_only=True)
class PlaygroundSettings(TrustOption):
    """Open a web page on this machine to generate text, chat and look inside one or two models."""

    model: list[ModelName] = field(default_factory=list)
    """A model's folder or Hub name; give two to compare them."""
    port: Annotated[int, Interval(ge=1, le=65535)] | None = None
    """The port on 127.0.0.1 (default: the first free one from 7860)."""


@dataclass(kw_only=True)
class ServeSettings(ContextOption, QuietOption, TrustOption):
    """Serve a model to programs that speak OpenAI's protocol, by llama.cpp or transformers, until Ctrl-C."""

    meaning: ClassVar[dict[str, str]] = {
        "quiet": "Print nothing but errors, not even the address.",
        "context_length": "Most tokens of a request, prompt and answer together (default: the model's context).",
    }

    model: ModelNameOrNone = ""
    """A model's folder or Hub name, or a GGUF file."""
    engine: Literal["llama.cpp", "transformers"] = "llama.cpp"
    """llama.cpp: fast, many requests at once, with a GGUF file that is made once and kept in HF_HOME; transformers:
    `transformers serve`, for a model that a GGUF file cannot hold."""
    host: Name = "127.0.0.1"
    """The address to listen on; one that other machines reach needs --api-key."""
    port: Annotated[int, Interval(ge=1, le=65535)] = 8080
    """The port to listen on."""
    api_key: Name | None = None
    """The key that every request must bring (default: none is asked for)."""
    parallel: Annotated[int, Interval(ge=1, le=256)] = 4
    """Requests answered at once; more wait. Each has memory for --context-length tokens."""


@dataclass(kw_only=True)
class DoctorSettings(Settings):
    """Check versions, devices, compiler, memory and the Hub login, and say what to fix. Nothing is sent."""


@dataclass(kw_only=True)
class CompletionSettings(Settings):
    """Print a script that makes a shell complete verbs, options and choices."""

    shell: Literal["bash", "zsh", "fish"] = "bash"
    """bash, zsh or fish."""


@dataclass(kw_only=True)
class RunSettings(QuietOption, SmokeOption, DryRunOption, ResumeOption, OutOption):
    """Run all stages of a recipe and write one report. A stage whose inputs have not changed is skipped."""

    meaning: ClassVar[dict[str, str]] = {
        "out": "The folder of all stages (default: runs/NAME, by the recipe's name); finished stages in it are reused.",
        "dry_run": "Only print what would be done, and how long it may take.",
        "smoke": "Run the same stages with tiny models, in seconds.",
        "resume": "Nothing to ask for: finished stages are always kept, and a stopped one always goes on.",
    }

    recipe: NameOrNone = ""
    """A YAML file, or the name of a recipe that comes with the package, such as python_docs."""
