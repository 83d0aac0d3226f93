"""A real pretrained model, 135 M weights that others trained: in and out again to the last bit, in little memory."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from groundup.inference.loading import load_model
from groundup.publishing.conversion import export
from groundup.publishing.importing import import_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
WEIGHTS_BYTES = 134_515_008 * 4  # in fp32
# What a process that this one starts is told of its peak includes what this one had in memory then; /proc's does not.
PEAK = """
import re, sys
from groundup.cli.main import main
assert main(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.fixture(scope="module")
def imported(real_model, tmp_path_factory):
    return import_model(source=real_model, out=tmp_path_factory.mktemp("real") / "imported")


@pytest.fixture(scope="module")
def stock(real_model):
    """Return what transformers itself makes of the file."""
    model = AutoModelForCausalLM.from_pretrained(real_model.parent, gguf_file=real_model.name, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def exported(imported):
    return export(checkpoint=imported, to="llama", out=imported.with_name("exported"))


def test_logits_and_greedy_answers_are_the_stock_models(imported, stock):
    model, tokenizer = load_model(imported)
    ids = torch.randint(len(tokenizer), (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, stock(ids).logits)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    assert torch.equal(written, stock.generate(**prompt, max_new_tokens=20, do_sample=False))
    assert "Paris" in tokenizer.decode(written[0, prompt["input_ids"].shape[1] :])


def test_its_tokenizer_and_chat_template_are_the_files(imported, real_model):
    own = AutoTokenizer.from_pretrained(real_model.parent, gguf_file=real_model.name)
    tokenizer = AutoTokenizer.from_pretrained(imported)
    text = "Zażółć <|im_start|>user\n it's IT'S   x 12345 🙂<|im_end|>"
    assert tokenizer.encode(text) == own.encode(text) and tokenizer.chat_template == own.chat_template


def test_export_gives_every_tensor_back(exported, stock):
    found, expected = load_file(exported / "model.safetensors"), stock.state_dict()
    assert found.keys() == expected.keys() - {"lm_head.weight"}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("words", [["import"], ["export", "--to", "llama"]], ids=lambda words: words[0])
def test_no_more_than_one_model_is_in_memory(words, exported, imported, tmp_path):
    source = exported if words[0] == "import" else imported
    command = [sys.executable, "-c", PEAK, words[0], str(source), *words[1:], "--out", str(tmp_path / "out")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) * 1024 <= 2.5 * WEIGHTS_BYTES  # the libraries alone take most of the other half
