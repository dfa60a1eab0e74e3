"""Budgets, plans and reports of loops; snapshots on disk."""

import errno
import os

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from problems import long_loops

import tapejit as tj
from tapejit.checkpointing import binomial, fewest_advances, two_level
from tapejit.checkpointing.budget import bytes_of
from tapejit.checkpointing.snapshots import Snapshots
from tapejit.errors import MemoryBudgetError, ScheduleError, UnsupportedError

X = np.linspace(0.0, 1.0, 200)


def wave(x, p):
    return x + 0.1 * (np.roll(x, 1) - x) * p


def f(x, **options):
    return np.sum(tj.loop(wave, x, 400, 0.5, **options) ** 2)


@pytest.mark.parametrize("compile", [False, True])
def test_gradients_have_the_same_bits_under_every_budget(compile):
    expected = tj.value_and_grad(lambda x: f(x, compile=compile))(X)
    for memory in ("8 MiB", "2 MiB", bytes_of("1500 kB")):
        value, gradient = tj.value_and_grad(lambda x, m=memory: f(x, compile=compile, memory=m))(X)
        assert value == expected[0]
        assert_array_equal(gradient, expected[1])
        report = tj.memory_report()
        assert report.plan.nbytes <= report.budget == bytes_of(memory)
        assert report.plan.advances == fewest_advances(400, report.plan.checkpoints)
    assert str(report).startswith("budget 1.4 MiB, planned")


def test_too_small_a_budget_names_the_smallest():
    with pytest.raises(
        MemoryBudgetError, match=r"needs at least ([\d,]+) bytes .*, with 1 checkpoint; memory is 1,000 bytes"
    ) as info:
        tj.grad(lambda x: f(x, memory=1000))(X)
    smallest = int(str(info.value).split("at least ")[1].split(" bytes")[0].replace(",", ""))
    assert_allclose(tj.grad(lambda x: f(x, memory=smallest))(X), tj.grad(f)(X), rtol=1e-12)
    assert tj.memory_report().plan.checkpoints == 1
    with pytest.raises(MemoryBudgetError):
        tj.grad(lambda x: f(x, memory=smallest - 1))(X)
    with pytest.raises(MemoryBudgetError, match="a Hessian-vector product of this loop needs at least"):
        tj.hvp(lambda x: f(x, memory=smallest))(X, X)


def test_hessian_vector_products_keep_the_budget():
    expected = tj.hvp(lambda x: np.sum(tj.loop(np_step, x, 60, 0.5) ** 2))(X, X)
    found = tj.hvp(lambda x: np.sum(tj.loop(np_step, x, 60, 0.5, memory="1230 KiB") ** 2))(X, X)
    assert_array_equal(found, expected)


def np_step(x, p):
    return np.sin(x) + p * np.roll(x, 1)


def test_plan_says_what_a_gradient_takes_without_running_the_loop():
    calls = [0]

    def step(x, p):
        calls[0] += 1
        return wave(x, p)

    def g(x, **options):
        return np.sum(tj.loop(step, 2.0 * x, 1_000_000, 0.5, **options))

    plan = tj.plan(g, X, memory="20 MiB")
    (loop,) = plan.loops
    assert calls[0] < 10
    assert loop.n_steps == 1_000_000 and loop.nbytes <= 20 << 20
    assert loop.advances == fewest_advances(1_000_000, loop.checkpoints)
    assert tj.plan(lambda x: g(x, checkpoints=50), X, memory="20 MiB").loops[0].checkpoints == 50
    assert tj.plan(g, X).nbytes > 1_000_000 * 8 * X.size
    assert "1,000,000 steps" in str(plan) and "advances a step" in str(plan)
    found = tj.plan(lambda x: np.sum(tj.while_loop(lambda x: np.sum(x) < 1.0, wave, x, 0.5)), 0.0 * X)
    assert found.loops[0].n_steps is None and "not known" in str(found)


def test_plan_of_a_loop_with_a_loop_and_a_region_in_its_step():
    region = tj.checkpoint(np.sin)

    def outer(x, p):
        return region(tj.loop(wave, x, 7, p, checkpoints=2)) * 0.9

    plan = tj.plan(lambda x: np.sum(tj.loop(outer, x, 50, 0.5)), X, memory="4 MiB")
    assert [loop.n_steps for loop in plan.loops] == [50]


def test_plan_and_transforms_refuse_what_they_cannot_keep():
    with pytest.raises(UnsupportedError, match="needs a tj.loop or tj.while_loop"):
        tj.plan(lambda x: np.sum(x), X)
    with pytest.raises(UnsupportedError, match="keeps no budget inside of nested transforms"):
        tj.grad(lambda t: np.sum(tj.grad(lambda x: t * f(x, memory="8 MiB"))(X)))(1.0)
    for wrong in ("64", "64 mb", "-1 MiB", -3, 0, True, 1.5, "1..2 MB"):
        with pytest.raises(ScheduleError, match="memory is a number of bytes or a text"):
            tj.grad(lambda x, m=wrong: f(x, memory=m))(X)
    with pytest.raises(ScheduleError, match="one of checkpoints, memory and schedule, got checkpoints and memory"):
        f(X, memory="8 MiB", checkpoints=3)


