"""Models in folders, as a person has them: one that was only pretrained, one that says it was taught to converse."""

import pytest
import torch

from groundup.common.settings import write_yaml
from groundup.inference.loading import save_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.tokenization.training import train_bpe

TEXT = "The cat sat on the mat. The dog sat on the log, and the frog in the bog: für Größe, 你好!\n"
CONTEXT = 48


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Return "pretrained" and "taught": random weights, one tokenizer, a context of 48; logits far apart."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_bpe([TEXT] * 5, 300)
    for number, (name, verb) in enumerate([("pretrained", "pretrain"), ("taught", "instruct")]):
        torch.manual_seed(number)
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 16}
        config = GroundupConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, eos_token_id=0)
        model = GroundupForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        folder = root / name
        folder.mkdir()
        save_model(folder, model, tokenizer)
        write_yaml(folder / "recipe.yaml", {"verb": verb})
        (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# A card\n\n![x](http://elsewhere.test/x.png)\n")
    return root


@pytest.fixture
def pretrained(folders):
    return folders / "pretrained"


@pytest.fixture
def taught(folders):
    return folders / "taught"
