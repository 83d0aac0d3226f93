import bz2
import gzip
import hashlib
import json
import lzma
import zipfile

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.common.console import console
from groundup.common.errors import InputError
from groundup.data import documents as documents_module
from groundup.data import files, sources
from groundup.data.documents import Documents
from groundup.data.sources import load_corpus, load_documents, sample_texts, short_name, text_bytes
from groundup.data.tables import ArrowTable
from groundup.data.text_columns import find_text_column

LFS_NOTE = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n"
ROWS = [{"id": "1", "text": "first\r\n"}, {"id": "2", "text": "second é"}]


pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts_of(*data, **options):
    return list(load_documents(data, **options)[0].texts())


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_text_file_is_one_document_with_its_line_ends(tmp_path):
    text = "one\r\ntwo\rthree\n\u2028four\x0c\n\n"
    assert texts_of(write(tmp_path / "a.txt", text)) == [text]


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert texts_of(write(tmp_path / "a.txt", b"\xef\xbb\xbfhello")) == ["hello"]
    assert texts_of(write(tmp_path / "a.csv", b"\xef\xbb\xbftext,b\nhello,1\n")) == ["hello"]
    assert texts_of(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "hello"}\n')) == ["hello"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", jsonl(ROWS)),
        ("rows.json", json.dumps(ROWS, indent=1)),
        ("rows.csv", 'id,text\n1,"first\r\n"\n2,second é\n'),
        ("rows.tsv", 'id\ttext\n1\t"first\r\n"\n2\tsecond é\n'),
    ],
)
def test_a_row_is_a_document(tmp_path, name, content):
    assert texts_of(write(tmp_path / name, content)) == ["first\r\n", "second é"]


