from hypothesis import given
from hypothesis import strategies as st

from groundup.training import loop
from groundup.training.loop import Budget, Stopwatch, learning_rate_factor, momentum

shares = st.floats(0, 1)


@given(shares, st.floats(0, 0.4), st.floats(0.01, 0.6))
def test_the_learning_rate_stays_between_zero_and_its_top(share, warmup, decay):
    assert 0 <= learning_rate_factor(share, warmup=warmup, decay=decay) <= 1


def test_the_learning_rate_rises_stays_and_falls_in_a_line_to_zero():
    def factor(share):
        return learning_rate_factor(share, warmup=0.1, decay=0.5)

    assert [factor(share) for share in (0, 0.05, 0.1, 0.5)] == [0, 0.5, 1, 1]
    assert factor(0.75) == 0.5
    assert factor(1.0) == 0


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert learning_rate_factor(0, warmup=0, decay=0.5) == 1


def test_momentum_grows_from_its_start_to_its_end():
    assert momentum(0, warmup=0.2) == 0.85
    assert abs(momentum(0.1, warmup=0.2) - 0.9) < 1e-12
    assert abs(momentum(0.9, warmup=0.2) - 0.95) < 1e-12
    assert momentum(0, warmup=0) == 0.95


def test_a_budget_counts_steps_or_seconds_and_never_passes_one():
    assert Budget(steps=10).share_used(5, 1e9) == 0.5
    assert Budget(seconds=10).share_used(10**9, 2.5) == 0.25
    assert Budget(steps=10).share_used(11, 0) == 1
    assert Budget(seconds=10).share_used(0, 11) == 1


def test_one_step_uses_up_the_smallest_budget_and_of_two_budgets_the_larger_share_counts():
    assert Budget(steps=1).share_used(1, 0) == 1
    assert Budget(seconds=0.5).share_used(0, 0.25) == 0.5
    assert Budget(steps=10, seconds=10).share_used(2, 7) == Budget(steps=10, seconds=10).share_used(7, 2) == 0.7
    assert Budget().share_used(7, 7) == 0


def test_a_stopwatch_goes_on_from_the_seconds_of_an_earlier_process(monkeypatch):
    now = 100.0
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    new, resumed = Stopwatch(), Stopwatch(30.0)
    now = 102.0
    assert (new.seconds, resumed.seconds) == (2, 32)


def test_the_decay_takes_its_share_of_the_budget_however_long_it_is():
    assert [learning_rate_factor(share, warmup=0.0, decay=0.2) for share in (0.3, 0.8, 1.0)] == [1, 1, 0]
    assert abs(learning_rate_factor(0.9, warmup=0.0, decay=0.2) - 0.5) < 1e-12
    assert abs(learning_rate_factor(0.4, warmup=0.0, decay=0.8) - 0.75) < 1e-12
