"""What was published, loaded by every client that people use, none of which knows this package."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel

import groundup.modeling  # noqa: F401 (for loading here what others load by the code that travels)

IDS = torch.arange(2, 34)[None]
LOGITS = """
import torch
def logits(model):
    ids = torch.arange(2, 34)[None]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(ids, **more)[0].double().sum().item()
"""
CAUSAL = (
    LOGITS
    + """
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained(name, revision=revision, trust_remote_code=True)
print(logits(model))
ids = tokenizer("The cat", return_tensors="pt")
print(repr(tokenizer.decode(model.generate(**ids, max_new_tokens=5, do_sample=False)[0])))
write = pipeline("text-generation", model=name, revision=revision, trust_remote_code=True)
print(repr(write("The cat", max_new_tokens=5, do_sample=False, return_full_text=True)[0]["generated_text"]))
"""
)


def logits(model):
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(IDS, **more)[0].double().sum().item()


def python_of(card):
    """Return the code on a card as it stands, but for five tokens."""
    return card.split("```python\n")[1].split("```")[0].replace("max_new_tokens=50", "max_new_tokens=5")


@pytest.fixture
def versions(hub, publish, published, makers):
    """Return the name of a language model on the hub, and the folder of each of its two versions by its tag."""
    name = published("language")
    if "v2" not in hub.state(name)["tags"]:
        publish(makers("second"), name, "--tag", "v2")
    return name, {"v1": makers("language"), "v2": makers("second")}


@pytest.mark.slow
def test_a_language_model_is_used_at_any_revision(versions, clean_process, hub):
    name, folders = versions
    first = hub.state(name)["tags"]["v1"]
    for revision, version in (("main", "v2"), ("v2", "v2"), ("v1", "v1"), (first, "v1")):
        total, text, piped = clean_process(CAUSAL, name, revision)
        model = transformers.AutoModelForCausalLM.from_pretrained(folders[version])
        tokenizer = transformers.AutoTokenizer.from_pretrained(folders[version])
        assert float(total) == pytest.approx(logits(model), abs=1e-3)
        ids = tokenizer("The cat", return_tensors="pt")
        assert text == piped == repr(tokenizer.decode(model.generate(**ids, max_new_tokens=5, do_sample=False)[0]))


@pytest.mark.slow
def test_every_other_head_is_loaded_and_used(hub, published, clean_process, makers, kinds):
    for kind, (head, _) in kinds.items():
        code = f"""
from transformers import {head} as Auto
for at in (None, revision):
    print(logits(Auto.from_pretrained(name, revision=at, trust_remote_code=True)))
"""
        here = logits(getattr(transformers, head).from_pretrained(makers(kind)))
        assert [float(total) for total in clean_process(LOGITS + code, published(kind), "v1")] == pytest.approx(
            [here, here], abs=1e-3
        ), kind


@pytest.mark.slow
def test_a_classifier_has_its_labels_in_a_pipeline(hub, published, clean_process):
    code = """
from transformers import pipeline
for task in ("text-classification", "token-classification"):
    judge = pipeline(task, model=name[task], revision=revision, trust_remote_code=True)
    print({row.get("label", row.get("entity")) for row in judge("The cat sat")} <= {"ham", "maybe", "spam"})
"""
    names = {"text-classification": published("classifier"), "token-classification": published("words")}
    assert clean_process(f"name = {names!r}\n" + code, "", "v1") == ["True", "True"]


@pytest.mark.slow
def test_an_adapter_is_loaded_on_top_of_its_base(hub, published, clean_process, makers):
    name, base = published("adapter"), published("language")
    card = hub.files(name)["README.md"].decode()
    assert f"base_model: {base}" in card and "base_model_relation: adapter" in card and "library_name: peft" in card
    code = f"""
from peft import PeftModel
from transformers import AutoModelForCausalLM
for at in (None, revision):
    base = AutoModelForCausalLM.from_pretrained({base!r}, revision=revision, trust_remote_code=True)
    print(logits(PeftModel.from_pretrained(base, name, revision=at)))
"""
    model = transformers.AutoModelForCausalLM.from_pretrained(makers("language"))
    here = logits(PeftModel.from_pretrained(model, makers("adapter")))
    assert [float(total) for total in clean_process(LOGITS + code, name, "v1")] == pytest.approx([here, here], abs=1e-3)
    assert "apply_chat_template" in card and clean_process(python_of(card), name)  # it was taught to answer


@pytest.mark.slow
def test_the_code_on_a_card_runs_from_the_hub(versions, hub, published, clean_process):
    name, _ = versions
    assert clean_process(python_of(hub.files(name)["README.md"].decode()), name)[0].startswith("Once upon a time")
    name = published("classifier")
    assert clean_process(python_of(hub.files(name)["README.md"].decode()), name)[0] in ("ham", "maybe", "spam")


@pytest.mark.slow
def test_weights_of_more_than_ten_megabytes_go_in_parts_and_come_back(hub, published, clean_process, makers):
    size = (makers("large") / "model.safetensors").stat().st_size
    assert size > 10_000_000
    seen = len(hub.requests())
    name = published("large")
    parts = [row for row in hub.requests()[seen:] if row["path"].startswith("/_parts/") and row["method"] == "PUT"]
    assert len(parts) == -(-size // 2_000_000)
    here = logits(transformers.AutoModelForCausalLM.from_pretrained(makers("large")))
    assert float(clean_process(CAUSAL, name, "v1")[0]) == pytest.approx(here, abs=1e-3)


@pytest.mark.slow
def test_files_are_fetched_whole_by_name_and_by_commit(versions, hub, clean_process, elsewhere):
    name, folders = versions
    sha = hub.state(name)["tags"]["v1"]
    code = """
