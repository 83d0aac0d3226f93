"""From a checkpoint to a clean process: the verb `publish` against the hub. Clients of it: `test_clients.py`."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import groundup.modeling  # noqa: F401 (for loading here what others load by the code that travels)

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


@pytest.mark.slow
def test_a_dry_run_shows_files_sizes_and_card_and_asks_nothing(publish, checkpoint, hub, repo_id):
    folder = checkpoint()
    (folder / "notes.txt").write_text("mine")
    seen = len(hub.requests())
    done = publish(folder, repo_id, "--dry-run", token=None)
    assert "236,920 bytes  model.safetensors" in done.stdout and "left out: notes.txt" in done.stdout
    assert "license: apache-2.0" in done.stdout and "nothing was sent" in done.stderr and len(hub.requests()) == seen
    assert "license" not in (folder / "recipe.yaml").read_text()  # the checkpoint itself is left as it was


def test_a_published_model_is_loaded_and_used_in_a_clean_process(elsewhere, checkpoint, hub, repo_id):
    folder = checkpoint()
    words = ("publish", folder, repo_id, "--license", "apache-2.0", "--language", "en", "--tag", "v1")
    done = elsewhere("-m", "groundup", *words)
    assert "published: " in done.stderr and hub.token not in done.stderr + done.stdout
    expected = {path.name for path in folder.iterdir()} | {".gitattributes", "README.md"}
    assert set(hub.files(repo_id)) == expected
    opening = f"import sys; sys.modules['groundup'] = None\nname, revision = {repo_id!r}, 'v1'\n"
    total, text, piped = elsewhere("-c", opening + CAUSAL, token=None).stdout.splitlines()
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
def test_an_adapter_without_a_base_that_others_have_is_not_published(publish, checkpoint, hub, repo_id):
    done = publish(checkpoint("adapter"), repo_id, check=False)
    assert done.returncode == 2 and "add --base-model OWNER/NAME" in done.stderr and hub.state(repo_id) is None


@pytest.mark.slow
def test_a_twin_is_published_beside_the_model_and_needs_no_code_of_ours(
    publish, clean_process, checkpoint, hub, repo_id
):
    publish(checkpoint(), repo_id, "--with-twin", "qwen3", "--with-twin", "gguf", "--tag", "v1")
    code = CAUSAL.replace(", trust_remote_code=True", "").replace(", trust_remote_code=False", "")
    assert clean_process(code, f"{repo_id}-qwen3", "v1") == clean_process(CAUSAL, repo_id, "v1")
    files = hub.files(f"{repo_id}-gguf")
    assert set(files) == {".gitattributes", "Modelfile", "README.md", "metrics.json", "model.gguf", "recipe.yaml"}
    for kind in ("qwen3", "gguf"):
        assert f"base_model: {repo_id}\n" in hub.files(f"{repo_id}-{kind}")["README.md"].decode()