def test_parquet_rows_are_documents(tmp_path):
    pd.DataFrame(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert texts_of(str(tmp_path / "rows.parquet")) == ["first\r\n", "second é"]


def test_parquet_of_categories_of_several_groups_and_of_none_is_read(tmp_path):
    rows = pd.DataFrame({"id": range(5), "text": pd.Categorical([f"text {n % 2}" for n in range(5)])})
    rows.to_parquet(tmp_path / "rows.parquet", row_group_size=2)
    assert texts_of(str(tmp_path / "rows.parquet")) == [f"text {n % 2}" for n in range(5)]
    rows[:0].to_parquet(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="no text in"):
        texts_of(str(tmp_path / "none.parquet"))


def test_a_parquet_file_that_is_damaged_within_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"text": [f"a text of some length {n}" for n in range(5000)]}).to_parquet(path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[200:2000] = bytes(1800)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read rows\.parquet as \.parquet"):
        texts_of(str(path))


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_packed_files_are_read_as_what_they_hold(tmp_path, ending, pack):
    assert texts_of(write(tmp_path / f"a.txt{ending}", pack(b"text\r\n"))) == ["text\r\n"]
    assert texts_of(write(tmp_path / f"a.jsonl{ending}", pack(jsonl(ROWS).encode()))) == ["first\r\n", "second é"]


def test_a_zip_is_read_like_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("b/rows.jsonl", jsonl(ROWS))
        archive.writestr("a.txt", "from a")
        archive.writestr("picture.png", b"\0\0")
        archive.writestr("__MACOSX/a.txt", "no document")
    corpus = load_corpus([str(tmp_path / "all.zip")])
    assert [*corpus.train.texts(), *corpus.validation.texts()] == ["from a", "first\r\n", "second é"]
    assert [row["name"] for row in corpus.sources] == ["all.zip"]


def test_equal_archives_under_different_names_are_both_read(tmp_path):
    packed = gzip.compress(b'{"text": "x"}\n')
    assert texts_of(write(tmp_path / "a.jsonl.gz", packed), write(tmp_path / "b.txt.gz", packed)) == [
        "x",
        '{"text": "x"}\n',
    ]


def test_zst_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(InputError, match="pip install zstandard"):
        load_documents([write(tmp_path / "a.txt.zst", b"x")])


def test_a_folder_is_read_in_the_order_of_its_names_and_other_kinds_are_counted(tmp_path):
    write(tmp_path / "data" / "b.txt", "b")
    write(tmp_path / "data" / "a" / "z.md", "z")
    write(tmp_path / "data" / "a" / "rows.csv", "text\nrow\n")
    write(tmp_path / "data" / "picture.png", b"\x89PNG\0")
    write(tmp_path / "data" / "module.pyc", b"\0")
    write(tmp_path / "data" / ".hidden.txt", "hidden")
    with console.capture() as said:
        documents, _ = load_documents([str(tmp_path / "data")])
    assert list(documents.texts()) == ["row", "z", "b"]
    assert "skipped 2 of 5 files" in said.get()
    assert ".png, .pyc" in said.get()


def test_a_glob_is_read_in_the_order_of_its_names(tmp_path):
    for name in ("c.txt", "a.txt", "sub/b.txt", "d.md"):
        write(tmp_path / name, name)
    assert texts_of(str(tmp_path / "**" / "*.txt")) == ["a.txt", "c.txt", "sub/b.txt"]


def test_a_glob_with_an_ending_of_its_own_reads_such_files_as_text(tmp_path):
    write(tmp_path / "code.py", "print(1)\n")
    assert texts_of(str(tmp_path / "*.py")) == ["print(1)\n"]


def test_several_data_are_read_in_the_order_given(tmp_path):
    second, first = write(tmp_path / "a.txt", "second"), write(tmp_path / "b.jsonl", jsonl([{"text": "first"}]))
    assert texts_of(first, second) == ["first", "second"]


def test_a_changed_file_is_read_anew(tmp_path):
    for name, old, new in [("a.txt", b"old", b"new"), ("a.txt.gz", gzip.compress(b"old"), gzip.compress(b"new"))]:
        assert texts_of(write(tmp_path / name, old)) == ["old"]
        assert texts_of(write(tmp_path / name, new)) == ["new"]
    for value in ("old", "new"):
        assert texts_of(write(tmp_path / "a.jsonl", jsonl([{"text": value}]))) == [value]


def test_nothing_is_written_beside_the_data(tmp_path):
    for name, content in [("a.txt", b"x"), ("b.jsonl", jsonl(ROWS)), ("c.txt.gz", gzip.compress(b"x"))]:
        write(tmp_path / "data" / name, content)
    before = sorted((tmp_path / "data").iterdir())
    load_documents([str(tmp_path / "data")])
    assert sorted((tmp_path / "data").iterdir()) == before


def test_reading_says_the_columns_and_nothing_else(tmp_path, capfd):
    load_corpus([write(tmp_path / "rows.jsonl", jsonl(ROWS * 100))])
    assert capfd.readouterr() == ("", "rows.jsonl: reads the column text; not id\n")


def test_empty_documents_are_left_out(tmp_path):
    rows = [{"text": None}, {"text": ""}, {"text": " \n"}, {"text": "kept"}, {"other": 1}]
    assert texts_of(write(tmp_path / "rows.jsonl", jsonl(rows))) == ["kept"]


def test_files_without_text_are_left_out_and_counted(tmp_path):
    for name, content in {"a.txt": "a", "b.txt": "", "c.md": " \n", "d.txt": "\ufeff", "e.jsonl": jsonl(ROWS)}.items():
        write(tmp_path / "all" / name, content)
    with console.capture() as said:
        assert len(texts_of("all")) == 3
    assert "3 files have no text and are left out: b.txt, c.md, d.txt" in said.get()


def test_a_split_that_is_not_read_is_said_once(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "saved"))
    with console.capture() as said:
        assert len(texts_of("saved")) == 2
    assert said.get().count("the split train is read, not test") == 1


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["content", "title"], "content"),
        (["Text", "content"], "Text"),
        (["note"], "note"),
        (["short", "long"], "long"),
    ],
)
def test_the_text_column_is_found(columns, found):
    values = {"short": "a", "long": "a longer text"}
    dataset = datasets.Dataset.from_dict({"number": [1], **{name: [values.get(name, "words")] for name in columns}})
    assert find_text_column(ArrowTable.of(dataset, "rows")) == found


def test_a_named_column_is_taken(tmp_path):
    path = write(tmp_path / "rows.csv", "text,title\nlong text,Title\n")
    assert texts_of(path, text_column="title") == ["Title"]


def test_a_named_column_that_is_absent_is_answered_with_those_there_are(tmp_path):
    path = write(tmp_path / "rows.csv", "body,title\na,b\n")
    with pytest.raises(
        InputError,
        match=r"rows.csv has no column 'titel' \(did you mean 'title'\?\) .*: it has body .* title",
    ):
        load_documents([path], text_column="titel")


