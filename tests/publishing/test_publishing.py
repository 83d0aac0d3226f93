"""From a checkpoint to strangers: the verb, the hub, and every client that people load with, none of which knows us."""

import pytest

LICENSED = ("--license", "apache-2.0", "--language", "en")
WITHOUT_US = "import sys; sys.modules['groundup'] = None\n"
CAUSAL = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained(name, revision=revision, trust_remote_code=True)
ids = tokenizer("The cat", return_tensors="pt")
print(model(**ids).logits.double().sum().item())
print(repr(tokenizer.decode(model.generate(**ids, max_new_tokens=5, do_sample=False)[0])))
write = pipeline("text-generation", model=name, revision=revision, trust_remote_code=True)
print(repr(write("The cat", max_new_tokens=5, do_sample=False, return_full_text=True)[0]["generated_text"]))
"""


@pytest.fixture
def publish(elsewhere):
    def run(folder, repo_id, *options, **more):
        return elsewhere("-m", "groundup", "publish", folder, repo_id, *LICENSED, *options, **more)

    return run


@pytest.fixture
def stranger(elsewhere):
    """Run code that knows `name` and `revision`, but neither our package nor a token."""

    def run(code, repo_id, revision="main", token=None, **more):
        opening = f"{WITHOUT_US}name, revision = {repo_id!r}, {revision!r}\n"
        return elsewhere("-c", opening + code, token=token, **more).stdout.splitlines()

    return run


@pytest.mark.slow
def test_a_dry_run_shows_files_sizes_and_card_and_asks_nothing(publish, checkpoint, hub, repo_id):
    folder = checkpoint()
    (folder / "notes.txt").write_text("mine")
    seen = len(hub.requests())
    done = publish(folder, repo_id, "--dry-run", token=None)
    assert "236,920 bytes  model.safetensors" in done.stdout and "left out: notes.txt" in done.stdout
    assert "license: apache-2.0" in done.stdout and len(hub.requests()) == seen
    assert "license" not in (folder / "recipe.yaml").read_text()  # the checkpoint itself is left as it was


def test_a_published_model_is_loaded_and_used_by_strangers(publish, stranger, checkpoint, hub, repo_id):
    folder = checkpoint()
    done = publish(folder, repo_id, "--tag", "v1")
    assert "published: " in done.stderr and hub.token not in done.stderr + done.stdout
    expected = {path.name for path in folder.iterdir()} | {".gitattributes", "README.md"}
    assert set(hub.files(repo_id)) == expected
    total, text, piped = stranger(CAUSAL, repo_id, "v1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The cat", return_tensors="pt")
    with torch.no_grad():
        assert float(total) == pytest.approx(model(**ids).logits.double().sum().item(), abs=1e-3)
    assert text == piped == repr(tokenizer.decode(model.generate(**ids, max_new_tokens=5, do_sample=False)[0]))


@pytest.mark.slow
def test_a_checkpoint_that_is_not_fit_sends_nothing(publish, checkpoint, hub, repo_id):
    folder = checkpoint()
    (folder / "optimizer.pt").write_bytes(b"x")
    seen = len(hub.requests())
    done = publish(folder, repo_id, check=False)
    assert done.returncode == 2 and "optimizer.pt is or may be a pickle" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and len(hub.requests()) == seen


@pytest.mark.slow
def test_a_failing_hub_is_exit_status_one_in_one_line(publish, checkpoint, hub, repo_id):
    hub.fail({"path": "/commit/", "do": "status", "status": 503, "times": 9})
    done = publish(checkpoint(), repo_id, "--quiet", check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "again later" in done.stderr
    hub.fail()
    publish(checkpoint(name="again"), repo_id, "--quiet")


@pytest.mark.slow
def test_a_changed_model_file_is_not_run(publish, checkpoint, hub, repo_id, tmp_path):
    folder = checkpoint()
    path = folder / "modeling_groundup.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + path.read_text())
    done = publish(folder, repo_id, check=False)
    assert done.returncode == 2 and "is not the one of groundup" in done.stderr and not (tmp_path / "ran").exists()
    publish(folder, repo_id, "--trust-remote-code")
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_classifier_is_loaded_with_its_labels(publish, stranger, checkpoint, repo_id):
    publish(checkpoint("classifier"), repo_id)
    code = """
