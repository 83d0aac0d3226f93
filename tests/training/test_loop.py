"""The loop on a model so small that its gradients can be checked against one large batch."""

import copy
import dataclasses
import itertools
import json
import math
import signal

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from groundup.common.errors import Diverged, Interrupted
from groundup.training.checkpoint import RunFolder
from groundup.training.loop import Budget, Loop, Position, Schedule, crossed, momentum


class SquareLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, x, labels):
        counted = labels != -100
        return (((x @ self.weight) - labels) ** 2)[counted].sum()


class Rows:
    """Twelve rows cut in micro-batches of given sizes, the same each step."""

    def __init__(self, sizes, bad_steps=()):
        torch.manual_seed(0)
        self.x, self.y = torch.randn(12, 2), torch.randint(0, 5, (12,))
        self.y[3] = -100
        self.sizes, self.bad_steps = sizes, bad_steps

    def micro_batches(self, step):
        scale = float("nan") if step in self.bad_steps else 1.0
        return [{"x": x * scale, "labels": y} for x, y in zip(self.x.split(self.sizes), self.y.split(self.sizes))]


def make_loop(batches, steps=4, **options):
    objective = SquareLoss()
    optimizer = torch.optim.SGD([{"params": objective.parameters(), "lr": 0.05, "initial_lr": 0.05}])
    options = {
        "validate": lambda: {"validation_loss": 0.0},
        "save": lambda position: None,
        "schedule": Schedule(),
        "budget": Budget(steps=steps),
    } | options
    return Loop(
        accelerator=Accelerator(),
        objective=objective,
        optimizers=[optimizer],
        batches=batches,
        **options,
    )


@pytest.fixture
def steps_take(monkeypatch):
    """Give the loop a stopwatch by which each step takes so many seconds: it is read once a step."""

    def set_seconds(seconds_a_step):
        class Clock:
            def __init__(self, seconds_before):
                self.now = seconds_before

            @property
            def seconds(self):
                self.now += seconds_a_step
                return self.now

        monkeypatch.setattr("groundup.training.loop.Stopwatch", Clock)

    return set_seconds


def before_each_update(loop, note):
    """Call a function with the optimizer's group before each update of the weights."""
    [optimizer] = loop.optimizers
    update = optimizer.step
    optimizer.step = lambda: [note(optimizer.param_groups[0]), update()]


def test_accumulated_micro_batches_of_unlike_sizes_give_the_step_of_one_large_batch():
    results = []
    for sizes in ([12], [3, 3, 3, 3], [1, 5, 6]):
        loop = make_loop(Rows(sizes))
        loop.run()
        results.append(loop.objective.weight.detach().clone())
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(results[2], results[0], rtol=1e-6, atol=1e-7)


def test_the_log_has_a_row_a_step_with_the_mean_loss_per_counted_label(tmp_path):
    loop = make_loop(Rows([12]), log_path=tmp_path / "log.jsonl", steps=3)
    weight = loop.objective.weight.detach().clone()
    counted = loop.batches.y != -100
    first = (((loop.batches.x @ weight) - loop.batches.y) ** 2)[counted].mean().item()
    loop.run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert rows[0]["loss"] == pytest.approx(first, rel=1e-4)
    assert rows[0]["tokens"] == 11


def test_a_run_ends_with_the_learning_rate_near_zero_and_saves_at_the_end():
    saved, rates = [], []
    loop = make_loop(Rows([12]), steps=20, save=lambda position: saved.append(position.step))
    before_each_update(loop, lambda group: rates.append(group["lr"]))
    position = loop.run()
    assert position.step == 20
    assert saved[-1] == 20
    assert rates[0] == 0.05
    assert rates[-1] == pytest.approx(0.05 * 0.05 / 0.5)


def test_save_every_decides_when_states_are_written():
    saved = []
    make_loop(Rows([12]), steps=7, save_every=3, save=lambda position: saved.append(position.step)).run()
    assert {3, 6, 7} <= set(saved)


def test_a_step_with_a_nan_loss_is_skipped():
    loop = make_loop(Rows([12], bad_steps=(1,)), steps=3)
    loop.run()
    assert torch.isfinite(loop.objective.weight).all()
    assert loop.position.step == 3


