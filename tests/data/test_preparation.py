import json
from pathlib import Path

import pytest
import yaml

from groundup.common.console import console
from groundup.common.errors import InputError
from groundup.common.verbs import TokenizerSettings
from groundup.data.preparation import prepare, train_tokenizer
from groundup.data.tokens import TokenStream
from groundup.tokenization.folder import fingerprint, load_tokenizer, save_tokenizer
from groundup.tokenization.training import train_bpe

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "words.txt"
    words = ["some", "other", "quick", "brown", "lazy", "purple", "simple", "golden", "marble", "hidden", "silver"]
    path.write_text(
        "".join(
            f"line {number} of {word} words, as many as the {word} needs\n" for number, word in enumerate(words * 20)
        )
    )
    return str(path)


def test_a_tokenizer_is_trained_reported_and_written(text, tmp_path):
    with console.capture() as said:
        folder = train_tokenizer(data=[text], vocab_size=300, out="tok")
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == 300
    rows = json.loads((folder / "tokenizer_report.json").read_text())
    assert [row["tokenizer"] for row in rows] == ["byte-level BPE", "word-level", "bytes"]
    assert all(row["tokenizer"] in said.get() for row in rows)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["settings"]["vocab_size"] == 300
    assert recipe["settings"]["data"] == [recipe["sources"][0]["name"]] == ["words.txt"]
    assert recipe["tokenizer_sha256"] == fingerprint(tokenizer)
    assert str(tmp_path) not in (folder / "recipe.yaml").read_text()


def test_the_same_settings_make_the_same_files(text):
    first, second = (train_tokenizer(TokenizerSettings(data=[text], out=out)) for out in ("first", "second"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_without_out_a_new_folder_under_runs_is_made_each_time(text):
    folders = [train_tokenizer(data=[text], quiet=True) for _ in range(2)]
    assert folders[0] != folders[1]
    assert all(folder.parent.name == "runs" and folder.name.startswith("tokenizer-words") for folder in folders)


def test_a_word_tokenizer_is_trained_too(text):
    folder = train_tokenizer(data=[text], kind="word", vocab_size=50, out="words")
    assert load_tokenizer(folder).unk_token == "<|unk|>"


def test_text_held_back_is_not_learnt_from(tmp_path):
    (tmp_path / "a.txt").write_text("a a a b b b " * 30 + "zebra " * 6)  # the last tenth is all zebras
    folder = train_tokenizer(data=["a.txt"], kind="word", out="tok")
    assert "zebra" not in load_tokenizer(folder).get_vocab()


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_a_vocabulary_that_the_text_cannot_fill_says_what_would_do(text, kind):
    with pytest.raises(InputError, match="is enough for a vocabulary of") as error:
        train_tokenizer(data=[text], kind=kind, vocab_size=30_000, out="tok")
    possible = int(str(error.value).split("--vocab-size ")[1].split()[0])
    assert len(load_tokenizer(train_tokenizer(data=[text], kind=kind, vocab_size=possible, out="tok"))) == possible


def test_a_vocabulary_of_none_is_refused_and_nothing_is_left(text, tmp_path):
    with pytest.raises(InputError, match="vocab_size 0: a whole number of at least 1"):
        train_tokenizer(data=[text], vocab_size=0, out="tok")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["words.txt"]


def test_a_folder_in_use_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "file").touch()
    for verb in (train_tokenizer, lambda **options: prepare(tokenizer="missing", **options)):
        with pytest.raises(InputError, match="already holds something"):
            verb(data=["missing.txt"], out="tok")


def test_a_smoke_run_takes_a_little_of_the_text(tmp_path):
    (tmp_path / "large.txt").write_text("some words and numbers like 123\n" * 100_000)
    folder = prepare(data=["large.txt"], tokenizer=str(train_tokenizer(data=["large.txt"], smoke=True)), smoke=True)
    assert TokenStream.open(folder / "train").meta["bytes"] == 2**20


def test_text_is_prepared_as_shards_for_training_and_validation(text):
    tokenizer = train_tokenizer(data=[text], out="tok")
    folder = prepare(data=[text], tokenizer=str(tokenizer), out="shards")
    parts = [TokenStream.open(folder / part) for part in ("train", "validation")]
    decoded = [load_tokenizer(tokenizer).decode(part.read(1, len(part) - 1)) for part in parts]
    whole = Path(text).read_text()
    assert "".join(decoded) == whole
    assert len(decoded[0]) == int(len(whole) * 0.9)
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["settings"]["tokenizer"] == "tok"


def test_prepare_without_a_tokenizer_is_refused(text):
    with pytest.raises(InputError, match="--tokenizer"):
        prepare(data=[text])


def test_quiet_prints_nothing(text, capfd):
    prepare(data=[text], tokenizer=str(train_tokenizer(data=[text], quiet=True)), quiet=True)
    assert capfd.readouterr() == ("", "")


def test_the_tokenizer_of_shards_has_no_length_of_the_model_it_was_taken_from(text, tmp_path):
    save_tokenizer(train_bpe([Path(text).read_text()], 300), tmp_path / "model", 24)
    prepare(tokenizer=str(tmp_path / "model"), data=[text], out=str(tmp_path / "shards"))
    assert load_tokenizer(tmp_path / "shards" / "tokenizer").model_max_length > 10**9


@pytest.mark.parametrize(("kind", "said"), [("word", True), ("bpe", False)])
def test_a_tokenizer_that_knows_hardly_a_word_of_a_text_without_blanks_is_told(kind, said, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("".join(chr(0x4E00 + number * 37 % 900) for number in range(4000)))
    train_tokenizer(data=[str(tmp_path / "text.txt")], kind=kind, out=str(tmp_path / "out"))
    assert ("are unknown to it: use --kind bpe" in " ".join(capsys.readouterr().err.split())) == said
