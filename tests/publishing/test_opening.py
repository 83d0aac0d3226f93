"""Every door opens a model in one way: an adapter is folded, what is no model is refused in one line of its cause."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from groundup.common.errors import InputError
from groundup.inference.loading import load_adapter, load_model, load_writer
from groundup.publishing.conversion import export, merge


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def without_base(folder):
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(folder.parent / "gone")
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def without_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


# Each: the kind of checkpoint, what is done to it, and the cause that is named.
FAULTS = {
    "a cut model": ("language", lambda f: cut(f / "model.safetensors"), "its weights file is truncated"),
    "a cut adapter": ("adapter", lambda f: cut(f / "adapter_model.safetensors"), "is truncated or not safetensors"),
    "an adapter without its base": ("adapter", without_base, "needs its base; .*gone does not exist"),
    "an adapter with broken settings": ("adapter", lambda f: (f / "adapter_config.json").write_text("{"), "no mapping"),
    "a config that is a list": ("language", lambda f: (f / "config.json").write_text("[1]"), "config"),
    "a model without a tokenizer": ("language", without_tokenizer, "it has no tokenizer.json"),
    "an empty folder": ("language", lambda f: (shutil.rmtree(f), f.mkdir()), "has no config.json"),
    "a file for llama.cpp": (
        "language",
        lambda f: (shutil.rmtree(f), f.with_name("x.gguf").write_bytes(b"GGUF")),
        "is a GGUF file",
    ),
}
DOORS = {
    "load_model": load_model,
    "load_writer": load_writer,
    "export": lambda folder: export(checkpoint=folder, to="qwen3", out=f"{folder}-out"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_opened_is_one_line_with_its_cause(fault, door, checkpoint, tmp_path):
    kind, spoil, words = FAULTS[fault]
    folder = checkpoint(kind)
    spoil(folder)
    place = folder if folder.is_dir() else folder.with_name("x.gguf")
    with pytest.raises(InputError, match=words) as error:
        DOORS[door](str(place))
    assert "\n" not in str(error.value)
    assert not (tmp_path / f"{place.name}-out").exists()


@pytest.mark.parametrize("wrong", ["[1]", "{}", '{"metrics": 3}'])
def test_scores_that_are_none_are_said_before_a_twin_is_written(wrong, checkpoint, tmp_path):
    folder = checkpoint()
    (folder / "metrics.json").write_text(wrong)
    with pytest.raises(InputError, match="has no list of metrics"):
        export(checkpoint=str(folder), to="qwen3", out=str(tmp_path / "twin"))


@pytest.mark.parametrize("kind", ["language", "adapter"])
def test_scores_of_other_weights_do_not_go_along(kind, checkpoint, tmp_path, capsys):
    folder = checkpoint(kind)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["metrics"]
    (folder / "metrics.json").write_text(json.dumps(metrics | {"weights_sha256": "0" * 64}))
    export(checkpoint=str(folder), to="qwen3", out=str(tmp_path / "twin"))
    assert "its scores are left out" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "twin" / "metrics.json").read_text())["metrics"] == []
    if kind == "adapter":
        merge(adapter=str(folder), out=str(tmp_path / "merged"))
        assert json.loads((tmp_path / "merged" / "metrics.json").read_text())["metrics"] == []


def test_an_adapter_without_a_tokenizer_takes_its_bases(checkpoint, bpe, tmp_path):
    folder = checkpoint("adapter")
    without_tokenizer(folder)
    assert len(load_model(folder)[1]) == len(bpe) and load_adapter(folder)
    merge(adapter=str(folder), out=str(tmp_path / "merged"), quiet=True)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


@pytest.mark.parametrize("to", ["qwen3", "gguf"])
def test_an_adapter_is_exported_as_what_it_makes_of_its_base(to, checkpoint, tmp_path):
    folder = checkpoint("adapter")
    written = export(checkpoint=str(folder), to=to, out=str(tmp_path / ("x.gguf" if to == "gguf" else "x")), quiet=True)
    place, options = (tmp_path, {"gguf_file": "x.gguf"}) if to == "gguf" else (written, {})
    twin = AutoModelForCausalLM.from_pretrained(place, **options)
    ids = torch.arange(40).view(2, 20)
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    with torch.no_grad():
        expected, alone, got = (model(ids).logits for model in (load_model(folder)[0], load_model(base)[0], twin))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, alone, atol=1e-2)