def test_several_steps_in_a_row_with_a_nan_loss_end_the_run():
    with pytest.raises(Diverged):
        make_loop(Rows([12], bad_steps=range(1, 9)), steps=9).run()


def test_a_stop_signal_saves_after_the_step_and_ends_the_run():
    saved = []
    rows = Rows([12])
    original = rows.micro_batches

    def micro_batches(step):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return original(step)

    rows.micro_batches = micro_batches
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        make_loop(rows, steps=50, save=lambda position: saved.append(position.step)).run()
    assert saved[-1] == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_the_best_step_is_the_one_with_the_lowest_validation_loss():
    losses = iter([3.0, 1.0, 2.0, 2.5, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0])
    loop = make_loop(Rows([12]), steps=10, validate=lambda: {"validation_loss": next(losses)}, position=Position())
    position = loop.run()
    assert (position.best_value, position.best_step) == (1.0, 2)


def test_of_steps_within_one_standard_error_the_latest_is_kept():
    losses = [3.0, 1.0, 1.4, 2.5, 1.45, 1.6]
    values = iter({"validation_loss": loss, "validation_loss_error": 0.5} for loss in losses)
    position = make_loop(Rows([12]), steps=6, validate=lambda: next(values), position=Position()).run()
    assert (position.peak_value, position.best_value, position.best_step) == (1.0, 1.45, 5)


def test_patience_ends_a_run_whose_score_no_longer_rises():
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    position = make_loop(
        Rows([12]), steps=10, validate=lambda: {"f1": next(scores)}, best_by="f1", higher_is_better=True, patience=2
    ).run()
    assert (position.step, position.best_step, position.best_value) == (4, 2, 0.7)


def test_crossing_is_seen_once_for_each_border():
    shares = [step / 37 for step in range(38)]
    assert sum(crossed(a, b, 10) for a, b in itertools.pairwise(shares)) == 10


@pytest.mark.parametrize("seconds_a_step", [0.01, 0.13, 0.7])
def test_a_run_under_a_clock_ends_annealed_however_fast_the_machine_is(seconds_a_step, steps_take, tmp_path):
    steps_take(seconds_a_step)
    loop = make_loop(Rows([12]), log_path=tmp_path / "log.jsonl")
    loop.budget, rates = Budget(seconds=10.0), []
    before_each_update(loop, lambda group: rates.append(group["lr"]))
    position = loop.run()
    assert position.step == round(10 / seconds_a_step)
    assert rates[-1] <= 0.05 * 1.5 * seconds_a_step / 5 + 1e-9  # within a step and a half of the end of the decay


def test_a_step_in_which_no_label_counts_moves_nothing_and_is_not_a_bad_one():
    rows = Rows([12])
    rows.y[:] = -100
    loop = make_loop(rows, steps=5)
    before = loop.objective.weight.detach().clone()
    loop.run()
    assert torch.equal(loop.objective.weight, before)
    assert (loop.position.step, loop.position.bad_steps, loop.position.labels) == (5, 0, 0)


def test_a_step_with_an_infinite_loss_is_skipped():
    rows = Rows([12])
    right = rows.micro_batches
    rows.micro_batches = lambda step: [
        batch | {"x": batch["x"] * (1e30 if step == 1 else 1.0)} for batch in right(step)
    ]
    loop = make_loop(rows, steps=3)
    loop.run()
    assert torch.isfinite(loop.objective.weight).all()


@pytest.mark.parametrize(("bad_steps", "ends"), [((0, 1, 3, 4, 6, 7), False), ((1, 2, 3), True), ((6, 7, 8), True)])
def test_only_three_bad_steps_in_a_row_end_the_run(bad_steps, ends):
    loop = make_loop(Rows([12], bad_steps), steps=9)
    if ends:
        with pytest.raises(Diverged):
            loop.run()
    else:
        assert loop.run().step == 9


def test_the_gradient_of_a_step_is_clipped_by_the_norm_of_all_of_it():
    loop = make_loop(Rows([3, 4, 5]), steps=1, schedule=Schedule(clip=0.5))
    counted = loop.batches.y != -100
    before = loop.objective.weight.detach().clone().requires_grad_()
    (((loop.batches.x @ before) - loop.batches.y) ** 2)[counted].mean().backward()
    assert before.grad.norm() > 0.5
    loop.run()
    expected = before.detach() - 0.05 * 0.5 * before.grad / before.grad.norm()
    torch.testing.assert_close(loop.objective.weight.detach(), expected, rtol=1e-4, atol=1e-6)


