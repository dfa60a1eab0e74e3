"""Kernels in SIMD lanes, and batches that run on them: every row as by itself."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from problems import heat, lennard_jones
from scipy import special

import tapejit as tj
from tapejit.compiler.kernel import compile_tape
from tapejit.compiler.lanes import FEWEST_LANES, compile_in_lanes, run_in_lanes
from tapejit.errors import CompileError, ShapeError


def walk(x, z):
    """A loop that carries two values, with transcendental functions and one that is called out of line."""
    state, total = x[0], 0.0
    for k in range(len(z)):
        state = state * np.exp(0.1 * z[k] - x[1] * x[1]) + np.tanh(x[2] * state)
        total = total + special.gammaln(2.0 + state * state)
    return total / len(z) + np.maximum(state, x[1])


def grid(x, z):
    """Nested loops that read shifted and stored values: everything that a single row does in tiles."""
    u = [x[0] + 0.1 * z[k] for k in range(len(z))]
    for _ in range(3):
        u = [u[k] + x[1] * (u[(k + 1) % len(u)] - 2.0 * u[k] + u[k - 1]) for k in range(len(u))]
    total = 0.0
    for k in range(len(u)):
        total = total + (u[k] - x[2]) ** 2
    return total


@pytest.fixture
def rows(rng):
    """Inputs (B, 3) and data (B, 40) of a number of rows that no number of lanes divides."""
    return rng.uniform(0.2, 0.8, (FEWEST_LANES * 9 + 5, 3)), rng.standard_normal((FEWEST_LANES * 9 + 5, 40))


@pytest.mark.parametrize("f", [walk, grid], ids=lambda f: f.__name__)
def test_lanes_equal_single_rows(f, rows):
    x, z = rows
    tape = tj.record(f, x[0], z[0]).tape
    single = compile_tape(tape)
    wide = compile_in_lanes(tape, single.size, False, 20.0)
    values, bars = np.empty((len(x), 1)), np.empty(x.shape)
    assert not run_in_lanes(wide, x, z, values, bars).any()
    for row in range(len(x)):
        value, bar = single.run(x[row], [z[row]], 1.0)
        assert values[row, 0] == value
        assert_allclose(bars[row], bar, rtol=1e-12)


def test_data_that_serves_all_rows(rows):
    x, z = rows
    tape = tj.record(walk, x[0], z[0]).tape
    single = compile_tape(tape)
    wide = compile_in_lanes(tape, single.size, False, 20.0)
    values, bars = np.empty((len(x), 1)), np.empty(x.shape)
    run_in_lanes(wide, x, z[3:4], values, bars)
    assert_array_equal(values[:, 0], [single.run(row, [z[3]])[0] for row in x])


def test_batch_takes_stacked_arguments(rows):
    x, z = rows
    fast = tj.compile(walk, x[0], z[0])
    for row in x[:2]:
        fast.value_and_grad(row)
    values, gradients = fast.batch(x, args=(z,))
    listed = fast.batch(x, args=[(own,) for own in z])
    assert_array_equal(values, listed[0])
    assert_array_equal(gradients, listed[1])
    shared = fast.batch(x, args=(z[3],))
    assert_array_equal(shared[0], fast.batch(x, args=[(z[3],)] * len(x))[0])
    for row in range(0, len(x), 7):
        value, gradient = fast.value_and_grad(x[row], (z[row],))
        assert values[row] == value
        assert_allclose(gradients[row], gradient, rtol=1e-12)


def test_stacked_arguments_have_a_row_for_each_input(rows):
    x, z = rows
    fast = tj.compile(walk, x[0], z[0])
    with pytest.raises(ShapeError, match="rows"):
        fast.batch(x, args=(z[1:],))


def test_rows_that_branch_otherwise_than_their_neighbours(rng):
    def f(x):
        total = x[0] * x[1]
        for _ in range(20):
            total = np.sin(total) + x[1]
        return total if x[0] > 0.0 else total * total + x[0]

    x = rng.uniform(-1.0, 1.0, (100, 2))
    fast = tj.compile(f, np.array([0.5, 0.5]))
    values, gradients = fast.batch(x)
    again = fast.batch(x)
    for got in ((values, gradients), again):
        assert_allclose(got[0], [f(row) for row in x], rtol=1e-12)
        assert_allclose(got[1], [tj.grad(f)(row) for row in x], rtol=1e-10)


def test_rows_whose_result_is_not_finite(rng):
    def f(x):
        total = 0.0
        for k in range(1, 40):
            total = total + np.sqrt(x[0] * k) * x[1]
        return total

    x = rng.uniform(0.5, 1.0, (50, 2))
    x[7] = 0.0, 0.0  # 0 x inf is 0 in the interpreter
    x[20, 0] = -1.0
    x[33] = np.inf, 1.0
    fast = tj.compile(f, x[0])
    with np.errstate(all="ignore"):
        values, gradients = fast.batch(x)
        values, gradients = fast.batch(x)
    interpreted = tj.record(f, x[0])
    for row in range(len(x)):
        value, gradient = interpreted.value_and_grad(x[row])
        assert_array_equal(values[row], value)
        assert_allclose(gradients[row], gradient, rtol=1e-12)


def test_angles_beyond_the_range_of_the_inlined_sine(rng):
    def f(x):
        total = 0.0
        for k in range(1, 30):
            total = total + np.sin(x[0] * k) * x[1]
        return total

    x = rng.uniform(0.5, 1.0, (40, 2))
    x[11, 0] = 1e12
    fast = tj.compile(f, x[0])
    fast.batch(x)
    values, gradients = fast.batch(x)
    interpreted = tj.record(f, x[0])
    for row in range(len(x)):
        value, gradient = interpreted.value_and_grad(x[row])
        assert values[row] == value
        assert_allclose(gradients[row], gradient, rtol=1e-12)


@pytest.mark.parametrize("n_rows", [3, FEWEST_LANES * 4])
def test_a_gradient_after_a_batch_is_what_it_was_before(rows, n_rows):
    """Work arrays are shared, and a run expects adjoints of zero."""
    x, z = rows
    fast = tj.compile(grid, x[0], z[0])
    fast.value_and_grad(x[0])
    before = fast.grad(x[1])
    fast.batch(x[:n_rows])
    assert_array_equal(fast.grad(x[1]), before)
    assert_array_equal(fast.grad(x[1]), before)


def test_data_of_a_decorated_function_is_not_taken_for_rows(rows):
    x, z = rows

    @tj.compile
    def f(x, z):
        return walk(x, z)

    with pytest.raises(ShapeError, match="call the function once before"):
        f.batch(x, args=(z,))
    f.value_and_grad(x[0], (z[0],))
    assert_array_equal(f.batch(x, args=(z,))[0], f.batch(x, args=[(own,) for own in z])[0])


def test_a_kernel_in_lanes_that_errs_is_found_out(rows, monkeypatch):
    x, z = rows
    fast = tj.compile(walk, x[0], z[0])
    fast.value_and_grad(x[0])

    def wrong(made, inputs, parameters, values, bars):
        failed = run_in_lanes(made, inputs, parameters, values, bars)
        bars *= 1.001
        return failed

    monkeypatch.setattr("tapejit.compiled.run_in_lanes", wrong)
    with pytest.raises(CompileError, match="in lanes"):
        fast.batch(x, args=(z,))


@pytest.mark.parametrize("problem", [heat, lennard_jones], ids=["inputs in memory", "inputs apart"])
def test_gradients_do_not_depend_on_what_ran_before(problem, rng):
    args = problem.make(15, rng)
    points = args[0] + 0.01 * rng.standard_normal((40, args[0].size))
    recording, fast = tj.record(problem.primal, *args), tj.compile(problem.primal, *args)
    expected = [recording.grad(x) for x in points[:6]]
    fast.value_and_grad(args[0])
    assert fast._variants[0].kernel.inputs_apart is (problem is lennard_jones)
    kernel, into = fast.kernel, np.empty_like(args[0])
    ways = (
        fast.grad,
        lambda x: fast.batch(np.stack([x, points[0]]))[1][0],
        lambda x: fast.batch(np.stack([x, *points]))[1][0],
        lambda x: fast.vjp(x, 2.0)[1] / 2.0,
        lambda x: (kernel(x, into), into)[1],
        lambda x: (fast.value_and_grad(np.full_like(x, np.nan)), fast.grad(x))[1],
    )
    for k in rng.integers(6, size=40):
        gradient = ways[rng.integers(len(ways))](points[k])
        assert_allclose(gradient, expected[k], rtol=1e-10, atol=1e-11 * np.abs(expected[k]).max())