from transformers import AutoModelForSequenceClassification, pipeline
model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True)
print(model.config.id2label)
judge = pipeline("text-classification", model=name, trust_remote_code=True)
print(judge("The cat sat")[0]["label"] in ("ham", "maybe", "spam"))
"""
    assert stranger(code, repo_id) == ["{0: 'ham', 1: 'maybe', 2: 'spam'}", "True"]


@pytest.mark.slow
def test_the_other_clients_of_the_hub_fetch_what_was_pushed(publish, stranger, elsewhere, checkpoint, hub, repo_id):
    folder = checkpoint()
    publish(folder, repo_id, "--private", "--branch", "second")
    sha = hub.state(repo_id)["heads"]["second"]
    code = """
from pathlib import Path
from huggingface_hub import ModelCard, get_safetensors_metadata, model_info, snapshot_download
place = Path(snapshot_download(name, revision=revision))
print(sorted(path.name for path in place.iterdir()))
print(model_info(name, revision=revision).sha == revision)
card = ModelCard.load(place / "README.md")
card.validate()
print(card.data.license, card.data.pipeline_tag, card.data.language)
"""
    names = sorted({path.name for path in folder.iterdir()} | {".gitattributes", "README.md"})
    said = stranger(code, repo_id, sha, token=hub.token)
    assert said == [str(names), "True", "apache-2.0 text-generation ['en']"]
    fetched = elsewhere("-m", "huggingface_hub.cli.hf", "download", repo_id, "--revision", "second", check=False)
    assert fetched.returncode == 0, fetched.stderr
    refused = stranger_error(elsewhere, repo_id)
    assert "RepositoryNotFoundError" in refused  # it is private


def stranger_error(elsewhere, repo_id):
    code = f"from huggingface_hub import snapshot_download; snapshot_download({repo_id!r})"
    return elsewhere("-c", code, token=None, check=False).stderr


@pytest.mark.slow
def test_evaluation_tools_load_what_was_pushed(publish, stranger, checkpoint, repo_id, tmp_path):
    publish(checkpoint(), repo_id)
    code = """
from lm_eval.models.huggingface import HFLM
from lm_eval.api.instance import Instance
model = HFLM(pretrained=name, trust_remote_code=True, device="cpu", batch_size=1)
requests = [Instance("loglikelihood", {}, ("The cat", " sat"), 0)]
print(model.loglikelihood(requests)[0][0] < 0)
"""
    assert stranger(code, repo_id)[-1] == "True"


def python_of(card):
    """The code on a card, for the repository `name` instead of this folder, and five tokens."""
    code = card.split("```python\n")[1].split("```")[0]
    return code.replace('"."', "name").replace("max_new_tokens=50", "max_new_tokens=5")


@pytest.mark.slow
def test_an_adapter_names_its_base_and_is_loaded_on_top_of_it(publish, stranger, checkpoint, hub, repo_id):
    folder, base_id = checkpoint("adapter"), f"{repo_id}-base"
    done = publish(folder, repo_id, check=False)
    assert done.returncode == 2 and "add --base-model OWNER/NAME" in done.stderr and hub.state(repo_id) is None
    publish(checkpoint("language"), base_id)
    publish(folder, repo_id, "--base-model", base_id)
    card = hub.files(repo_id)["README.md"].decode()
    assert f"base_model: {base_id}" in card and "base_model_relation: adapter" in card and "library_name: peft" in card
    code = (
        card.split("```python\n")[1]
        .split("```")[0]
        .replace('"."', "name")
        .replace("max_new_tokens=50", "max_new_tokens=5")
    )
    assert stranger(code, repo_id)[0].startswith("Once upon a time")


@pytest.mark.slow
def test_a_twin_is_published_beside_the_model_and_needs_no_code_of_ours(publish, stranger, checkpoint, hub, repo_id):
    publish(checkpoint(), repo_id, "--with-twin", "qwen3", "--with-twin", "gguf", "--tag", "v1")
    code = CAUSAL.replace(", trust_remote_code=True", "").replace(", trust_remote_code=False", "")
    assert stranger(code, f"{repo_id}-qwen3", "v1") == stranger(CAUSAL, repo_id, "v1")
    files = hub.files(f"{repo_id}-gguf")
    assert set(files) == {".gitattributes", "README.md", "metrics.json", "model.gguf", "recipe.yaml"}
    for kind in ("qwen3", "gguf"):
        assert f"base_model: {repo_id}\n" in hub.files(f"{repo_id}-{kind}")["README.md"].decode()


@pytest.mark.slow
def test_the_code_on_a_card_runs_from_the_hub(publish, stranger, checkpoint, hub, repo_id):
    publish(checkpoint(), repo_id)
    card = hub.files(repo_id)["README.md"].decode()
    code = (
        card.split("```python\n")[1]
        .split("```")[0]
        .replace('"."', "name")
        .replace("max_new_tokens=50", "max_new_tokens=5")
    )
    assert stranger(code, repo_id)[0].startswith("Once upon a time")