def test_while_loop_keeps_a_budget():
    def g(x, **options):
        return np.sum(tj.while_loop(lambda x: np.sum(x * x) > 0.1, lambda x, p: np.sin(x) * p, x, 0.95, **options))

    x = X + 0.5
    assert_array_equal(tj.grad(lambda x: g(x, memory="1200 KiB"))(x), tj.grad(g)(x))
    assert tj.memory_report().plan.checkpoints < 100
    assert tj.memory_report().plan.advances is None


@pytest.mark.parametrize("checkpoints", [1, 3, 9])
def test_no_more_snapshots_are_held_than_allowed(checkpoints, monkeypatch):
    held, most = set(), [0]
    store, free = Snapshots.store, Snapshots.free

    def counted_store(self, slot, *args):
        assert slot not in held
        held.add(slot)
        most[0] = max(most[0], len(held))
        assert self.memory.shape[0] <= checkpoints
        store(self, slot, *args)

    def counted_free(self, slot):
        held.remove(slot)
        free(self, slot)

    monkeypatch.setattr(Snapshots, "store", counted_store)
    monkeypatch.setattr(Snapshots, "free", counted_free)
    tj.grad(lambda x: f(x, compile=False, checkpoints=checkpoints))(X)
    assert most[0] == checkpoints and not held


def test_forward_steps_are_as_many_as_the_theory_says():
    calls = [0]

    def step(x, p):
        calls[0] += 1
        return wave(x, p)

    def count(checkpoints):
        calls[0] = 0
        tj.grad(lambda x: np.sum(tj.loop(step, x, 50, 0.5, checkpoints=checkpoints, compile=False)))(X)
        return calls[0]

    # Besides advances: each step once to be recorded and once to be compared, the last one for its result, and the first one to try it.
    beyond = 2 * 50 + 1 + 2
    for checkpoints in (1, 2, 5, 20, 50):
        assert count(checkpoints) == fewest_advances(50, checkpoints) + beyond


# On disk.


def test_snapshots_on_disk_leave_no_file(tmp_path):
    seen = []

    def step(x, p):
        seen.append(list(tmp_path.iterdir()))
        return wave(x, p)

    schedule = two_level(100, 2, 8)
    found = tj.grad(lambda x: np.sum(tj.loop(step, x, 100, 0.5, schedule=schedule, directory=tmp_path) ** 2))(X)
    expected = tj.grad(lambda x: np.sum(tj.loop(wave, x, 100, 0.5, schedule=binomial(100, 10)) ** 2))(X)
    assert_array_equal(found, expected)
    assert list(tmp_path.iterdir()) == []
    if os.name == "posix":
        assert not any(seen)  # not even while the loop runs


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="POSIX only")
def test_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        MemoryBudgetError, match=r"need 6,400 bytes in .*No space left on device.*; nothing was computed"
    ):
        tj.grad(lambda x: np.sum(tj.loop(wave, x, 100, 0.5, schedule=two_level(100, 2, 4), directory=tmp_path)))(X)
    assert list(tmp_path.iterdir()) == []


def test_directory_that_does_not_exist_is_a_clear_error(tmp_path):
    with pytest.raises((MemoryBudgetError, FileNotFoundError), match="nowhere"):
        tj.grad(
            lambda x: np.sum(tj.loop(wave, x, 100, 0.5, schedule=two_level(100, 2, 4), directory=tmp_path / "nowhere"))
        )(X)


# Problems of the benchmark.


def test_problems_of_the_benchmark_pass_check_grads(rng):
    x = long_loops.lorenz96_start(8)
    tj.testing.check_grads(lambda x: np.sum(tj.loop(long_loops.lorenz96_step, x, 300, checkpoints=5)), (x,), rng=rng)
    u = np.sin(np.linspace(0, 3, 12))
    tj.testing.check_grads(
        lambda c: np.sum(tj.loop(long_loops.heat_step, u, 20, c, checkpoints=3) ** 2), (np.full(11, 0.9),), rng=rng
    )
    weights, rows = 0.3 * rng.normal(size=(12, 5)), rng.normal(size=(15, 2))

    def lstm(w, rows):
        start = (np.zeros(3), np.zeros(3))
        h, _ = tj.loop(long_loops.lstm_step, start, 15, w, np.zeros(12), inputs=rows, checkpoints=4)
        return np.sum(h * h)

    tj.testing.check_grads(lstm, (weights, rows), rng=rng)