def test_after_each_validation_it_trains_in_training_mode_again():
    modes = []
    loop = make_loop(Rows([12]), steps=10)
    loop.validate = lambda: {"validation_loss": float(loop.objective.eval().training)}
    before_each_update(loop, lambda _: modes.append(loop.objective.training))
    loop.run()
    assert modes == [True] * 10


def test_the_momentum_of_every_group_that_has_one_follows_its_own_warm_up():
    seen = []
    loop = make_loop(Rows([12]), steps=10, schedule=Schedule(warmup=0.3, momentum_warmup=0.5))
    before_each_update(loop, lambda group: seen.append(group["momentum"]))
    loop.run()
    assert seen == pytest.approx([momentum(step / 10, warmup=0.5) for step in range(10)])


def test_warm_up_and_decay_are_those_of_the_schedule():
    seen = []
    loop = make_loop(Rows([12]), steps=10, schedule=Schedule(warmup=0.2, decay=0.4))
    before_each_update(loop, lambda group: seen.append(group["lr"] / 0.05))
    loop.run()
    assert seen == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_each_row_of_the_log_has_the_loss_since_the_row_before(tmp_path):
    loop = make_loop(Rows([12]), steps=400, log_path=tmp_path / "log.jsonl")  # two steps a row
    losses = []

    def noting(_):
        weight, counted = loop.objective.weight.detach(), loop.batches.y != -100
        losses.append((((loop.batches.x @ weight) - loop.batches.y) ** 2)[counted].mean().item())

    before_each_update(loop, noting)
    loop.run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "loss" in row]
    at = 0
    for row in logged:
        assert row["loss"] == pytest.approx(sum(losses[at : row["step"]]) / (row["step"] - at), abs=2e-6)
        at = row["step"]
    assert [row["tokens"] for row in logged] == [11 * row["step"] for row in logged]


def test_a_better_value_makes_patience_begin_again():
    scores = iter([0.5, 0.4, 0.6, 0.5, 0.7, 0.6, 0.8, 0.7, 0.9, 0.9])
    position = make_loop(
        Rows([12]), steps=10, validate=lambda: {"f1": next(scores)}, best_by="f1", higher_is_better=True, patience=2
    ).run()
    assert (position.step, position.best_value) == (10, 0.9)


def test_the_log_says_how_many_labels_there_were_a_second_since_the_row_before(tmp_path, steps_take):
    steps_take(2.0)
    position = Position(step=3, labels=33, seconds=6.0)
    make_loop(Rows([12]), steps=6, log_path=tmp_path / "log.jsonl", position=position).run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["tokens_per_second"] for row in rows if "loss" in row] == [5.5, 5.5, 5.5]


def test_a_border_is_crossed_where_it_is_reached_and_not_half_way():
    assert [crossed(*shares, 10) for shares in ((0.04, 0.06), (0.06, 0.09), (0.09, 0.1), (0.1, 0.11))] == [
        False, False, True, False,
    ]  # fmt: skip


