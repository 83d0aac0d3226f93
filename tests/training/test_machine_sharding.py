"""A sharded model: what each process holds, and that together it is the whole."""

import subprocess
import sys

import pytest

CHECK = """
import torch
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.training.checkpoint import load_optimizer_state, optimizer_state
from groundup.training.objectives import TokenLoss
from groundup.training.optim import build_optimizers
from groundup.training.machine import run_within, shard, whole_weights

torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
config = GroundupConfig(vocab_size=301, hidden_size=32, num_hidden_layers=2, tie_word_embeddings=True, zero_init=False)
model = GroundupForCausalLM(config)
before = {name: value.clone() for name, value in model.state_dict().items()}
ids = torch.randint(301, (2, 16))
logits = model(input_ids=ids).logits
parameters = model.num_parameters()
objective = TokenLoss(model)
shard(objective, torch.device("cpu"))

own = sum(parameter.to_local().numel() for parameter in model.parameters())
assert own < 0.55 * parameters, (own, parameters)
weights = whole_weights(model)
assert weights.keys() == before.keys() and all(weights[name].equal(before[name]) for name in before)
assert weights["lm_head.weight"] is weights["model.embed_tokens.weight"]
# Measured before the first step, from outside the objective, and again after one.
torch.testing.assert_close(run_within(objective, lambda: model(input_ids=ids).logits), logits)
rates = {"matrix": 0.01, "embedding": 0.01, "vector": 0.01}
optimizers = build_optimizers(model, "muon", rates, 0.1)
for _ in range(2):
    objective(input_ids=ids, labels=ids).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
assert not torch.allclose(run_within(objective, lambda: model(input_ids=ids).logits), logits)
assert sum(parameter.to_local().numel() for parameter in model.parameters()) == own

states = optimizer_state(model, optimizers)
momentum = {name.split("|")[0]: value for name, value in states.items() if name.endswith("momentum_buffer")}
assert momentum and all(value.shape == before[name].shape for name, value in momentum.items())
fresh = build_optimizers(model, "muon", rates, 0.1)
load_optimizer_state(model, fresh, states)
again = optimizer_state(model, fresh)
assert again.keys() == states.keys() and all(again[name].equal(states[name]) for name in states)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_each_of_two_processes_holds_its_share_and_the_whole_is_the_same(tmp_path):
    script = tmp_path / "check.py"
    script.write_text(CHECK)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(launch, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