def test_csv_values_stay_as_written(tmp_path):
    path = write(tmp_path / "rows.csv", "text\n007\nNA\n1.50\ntrue\n2020-01-01\n")
    assert texts_of(path) == ["007", "NA", "1.50", "true", "2020-01-01"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"abc\0def", "a.txt is a binary file"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0", "a.png is a binary file"),
        ("a.txt", "wide".encode("utf-16"), "a.txt is UTF-16 text: convert it to UTF-8"),
        ("a.csv", "text,n\nwide,1\n".encode("utf-16-le"), "a.csv is UTF-16 text: convert it to UTF-8"),
        ("a.jsonl", '{"text": "wide"}'.encode("utf-16-be"), "a.jsonl is UTF-16 text: convert it to UTF-8"),
        ("a.csv", b"text,n\nnull \0 byte,1\n", r"a.csv is a binary file \(byte 12 is 0\)"),
        ("a.txt", LFS_NOTE, "a.txt is not the file itself but a note of Git LFS"),
        ("a.parquet", LFS_NOTE, "a.parquet is not the file itself but a note of Git LFS"),
        ("a.jsonl.gz", LFS_NOTE, "a.jsonl.gz is not the file itself but a note of Git LFS"),
        ("a.txt", b"abc\xe9def", r"a.txt is not UTF-8 text \(byte 3\)"),
        ("a.txt", "abc€".encode()[:-1], "a.txt ends within a character"),
        ("a.txt", b"", "no text in .*a.txt"),
        ("a.txt", b" \n\t", "no text in .*a.txt"),
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "cannot read a.jsonl: line 2 is no valid JSON"),
        ("a.jsonl", b'{"n": 1}\n', r"a.jsonl has no column of text: it has n \(a number\)"),
        ("a.csv", b"a,text\n", "there are no rows"),
        ("a.csv", b"a,text\n1,hello, world\n", "line 2 does not fit: it has 3 fields, the header has 2"),
        ("a.csv", b"a,text\n1,x\n2,y,z\n", "line 3 does not fit"),
        ("a.csv", b"a,text\n1,\xe9\n", r"a.csv is not UTF-8 text \(byte 9\)"),
        ("a.parquet", b"no parquet", "cannot read a.parquet as .parquet"),
        ("a.txt.gz", b"no gzip", "damaged"),
        ("a.txt.gz", gzip.compress(b"some text" * 99, mtime=0)[:20] + b"damaged" * 9, "damaged"),
        ("a.txt.bz2", b"no bzip2", "cannot read a.txt.bz2: Invalid data stream"),
        ("a.txt.xz", b"no xz", "damaged"),
        ("a.zip", b"no zip", "damaged"),
        ("a.txt.gz", gzip.compress(b"x" * 9999, mtime=0)[:30], "damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as error:
        load_documents([write(tmp_path / name, content)])
    assert "\n" not in str(error.value)


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_invalid_utf8_is_found_where_python_finds_it(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "a.txt"
    path.write_bytes(b"a" + content.replace(b"\0", b""))  # a PDF, for one, is told by its beginning
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", 7)  # so that characters lie across blocks
        try:
            path.read_bytes().decode()
            files.check_text(path, "a.txt")
        except UnicodeDecodeError as error:
            with pytest.raises(InputError, match=f"byte {error.start}|ends within"):
                files.check_text(path, "a.txt")


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", write(tmp_path / "a-file-not-a-folder", "x") + "/cache")
    with pytest.raises(InputError, match="set HF_HOME"):
        load_documents([write(tmp_path / "a.jsonl", jsonl(ROWS))])


def test_a_missing_file_is_answered_with_a_near_name(tmp_path):
    write(tmp_path / "shakespeare.txt", "x")
    with pytest.raises(InputError, match=r"no file or folder .*shakespear.txt \(did you mean 'shakespeare.txt'\?\)"):
        load_documents([str(tmp_path / "shakespear.txt")])


def test_a_folder_or_glob_with_nothing_to_read_is_refused(tmp_path):
    write(tmp_path / "pictures" / "a.png", b"\0")
    for item in (tmp_path / "pictures", tmp_path / "*.txt"):
        with pytest.raises(InputError, match="no file to read"):
            load_documents([str(item)])


def test_no_data_is_refused():
    with pytest.raises(InputError, match="no --data"):
        load_corpus([])


def test_a_hub_dataset_that_cannot_be_fetched_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot load owner/name from the Hub") as error:
        load_documents(["owner/name"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("item", "asked"),
    [
        ("owner/name", ("owner/name", None, "train")),
        ("owner/name:test", ("owner/name", None, "test")),
        ("owner/name:de:train[:10%]".removesuffix("[:10%]"), ("owner/name", "de", "train")),
    ],
)
def test_a_hub_dataset_is_named_with_configuration_and_split(tmp_path, monkeypatch, item, asked):
    table = datasets.Dataset.from_dict({"text": ["from the Hub"]}).with_format("arrow")[:]
    cached = tmp_path / "owner___name" / "abc123" / "rows.arrow"
    cached.parent.mkdir(parents=True)
    with pa.OSFile(str(cached), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    rows = datasets.Dataset.from_file(str(cached))
    seen = []

    def load_dataset(name, config, split):
        seen.append((name, config, split))
        return rows

    monkeypatch.setattr(sources.HfApi, "dataset_info", lambda api, name, timeout: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    documents, about = sources.load_documents([item])
    assert seen == [asked]
    assert list(documents.texts()) == ["from the Hub"]
    columns = {"columns": {"text": "text"}, "columns_not_read": []}
    assert about == [{"name": item, "revision": "abc123", **columns}]


def test_a_path_is_never_taken_for_a_hub_name(tmp_path):
    (tmp_path / "folder").mkdir()
    for item in ("folder/missing", "missing.txt", "folder2/missing.txt", "/absolute/path", "a/b/c", "*/name"):
        assert not sources.is_hub_name(item)
    assert sources.is_hub_name("owner/name-1.0")


def test_the_last_tenth_of_a_single_texts_characters_is_held_out(tmp_path, monkeypatch):
    # Small blocks, so that the cut lies in some later one.
    monkeypatch.setattr(documents_module, "BLOCK_BYTES", 16)
    for text in ("abcdefghij" * 7, "é漢👋x\r\n" * 33, "ab"):
        corpus = load_corpus([write(tmp_path / "a.txt", text)])
        cut = int(len(text) * 0.9)
        assert list(corpus.train.texts()) == [text[:cut]]
        assert list(corpus.validation.texts()) == [text[cut:]]


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (10, 1), (19, 1), (30, 3)])
def test_the_last_tenth_of_documents_is_held_out(tmp_path, count, held_out):
    corpus = load_corpus([write(tmp_path / "rows.jsonl", jsonl([{"text": f"row {n}"} for n in range(count)]))])
    assert list(corpus.train.texts()) == [f"row {n}" for n in range(count - held_out)]
    assert list(corpus.validation.texts()) == [f"row {n}" for n in range(count - held_out, count)]


def test_a_part_held_out_that_is_far_from_a_tenth_of_the_text_is_said(tmp_path, capsys):
    for name, size in (("a", 960), ("b", 40), ("c", 960), ("d", 107)):
        write(tmp_path / f"{name}.txt", "x" * size)
    load_corpus([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert "held out for validation: the last 1 of 2 documents, 4.0% of the text" in capsys.readouterr().err
    load_corpus([str(tmp_path / "c.txt"), str(tmp_path / "d.txt")])
    assert "held out" not in capsys.readouterr().err


def test_too_little_text_to_keep_some_back_is_refused(tmp_path):
    for text in ("a", " b"):
        with pytest.raises(InputError, match="too little text"):
            load_corpus([write(tmp_path / "a.txt", text)])


def test_a_corpus_names_its_sources_without_their_folders(tmp_path):
    write(tmp_path / "data" / "sub" / "a.txt.gz", gzip.compress(b"some text"))
    write(tmp_path / "data" / "b.txt", "more text")
    corpus = load_corpus([str(tmp_path / "data")])
    assert [row["name"] for row in corpus.sources] == ["b.txt", "sub/a.txt.gz"]
    for row, path in zip(corpus.sources, ("b.txt", "sub/a.txt.gz")):
        content = (tmp_path / "data" / path).read_bytes()
        assert row["bytes"] == len(content)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert str(tmp_path) not in json.dumps(corpus.sources)


def test_a_corpus_has_a_short_name(tmp_path):
    assert short_name(["/some/where/Shake speare.txt"]) == "Shake-speare"
    assert short_name([str(tmp_path), "b.txt", "c.txt"]) == f"{tmp_path.name}-and-2-more"
    assert short_name(["owner/name:test"]) == "name"
    assert short_name(["python-docs"]) == "python-docs"


def test_a_sample_spreads_over_the_documents():
    texts = [f"{number:04}" for number in range(1000)]
    documents = Documents.of(datasets.Dataset.from_dict({"text": texts}))
    assert text_bytes(documents) == 4000
    assert list(sample_texts(documents, 4000)) == texts
    assert list(sample_texts(documents, 400)) == texts[::10]


@given(st.text("xé漢👋", min_size=1, max_size=30), st.integers(1, 60))
@settings(deadline=None)
def test_a_sample_of_a_single_text_is_cut_between_characters(text, limit):
    sample = "".join(sources.sample(Documents.of(datasets.Dataset.from_dict({"text": [text]})), limit).texts())
    assert text.startswith(sample)
    assert limit - 4 < len(sample.encode()) <= limit or sample == text