import json
from pathlib import Path
from huggingface_hub import ModelCard, get_safetensors_metadata, model_info, snapshot_download
place = Path(snapshot_download(name, revision=revision))
print(place)
print(model_info(name, revision=revision).sha)
card = ModelCard.load(place / "README.md")
card.validate()
print(card.data.license, card.data.pipeline_tag, card.data.language)
print(len(get_safetensors_metadata(name, revision=revision).weight_map))
"""
    place, commit, said, tensors = clean_process(code, name, sha)
    assert contents(Path(place)) == hub.files(name, sha) and commit == sha
    assert said == "apache-2.0 text-generation ['en']"
    assert int(tensors) == len(transformers.AutoModelForCausalLM.from_pretrained(folders["v1"]).state_dict())
    for options, revision in (([], "main"), (["--revision", sha], sha)):
        command = ("-m", "huggingface_hub.cli.hf", "download", name, "--local-dir", "there", *options)
        home = Path(place).parents[1] / revision
        home.mkdir()
        elsewhere(*command, token=None, home=home)
        found = contents(home / "there")
        assert {path: found[path] for path in found if not path.startswith(".cache")} == hub.files(name, revision)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_private_repository_is_seen_by_its_owner_alone(hub, pusher, clean_process, tmp_path, repo_id):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    pusher(tmp_path, repo_id, private=True)
    code = """
from huggingface_hub import errors, snapshot_download
try:
    print(len(snapshot_download(name)) > 0)
except errors.RepositoryNotFoundError:
    print("not found")
"""
    assert clean_process(code, repo_id) == ["not found"]
    assert clean_process(code, repo_id, token=hub.token) == ["True"]


@pytest.mark.slow
def test_datasets_reads_a_models_log_and_gets_back_what_it_sent(versions, clean_process, hub, repo_id):
    name, folders = versions
    code = """
from datasets import Dataset, load_dataset
rows = load_dataset("json", data_files=f"hf://{name}@{revision}/log.jsonl", split="train")
print(len(rows), rows[0]["loss"])
Dataset.from_dict({"text": ["The cat", "sat"]}).push_to_hub(own)
print(list(load_dataset(own, split="train")["text"]))
"""
    log = (folders["v1"] / "log.jsonl").read_text().splitlines()
    said = clean_process(f"own = {repo_id!r}\n" + code, name, "v1", token=hub.token)
    assert said == [f"{len(log)} {json.loads(log[0])['loss']}", "['The cat', 'sat']"]


@pytest.mark.slow
def test_evaluate_finds_a_metric_on_the_hub_and_scores_our_classifier(
    hub, published, clean_process, worker, accuracy_script
):
    upload = f"""
from huggingface_hub import HfApi
HfApi().create_repo("evaluate-metric/accuracy", repo_type="space", space_sdk="gradio", exist_ok=True)
HfApi().upload_file(
    path_or_fileobj={accuracy_script!r}.encode(),
    path_in_repo="accuracy.py",
    repo_id="evaluate-metric/accuracy",
    repo_type="space",
)
"""
    worker("publisher", upload, token=hub.token)
    code = """
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
import evaluate
model = AutoModelForSequenceClassification.from_pretrained(name, revision=revision, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
rows = Dataset.from_dict({"text": ["The cat sat", "on the log"], "label": [0, 2]})
score = evaluate.evaluator("text-classification").compute(
    model, rows, metric=evaluate.load("accuracy"), tokenizer=tokenizer, label_mapping=model.config.label2id
)
print(score["accuracy"] in (0.0, 0.5, 1.0))
"""
    assert clean_process(code, published("classifier"), "v1")[-1] == "True"


@pytest.mark.slow
def test_lm_eval_measures_what_was_pushed_at_a_revision(versions, clean_process, tmp_path):
    name, folders = versions
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "The cat", "answer": " sat"}) + "\n")
    (tmp_path / "task.yaml").write_text(f"""
task: one_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: perplexity}}]
""")
    code = f"""
import lm_eval
from lm_eval.tasks import TaskManager
for at in ("main", revision):
    results = lm_eval.simple_evaluate(
        model="hf", model_args=dict(pretrained=name, revision=at, trust_remote_code=True), tasks=["one_word"],
        device="cpu", batch_size=1, task_manager=TaskManager(include_path={str(tmp_path)!r}, include_defaults=False),
    )
    print(results["results"]["one_word"]["perplexity,none"])
"""
    said = [float(line) for line in clean_process(code, name, "v1")[-2:]]
    for found, folder in zip(said, (folders["v2"], folders["v1"])):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        context, both = tokenizer("The cat").input_ids, tokenizer("The cat sat").input_ids
        with torch.no_grad():
            logs = model(torch.tensor([both])).logits[0].log_softmax(-1)
        answer = sum(logs[place - 1, both[place]].item() for place in range(len(context), len(both)))
        assert found == pytest.approx(torch.tensor(-answer).exp().item(), rel=1e-3)


@pytest.mark.slow
def test_the_token_lies_in_no_file_that_publishing_or_loading_left(versions, hub, worker, clean_process):
    name, _ = versions
    clean_process("from huggingface_hub import snapshot_download; snapshot_download(name)", name, token=hub.token)
    files = [path for folder in (hub.root / "objects", *worker.homes) for path in folder.rglob("*") if path.is_file()]
    assert len(worker.homes) == 2 and any(path.name == "README.md" for path in files)
    assert [path for path in files if hub.token.encode() in path.read_bytes()] == []
