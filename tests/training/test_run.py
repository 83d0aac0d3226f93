"""What a budget in minutes leaves for what, on a machine whose clock moves by scoring alone."""

import json
from types import SimpleNamespace

import pytest

import groundup as package
from groundup.common.errors import InputError
from groundup.evaluation.metrics_json import read_metrics
from groundup.training import classifier, instruction, pretraining, run
from groundup.training.loop import Loop

SIZES = {"vocab_size": 280, "hidden_size": 16, "num_hidden_layers": 1, "context_length": 256, "quiet": True}
ROWS = [{"text": f"{n} is a {'good' if n % 2 else 'bad'} one of {n % 7}", "label": str(n % 2)} for n in range(200)]
TURNS = [{"instruction": f"Say {n}", "output": f"It is {n}."} for n in range(200)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("A cat and a king went to the river, and came home again.\n" * 200)
    return package.pretrain(data=[str(folder / "text.txt")], out=str(folder / "model"), max_steps=1, **SIZES)


@pytest.fixture
def clock(monkeypatch):
    """Return the seconds that scoring is believed to have taken, `clock.a_token` for each token."""
    found = SimpleNamespace(now=0.0, a_token=0.0)

    def slowly(score, tokens_of):
        def scored(*arguments, **options):
            result = score(*arguments, **options)
            found.now += found.a_token * tokens_of(result, *arguments)
            return result

        return scored

    for module, name, tokens_of in (
        (pretraining, "score_stream", lambda score, *_: score.tokens),
        (classifier, "predict", lambda _, model, rows, *__: int(rows.lengths.sum())),
        (instruction, "answer_loss", lambda _, model, rows, chosen, *__: int(rows.lengths[chosen].sum())),
    ):
        monkeypatch.setattr(module, name, slowly(getattr(module, name), tokens_of))
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


@pytest.fixture
def verbs(base, tmp_path):
    """Return each verb that trains with what it needs but for a budget."""
    paths = {"text": tmp_path / "text.txt"} | {name: tmp_path / f"{name}.jsonl" for name in ("rows", "turns")}
    paths["text"].write_text("A king who went to the river told the cat another story.\n" * 200)
    for name, rows in (("rows", ROWS), ("turns", TURNS)):
        paths[name].write_text("\n".join(map(json.dumps, rows)))
    data = {name: {"data": [str(path)], "out": str(tmp_path / "out")} for name, path in paths.items()}
    return {
        "pretrain": data["text"] | {"init_from": str(base), "context_length": 16, "batch_tokens": 64},
        "classify": data["rows"] | {"model": str(base), "batch_rows": 4},
        "instruct": data["turns"] | {"model": str(base), "layout": "alpaca", "batch_tokens": 64},
    }


@pytest.mark.parametrize("verb", ["pretrain", "classify", "instruct"])
def test_minutes_that_are_too_few_for_a_step_are_refused_with_those_that_would_do(verb, clock, verbs, tmp_path):
    clock.a_token = 1.0
    with pytest.raises(
        InputError, match=r"--minutes 2: a step of [\d,]+ tokens takes about [\d,]+ s .* at least"
    ) as said:
        getattr(package, verb)(minutes=2.0, quiet=True, **verbs[verb])
    assert not (tmp_path / "out").exists()
    assert float(str(said.value).split("at least --minutes ")[1].split(",")[0]) > 2


@pytest.mark.parametrize("verb", ["pretrain", "classify", "instruct"])
def test_scores_that_would_take_longer_than_their_share_are_taken_on_a_part(verb, clock, verbs, monkeypatch, capsys):
    """Validations may take a tenth of 100 s, ten in all, and the last scores a fifth, whatever there is to score."""
    budgets, amounts, real = [], [], Loop.run

    def briefly(loop):
        budgets.append(loop.budget.seconds)
        amounts.append(loop.position.validation_tokens)
        loop.budget.steps = 2
        return real(loop)

    monkeypatch.setattr(Loop, "run", briefly)
    clock.a_token = 0.05
    out = getattr(package, verb)(minutes=100 / 60, **verbs[verb])
    assert 50 < budgets[0] < 81
    assert 15 <= amounts[0] <= 20
    said = capsys.readouterr().err
    assert "time is short" in said
    main = {"pretrain": "loss", "classify": "accuracy", "instruct": "answer_loss"}[verb]
    counts = [row["count"] for row in read_metrics(out)["metrics"] if row["name"] == main and row["baseline"] is None]
    assert counts and all(0 < count <= 20 / 0.05 for count in counts)
