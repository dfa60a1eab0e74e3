"""Loops that threads share: the same bits for any number of threads, values of the interpreter's bits, and helpers that come late or never."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from problems import asian_option, gaussian_mixture, lennard_jones, mlp, rosenbrock
from test_compiler_random import poison, thresholds

import tapejit as tj
from tapejit import layout
from tapejit.compiler import sharing
from tapejit.compiler.kernel import compile_tape
from tapejit.compiler.operands import Operands, cut, fuse
from tapejit.compiler.plan import Plan
from tapejit.compiler.prune import prune
from tapejit.compiler.roll import roll
from tapejit.compiler.team import Team

ALL = {"SMALLEST_SHARED": 1, "FEWEST_CHUNKS": 2, "COPIED": 1e9}
RTOL = 1e-12


def check_threads(f, *args, is_shared=True, points=()):
    """`f` with 1, 2 and 3 threads against its interpreted replay; gives the kernel of one thread."""
    recording = tj.record(f, *args)
    tape = recording.tape
    kernels = [compile_tape(tape, n_threads=n) for n in (1, 2, 3)]
    assert [kernel.why_interpreted for kernel in kernels] == [""] * 3
    assert all(bool(kernel.n_shared) == is_shared for kernel in kernels)
    parameters = [tape.value[first : first + size].copy() for first, size in tape.parameter_slots]
    for x in (args[0], *points):
        value, gradient = recording.value_and_grad(x)
        results = []
        for kernel in kernels:
            for _ in range(2):  # the second finds what the first has left
                poison(kernel)
                results.append(kernel.run(np.ravel(x), parameters, 1.0))
        for found, bars in results:
            assert found == value
            assert_array_equal(bars, results[0][1])
        scale = np.abs(gradient).max(initial=0.0)
        assert_allclose(results[0][1], np.ravel(gradient), rtol=RTOL, atol=RTOL * scale)
    return kernels[0]


def plan_of(f, *args, threaded=False):
    tape = tj.record(f, *args).tape
    program = prune(tape.expand() if len(tape.block_at) else tape)
    found = Operands(roll(program), program)
    while cut(found) or fuse(found):
        found = Operands(found.root, program)
    return Plan(found, threaded=threaded)


PROBLEMS = [
    (lennard_jones, "primal", 40),
    (rosenbrock, "primal", 3000),
    (rosenbrock, "plain_array", 3000),
    (mlp, "primal", 60),
    (gaussian_mixture, "primal", 40),
    (asian_option, "primal", 50),
]


@pytest.mark.parametrize("module, name, size", PROBLEMS, ids=lambda part: getattr(part, "__name__", part))
def test_problems_with_several_threads(module, name, size):
    args = module.make(size, np.random.default_rng(0))
    with thresholds(ALL):
        check_threads(getattr(module, name), *args, points=[args[0] * 1.01])


def nested_sums(x):
    """A sum that goes on through loops inside, with terms that are added and subtracted at each level."""
    total = x[0]
    for i in range(40):
        total = total + x[i] * x[i]
        for j in range(1 + i % 5):
            total = total - math_like(x[i] * x[j])
        total = x[i] + total
    return total * x[1]


def math_like(x):
    return x / (1.0 + x * x)


def carried_inside(x):
    """A recurrence in each iteration, and its last value into the sum."""
    total = 0.0
    for i in range(60):
        y = x[i % 7]
        for _ in range(6):
            y = y * 0.9 + x[(3 * i) % 11] * 0.1
        total = total + y
    return total


def neighbours(x):
    total = 0.0
    for i in range(1, 59):
        total = total + (x[i + 1] - 2.0 * x[i] + x[i - 1]) ** 2
    return total


def gathered(x):
    at = np.random.default_rng(0).integers(0, 60, (50, 2))
    total = 0.0
    for i, j in at.tolist():
        total = total + x[i] * np.sin(x[j])
    return total


def shared_numbers(x):
    """Many numbers from outside take adjoints in every iteration."""
    a, b = x[0] * x[1], np.exp(x[2])
    total = 0.0
    for i in range(3, 60):
        total = total + a * x[i] + b * x[i] * x[i] + x[0]
    return total + a


def two_sums(x):
    up, down = 0.0, x[0]
    for i in range(60):
        up = up + x[i] * x[i]
        down = down - np.tanh(x[i])
    return up * down


def written_then_read(x):
    """A shared loop that fills an array, and one that reads it."""
    y = [x[i] * np.cos(x[i]) for i in range(60)]
    total = 0.0
    for i in range(59):
        total = total + y[i] * y[i + 1]
    return total


def several_of(x):
    first = 0.0
    for i in range(60):
        first = first + x[i] * x[i]
    second = first
    for i in range(60):
        second = second + np.sin(x[i]) * first
    return second


def recurrence_inside(x):
    """What a recurrence of an inner loop in tiles goes through is added to the sum of the loop around."""
    total = x[0]
    for i in range(12):
        y = x[i] * 0.5
        for j in range(50):
            y = y * 0.9 + np.exp(x[j] * 0.1) * np.sin(x[j])
            total = total + y
    return total


SHARED = [
    nested_sums,
    carried_inside,
    neighbours,
    gathered,
    shared_numbers,
    two_sums,
    written_then_read,
    several_of,
    recurrence_inside,
]


@pytest.mark.parametrize("f", SHARED, ids=lambda f: f.__name__)
def test_shared_loops(f, rng):
    x, other = rng.uniform(-1.0, 1.0, (2, 60))
    with thresholds(ALL):
        check_threads(f, x, points=[other])


def test_sums_of_tiles(rng):
    """NumPy's sums are added up tile by tile, those of a chunk by whole tiles."""
    n = 20 * layout.TILE + 17

    def f(x):
        return np.sum((x[1:] - x[:-1]) ** 2) + np.sum(np.tanh(x) * x[::-1])

    with thresholds(ALL):
        check_threads(f, rng.uniform(-1.0, 1.0, n))