class Machine:
    """Runs of a Loop that write what real ones do: a log, and states, which alone outlive them."""

    def __init__(self, tmp_path, values, **options):
        self.log_path, self.values, self.options = tmp_path / "log.jsonl", values, options
        self.states, self.saves = [], []

    def run(self, stop_at=None, kill_at=None):
        """Begin or go on; return the loop if it came to its end."""
        rows, log_path = Rows([12]), self.log_path
        original = rows.micro_batches

        def micro_batches(step):
            if step == stop_at:
                signal.raise_signal(signal.SIGINT)
            if step == kill_at:
                raise KeyboardInterrupt
            return original(step)

        rows.micro_batches = micro_batches
        loop = make_loop(rows, log_path=log_path, **self.options)
        loop.optimizers = [torch.optim.SGD(loop.optimizers[0].param_groups, momentum=0.9)]
        loop.save = lambda position: self.save(loop, position)
        loop.validate = lambda: {"validation_loss": self.values(loop.position.step)}
        if self.states:
            state = copy.deepcopy(self.states[-1])
            loop.objective.load_state_dict(state["weights"])
            loop.optimizers[0].load_state_dict(state["optimizer"])
            loop.position = Position(**json.loads(state["position"]))
        folder = RunFolder(log_path.parent)
        folder.cut_log(loop.position.step)
        try:
            loop.run()
        except (Interrupted, KeyboardInterrupt):
            return None
        return loop

    def save(self, loop, position):
        self.saves.append(position.step)
        self.states.append(copy.deepcopy({
            "weights": loop.objective.state_dict(),
            "optimizer": loop.optimizers[0].state_dict(),
            "position": json.dumps(dataclasses.asdict(position)),
        }))  # fmt: skip

    def finished(self, *stops, kill=False):
        """Return what a run that is stopped before each of these steps ends with: weights, position, log."""
        for step in stops:
            assert self.run(**{"kill_at" if kill else "stop_at": step}) is None
        loop = self.run()
        clocks = ("seconds", "step_seconds", "logged_seconds", "tokens_per_second")
        log = [json.loads(line) for line in self.log_path.read_text().splitlines()]
        position = dataclasses.asdict(loop.position)
        parts = [loop.objective.weight.tolist(), position, *log]
        for part in parts[1:]:
            for name in clocks:
                part.pop(name, None)
        return parts


UNLIKE_RUNS = {
    "a step a row": {"steps": 12},
    "several steps a row of the log": {"steps": 410, "save_every": 7},
    "patience": {"steps": 40, "patience": 2},
    "a save beside each validation": {"steps": 30, "save_every": 3},
    "saves and validations at other steps": {"steps": 33, "save_every": 4},
}


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("name", UNLIKE_RUNS)
def test_a_run_stopped_or_killed_at_any_step_validates_logs_and_saves_as_if_it_never_was(name, kill, tmp_path):
    def values(step):
        return abs(math.sin(step)) + 5 / step

    options = UNLIKE_RUNS[name]
    (tmp_path / "whole").mkdir()
    whole = Machine(tmp_path / "whole", values, **options)
    expected = whole.finished()
    last = expected[1]["step"]
    steps = range(last) if last < 50 else range(3, last, 101)
    for step in steps:
        folder = tmp_path / f"at-{step}"
        folder.mkdir()
        machine = Machine(folder, values, **options)
        assert machine.finished(step, kill=kill) == expected, step
        # A state more where it was stopped; but none that was due is missing, or written twice.
        assert set(machine.saves) >= set(whole.saves)
        assert kill or len(machine.saves) == len(set(machine.saves))
    often = Machine(tmp_path, values, **options)
    assert often.finished(*steps[::2], kill=kill) == expected


def test_under_a_clock_nothing_due_is_lost_between_a_stop_and_going_on(tmp_path, steps_take):
    steps_take(1.0)
    results = []
    for stops in ([], [9, 10, 11], [29], range(1, 43)):
        folder = tmp_path / str(len(results))
        folder.mkdir()
        machine = Machine(folder, lambda step: 1 / step, budget=Budget(seconds=43.0))
        results.append(machine.finished(*stops))
    assert all(result == results[0] for result in results[1:])


def test_a_stop_signal_during_the_last_validation_ends_the_run_and_repeats_nothing(tmp_path):
    def values(step):
        if step == 12 and machine.asks:
            machine.asks -= 1
            signal.raise_signal(signal.SIGINT)
        return 1 / step

    machine = Machine(tmp_path, values, steps=12)
    machine.asks = 1
    assert machine.run() is None
    parts = machine.finished()
    assert machine.saves.count(12) == 1
    assert [row["step"] for row in parts[2:] if "validation_loss" in row].count(12) == 1


def test_killed_before_its_first_state_a_run_begins_its_log_anew(tmp_path):
    machine = Machine(tmp_path, lambda step: 1 / step, steps=400)
    assert machine.run(kill_at=30) is None
    assert machine.log_path.read_text()
    assert not machine.states
    steps = [row["step"] for row in machine.finished()[2:] if "loss" in row]
    assert steps == sorted(set(steps))


def test_a_torn_line_of_the_log_is_cut_off(tmp_path):
    rows = [{"step": step, "loss": 1.0} for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 4, "lo')
    RunFolder(tmp_path).cut_log(2)
    assert (tmp_path / "log.jsonl").read_text() == "".join(json.dumps(row) + "\n" for row in rows[:2])