def test_one_addend_in_a_sum_of_tiles_and_in_another_one(rng):
    def f(x):
        y = np.tanh(x) * x
        total = x[0]
        for i in range(x.size):
            total = total + y[i]
        return total * np.sum(y)

    with thresholds(ALL):
        check_threads(f, rng.uniform(-1.0, 1.0, 20 * layout.TILE + 17))


def test_the_sum_of_one_number_over_and_over(rng):
    def f(x):
        return np.sum(np.broadcast_to(x[0] * x[1], (20 * layout.TILE + 17,)))

    with thresholds(ALL):
        check_threads(f, rng.uniform(-1.0, 1.0, 2))


def swapped_sums(x):
    """Two sums that change places at the end of each iteration."""
    a, b = x[0], x[1]
    for i in range(41):
        for j in range(4 + i % 3):
            a = a + np.sin(x[j]) * x[i]
        for j in range(4 + i * i % 5):
            b = b - np.cos(x[j]) * x[i]
        a, b = b + np.exp(x[i]), a - np.tanh(x[i])
    return a * 2.0 + b * b


def recurrence(x):
    y = x[0]
    for i in range(60):
        y = y * x[i] + 0.1
    return y


def read_before(x):
    """An iteration reads what the one before has written."""
    y = [x[0]]
    total = 0.0
    for i in range(1, 60):
        y.append(x[i] * 0.5 + y[i - 1] * y[i // 2])
        total = total + y[i]
    return total


def partial_sums(x):
    """A sum whose value on the way is used."""
    total, product = 0.0, 0.0
    for i in range(60):
        total = total + x[i]
        product = product + total * total
    return product


def maximum(x):
    largest = x[0]
    for i in range(60):
        largest = np.maximum(largest, x[i] * x[i])
    return largest


@pytest.mark.parametrize("f", [recurrence, read_before, partial_sums, maximum, swapped_sums], ids=lambda f: f.__name__)
def test_loops_that_are_not_shared(f, rng):
    with thresholds(ALL):
        check_threads(f, rng.uniform(-1.0, 1.0, 60), is_shared=False)


def test_a_decision_that_changes_in_one_chunk_is_noticed(rng):
    def f(x):
        total = 0.0
        for i in range(60):
            total = total + (x[i] * 2.0 if x[i] > -5.0 else x[i])
        return total

    x = rng.uniform(-1.0, 1.0, 60)
    with thresholds(ALL):
        tape = tj.record(f, x).tape
        for n_threads in (1, 2, 3):
            kernel = compile_tape(tape, n_threads=n_threads)
            assert kernel.n_shared
            assert kernel.run(x, (), 1.0) is not None
            for i in (0, 29, 59):
                other = x.copy()
                other[i] = -6.0
                assert kernel.run(other, (), 1.0) is None


# Stage: what sharing promises.


@pytest.mark.parametrize("f", SHARED, ids=lambda f: f.__name__)
def test_chunks_cover_a_loop_and_add_to_places_of_their_own(f, rng):
    with thresholds(ALL):
        plan = plan_of(f, rng.uniform(-1.0, 1.0, 60))
    assert plan.shared
    found = plan.found
    for loop, shared in plan.shared.items():
        assert shared.edges[0] == 0 and shared.edges[-1] == loop.n_iterations
        assert (np.diff(shared.edges) > 0).all()
        copied = {memory for memories, _, _ in shared.copied for memory in memories}
        chunk_of = np.repeat(np.arange(shared.n_chunks), np.diff(shared.edges))
        added = [set() for _ in range(shared.n_chunks)]
        for memory in shared.outside:
            if memory not in copied and plan.is_active(memory):
                assert shared.in_turns
                chunks = chunk_of[found.up(memory.home, loop)]
                for chunk, what in zip(chunks.tolist(), memory.column.tolist(), strict=True):
                    added[chunk].add(what)
        for k in range(shared.n_chunks):
            for other in range(k + 2, shared.n_chunks):
                assert added[k].isdisjoint(added[other])


def test_neighbours_take_turns_and_gathers_are_copied(rng):
    x = rng.uniform(-1.0, 1.0, 60)
    with thresholds(ALL):
        (by_turns,) = plan_of(neighbours, x).shared.values()
        (by_copies,) = plan_of(gathered, x).shared.values()
    assert by_turns.in_turns and not by_turns.copied
    assert by_copies.copied and not by_copies.in_turns


def test_copies_that_would_be_large_are_not_made(rng):
    x = rng.uniform(-1.0, 1.0, 60)
    with thresholds({"SMALLEST_SHARED": 1, "COPIED": 0.01}):
        assert not plan_of(gathered, x).shared


def test_short_loops_are_left_alone(rng):
    assert sharing.SMALLEST_SHARED > 10_000
    assert not plan_of(neighbours, rng.uniform(-1.0, 1.0, 60)).shared


# The public interface.


@numba.njit
def energy(x, stiffness):
    total = 0.0
    for i in range(x.size - 2):
        total += stiffness[i] * (x[i + 1] - x[i]) ** 2 + np.exp(-x[i] * x[i + 2])
    return total


def test_compiled_functions_take_threads(rng):
    x, other, stiffness = rng.uniform(0.1, 1.0, (3, 12_000))
    one = tj.compile(energy, x, stiffness)
    two = tj.compile(energy, x, stiffness, threads=2)
    for point, k in ((x, stiffness), (other, stiffness), (x, other)):
        value, gradient = one.value_and_grad(point, (k,))
        assert two.value(point, (k,)) == value
        by_two = two.value_and_grad(point, (k,))
        assert by_two[0] == value
        assert_array_equal(by_two[1], gradient)
        expected, exact = tj.value_and_grad(energy)(point, k)
        assert_allclose(value, expected, rtol=1e-12)
        assert_allclose(gradient, exact, rtol=1e-10)
    assert "chunks" in str(one)


def test_kernels_and_batches_of_functions_with_threads(rng):
    """Their kernels find no team, and do all chunks themselves."""
    x, stiffness = rng.uniform(0.1, 1.0, (2, 12_000))
    two = tj.compile(energy, x, stiffness, threads=2)
    value, gradient = two.value_and_grad(x, (stiffness,))
    own = np.empty_like(x)
    assert two.kernel(x, own) == value
    assert_array_equal(own, gradient)
    values, gradients = two.batch(np.stack([x, x]), (stiffness,))
    assert_allclose(values, value, rtol=1e-12)
    assert_allclose(gradients, [gradient, gradient], rtol=1e-10)
    assert_array_equal(two.value_and_grad(x, (stiffness,))[1], gradient)


def test_several_callers_of_one_function_with_threads(rng):
    points, stiffness = rng.uniform(0.1, 1.0, (6, 12_000)), rng.uniform(0.1, 1.0, 12_000)
    two = tj.compile(energy, points[0], stiffness, threads=2)
    expected = [two.value_and_grad(x, (stiffness,)) for x in points]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            results = pool.map(lambda x: two.value_and_grad(x, (stiffness,)), points)
            for (value, gradient), (own, own_gradient) in zip(expected, results, strict=True):
                assert own == value
                assert_array_equal(own_gradient, gradient)


# Teams.


def test_many_short_calls(rng):
    """Helpers that are on their way from one call to the next disturb neither."""
    x = rng.uniform(-1.0, 1.0, 60)
    with thresholds(ALL):
        tape = tj.record(carried_inside, x).tape
        kernel = compile_tape(tape, n_threads=3)
    value, bars = kernel.run(x, (), 1.0)
    for i in range(3000):
        y = x if i % 2 else x * 1.5
        found = kernel.run(y, (), 1.0)
        if i % 2:
            assert found[0] == value
            assert_array_equal(found[1], bars)


def test_a_kernel_does_not_wait_for_helpers_that_sleep(rng, monkeypatch):
    monkeypatch.setattr(Team, "wake", lambda self: None)
    monkeypatch.setattr(Team, "_idle", {})
    x = rng.uniform(-1.0, 1.0, 60)
    with thresholds(ALL):
        check_threads(neighbours, x)


def test_a_kernel_does_without_helpers_that_cannot_be_started(rng, monkeypatch):
    def no_more(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Team, "_idle", {})
    monkeypatch.setattr(threading.Thread, "start", no_more)
    with thresholds(ALL):
        check_threads(neighbours, rng.uniform(-1.0, 1.0, 60))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_teams_of_its_own(rng):
    x, stiffness = rng.uniform(0.1, 1.0, (2, 12_000))
    two = tj.compile(energy, x, stiffness, threads=2)
    value, gradient = two.value_and_grad(x, (stiffness,))
    child = os.fork()
    if child == 0:
        own, own_gradient = two.value_and_grad(x, (stiffness,))
        os._exit(0 if own == value and np.array_equal(own_gradient, gradient) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_teams_are_used_again():
    team = Team.take(4)
    team.give()
    assert Team.take(4) is team
    other = Team.take(4)
    assert other is not team and other.n_helpers == 3
    team.give()
    other.give()
    assert sum(thread.name == "tapejit helper" for thread in threading.enumerate()) >= 6
