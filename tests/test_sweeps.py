"""Sweeps: forward, tangent, reverse, K seeds and second order against each other, and their convention that 0 x inf is 0."""

import math
import threading

import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit import sweeps
from tapejit.workspace import forget

W = np.random.default_rng(5).standard_normal((6, 4))

PROGRAMS = {
    "scalars": lambda x: [
        np.sin(x[0]) * x[1],
        x[2] / (1.5 + x[3] ** 2),
        np.hypot(x[0], x[5]) - x[4],
        np.exp(x[1]) * x[0] ** 3,
    ],
    "elementwise": lambda x: np.sin(x) * np.exp(-x[::-1]) / (2.0 + x),
    "long elementwise": lambda x: np.sin(np.tile(x, 120) * 0.5) ** 2 + np.cos(np.tile(x, 120)),
    "sums": lambda x: np.sum(np.reshape(np.tile(x, 4), (4, 6)) ** 2, axis=0) * np.mean(x),
    "products": lambda x: np.reshape(np.tanh(x), (2, 3)) @ np.reshape(x * x, (3, 2)) @ W[:2],
    "passive products": lambda x: np.tanh(x @ W) @ W.T + W @ np.ones(4),
    "where": lambda x: np.where(x > 0.0, x * x, np.sin(x)) * np.maximum(x, 0.25),
    "fancy": lambda x: np.exp(x[[0, 0, 1, 5]]) * x[2:] + x[np.array([3])],
    "in place": lambda x: _in_place(x),
    "reductions": lambda x: np.array(
        [np.max(x), np.min(x * x), np.linalg.norm(x), np.prod(x), np.std(x), np.sum(np.cumsum(x) ** 2)]
    ),
    "special": lambda x: scipy.special.erf(x) + scipy.special.gammaln(2.5 + x) * scipy.special.expit(x),
    "repeated outputs": lambda x: np.array([x[0], x[0], x[1] * x[0], x[0]]),
    "constant outputs": lambda x: np.concatenate([np.ones(2), x[:2] * 2.0, np.zeros(1)]),
    "one output": lambda x: np.sum(x * x[0]),
}


def _in_place(x):
    y = np.zeros((3, 6), like=x)
    y[0] = x
    y[1:] = np.sin(y[0]) * 2.0
    y[2, ::2] *= x[::2]
    y[:, 0] += y[:, 1]
    return y


@pytest.fixture(params=PROGRAMS)
def recording(request):
    return tj.record(PROGRAMS[request.param], POINT)


POINT = np.array([0.7, -0.4, 1.1, 0.2, -1.3, 0.6])


def output_of(recording):
    return recording.tape.output_slots


# One sweep against another.


def test_adjoint_identity(recording, rng):
    """<y_bar, J x_dot> = <J.T y_bar, x_dot>."""
    tape, output = recording.tape, output_of(recording)
    for _ in range(3):
        x_dot, y_bar = rng.standard_normal(6), rng.standard_normal(output.size)
        tangent = np.zeros(tape.n_slots)
        tangent[tape.input_index()] = x_dot
        sweeps.tangent(tape, tangent)
        x_bar = sweeps.input_adjoint(tape, output, y_bar)
        assert_allclose(x_bar @ x_dot, y_bar @ tangent[output], rtol=1e-11, atol=1e-13)


def test_tangent_is_linear_and_zero_for_zero(recording, rng):
    tape, output = recording.tape, output_of(recording)

    def tangent(x_dot):
        out = np.zeros(tape.n_slots)
        out[tape.input_index()] = x_dot
        sweeps.tangent(tape, out)
        return out[output]

    a, b = rng.standard_normal((2, 6))
    assert_allclose(tangent(a + 2.0 * b), tangent(a) + 2.0 * tangent(b), rtol=1e-11, atol=1e-12)
    assert not tangent(np.zeros(6)).any()


@pytest.mark.parametrize("n_seeds", [1, 2, 5, 32])
def test_k_seeds_equal_one_seed_at_a_time(recording, rng, n_seeds):
    tape = recording.tape
    seeds = np.zeros((tape.n_slots, n_seeds))
    np.add.at(seeds, output_of(recording), rng.standard_normal((output_of(recording).size, n_seeds)))
    seeds[:, 0] = 0.0  # a seed of zeros among the others
    alone = [np.ascontiguousarray(column) for column in seeds.T]
    sweeps.reverse(tape, seeds)
    assert not seeds[:, 0].any()
    for k, adjoint in enumerate(alone):
        sweeps.reverse(tape, adjoint)
        assert_allclose(seeds[:, k], adjoint, rtol=1e-12, atol=1e-14)


def test_reverse_keeps_the_adjoint_of_every_slot(recording, rng):
    """The adjoint of a slot is the derivative of <y_bar, y> by that slot's value: checked by perturbing it in a replay of what follows."""
    tape, output = recording.tape, output_of(recording)
    y_bar = rng.standard_normal(output.size)
    adjoint = np.zeros(tape.n_slots)
    np.add.at(adjoint, output, y_bar)
    sweeps.reverse(tape, adjoint)
    assert_allclose(adjoint[tape.input_index()], sweeps.input_adjoint(tape, output, y_bar), rtol=1e-13, atol=1e-15)
    # Every slot of the expanded tape is a scalar one, whose adjoint the tangent of a single slot must find.
    scalars = tape.expand()
    adjoint = np.zeros(scalars.n_slots)
    np.add.at(adjoint, scalars.output_slots, y_bar)
    sweeps.reverse(scalars, adjoint)
    x_dot = rng.standard_normal(6)
    tangent = np.zeros(scalars.n_slots)
    tangent[scalars.input_index()] = x_dot
    sweeps.tangent(scalars, tangent)
    assert_allclose(
        adjoint[scalars.input_index()] @ x_dot, y_bar @ tangent[scalars.output_slots], rtol=1e-11, atol=1e-13
    )


def test_reverse_adds_to_what_is_there(rng):
    """Adjoints of inner slots may be seeded too."""
    tape = tj.record(lambda x: np.sum(np.sin(x) * x), POINT).tape
    first, second = np.zeros((2, tape.n_slots))
    first[tape.output_slots] = 1.0
    second[7:13] = np.arange(6.0)  # sin(x)
    both = first + second
    for adjoint in (first, second, both):
        sweeps.reverse(tape, adjoint)
    index = tape.input_index()
    assert_allclose(both[index], first[index] + second[index], rtol=1e-14)
    assert_allclose(second[index], np.arange(6.0) * np.cos(POINT), rtol=1e-14)


def test_input_adjoint_leaves_its_memory_clean(recording, rng):
    """Sweeps share memory between calls: what one leaves must not reach the next, also where constants take adjoints."""
    output = output_of(recording)
    y_bar = rng.standard_normal(output.size)
    first = sweeps.input_adjoint(recording.tape, output, y_bar)
    big = tj.record(lambda x: np.sum(np.sin(np.tile(x, 4000)) / 3.0 + 2.0 * x[0]), POINT)
    gradient = big.grad(POINT)
    for _ in range(2):
        assert_array_equal(sweeps.input_adjoint(recording.tape, output, y_bar), first)
        assert_array_equal(big.grad(POINT), gradient)
    forget()
    assert_array_equal(big.grad(POINT), gradient)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sweep_that_was_not_finite_leaves_nothing_behind(bad):
    def f(x):
        return np.sum(np.tile(x, 4000) * 2.0 / x[0])

    good = tj.record(f, POINT)
    expected = good.grad(POINT)
    with np.errstate(all="ignore"):
        assert not np.isfinite(tj.grad(f)(np.array([bad, *POINT[1:]]))).all()
        good.grad(np.array([bad, *POINT[1:]]))
    assert_array_equal(good.grad(POINT), expected)
    assert_array_equal(tj.grad(f)(POINT), expected)


# Forward.


def test_forward_at_the_recorded_point_gives_the_recorded_values(recording):
    tape = recording.tape
    value = tape.value.copy()
    sweeps.forward(tape, value)
    inside = tape.interior() | (tape.opcode == 2)
    assert_allclose(value[~inside], tape.value[~inside], rtol=1e-13, atol=1e-15)
    assert_allclose(value[inside], tape.value[inside], rtol=1e-13, atol=1e-15)


def test_forward_with_another_array_leaves_the_tape_alone(recording):
    tape = recording.tape
    before = tape.value.copy()
    value = before.copy()
    tape.set_inputs(value, POINT + 0.1)
    sweeps.forward(tape, value)
    assert_array_equal(tape.value, before)
    expected = recording.value(POINT + 0.1)
    assert_array_equal(value[output_of(recording)], np.ravel(expected))


# Second order.

SECOND = {
    "scalars": lambda x: np.sin(x[0]) * x[1] / x[2] + x[3] ** x[2] + np.exp(x[4] * x[5]) + x[0] / (x[1] - 3.0),
    "all rows of two operands": lambda x: (
        np.arctan2(x[0], x[1]) + np.hypot(x[2], x[3]) + np.logaddexp(x[4], x[5]) + np.power(x[0], x[2])
    ),
    "elementwise": lambda x: np.sum(np.sin(x) * np.exp(-x[::-1]) / (2.0 + x)),
    "broadcast": lambda x: np.sum(np.outer(x, x) ** 2 * x[:, None] + x[0]),
    "long": lambda x: np.sum(np.sin(np.tile(x, 120) * x[0]) ** 2),
    "sum axis": lambda x: np.sum(np.sum(np.reshape(x, (2, 3)) ** 2, axis=1) ** 3),
    "product": lambda x: np.sum((np.reshape(x, (2, 3)) @ np.reshape(x, (3, 2))) ** 2),
    "passive product": lambda x: np.sum(np.tanh(x @ W) ** 2),
    "where": lambda x: np.sum(np.where(x > 0.8, x**3, np.sin(x) * x[0])),
    "fancy": lambda x: np.sum(np.exp(x[[0, 0, 1, 5]]) * x[2:] ** 2),
    "in place": lambda x: np.sum(_in_place(x) ** 3),
    "norm": lambda x: np.linalg.norm(x) ** 3 + np.linalg.norm(np.sin(x)),
    "quotient": lambda x: np.sum(x / x[::-1]) + np.sum(1.0 / x),
    "special": lambda x: np.sum(scipy.special.erf(x) * scipy.special.gammaln(x + 2.0)),
}
POSITIVE_POINT = np.array([0.7, 0.45, 1.1, 0.9, 1.3, 0.6])


@pytest.mark.parametrize("name", SECOND)
def test_second_order_against_nested_transforms_and_differences(name, rng):
    f, x = SECOND[name], POSITIVE_POINT
    hessian = tj.hessian(f)(x)
    assert_allclose(hessian, hessian.T, rtol=1e-12, atol=1e-12)
    nested = tj.jacobian(tj.grad(f))(x)
    assert_allclose(hessian, nested, rtol=1e-11, atol=1e-12)
    h = 1e-4
    columns = [
        (8.0 * (tj.grad(f)(x + h * e) - tj.grad(f)(x - h * e)) - tj.grad(f)(x + 2 * h * e) + tj.grad(f)(x - 2 * h * e))
        for e in np.eye(6)
    ]
    assert_allclose(hessian, np.array(columns).T / (12.0 * h), rtol=1e-7, atol=1e-7)
    v = rng.standard_normal(6)
    assert_allclose(tj.hvp(f)(x, v), hessian @ v, rtol=1e-12, atol=1e-12)


def test_second_order_gives_the_gradient_too(rng):
    tape = tj.record(SECOND["scalars"], POSITIVE_POINT).tape
    tangent, adjoint, adjoint_tangent = np.zeros((3, tape.n_slots))
    index = tape.input_index()
    tangent[index] = rng.standard_normal(6)
    sweeps.tangent(tape, tangent)
    adjoint[tape.output_slots] = 1.0
    sweeps.second_order(tape, tangent, adjoint, adjoint_tangent)
    assert_allclose(adjoint[index], tj.grad(SECOND["scalars"])(POSITIVE_POINT), rtol=1e-14)


# Zero adjoints contribute nothing: 0 x inf is 0, in every sweep, seed by seed.


def long(f):
    """The same on an array that needs several tiles."""
    return lambda x: f(np.tile(x, 200))


ZERO_TIMES_INF = {
    # The adjoint of sqrt is 0 where its partial is inf.
    "scalar": lambda x: 0.0 * np.sqrt(x[0]) + x[1],
    "division": lambda x: 0.0 * (1.0 / x[0]) + x[1],
    "product with inf": lambda x: 0.0 * (x[0] * (1.0 / x[0])) + x[1],
    "power": lambda x: 0.0 * x[0] ** 0.25 + x[1],
    "select": lambda x: np.where(x[0] > 1.0, np.sqrt(x[0]), x[1]),
    "select of a quotient": lambda x: np.where(x[0] != 0.0, x[1] / x[0], x[1]),
    "block": lambda x: np.sum(np.sqrt(x) * np.array([0.0, 1.0])),
    "where": lambda x: np.sum(np.where(x > 0.5, np.sqrt(x), x)),
    "where of a logarithm": lambda x: np.sum(np.where(x > 0.5, np.log(x), x)),
    "where of a quotient": lambda x: np.sum(np.where(x > 0.5, 1.0 / x, x)),
    "sliced away": lambda x: np.sum(np.sqrt(x)[1:]),
    "long": long(lambda x: np.sum(np.where(x > 0.5, np.sqrt(x), x))),
    "long quotient": long(lambda x: np.sum(np.where(x > 0.5, x / (x * x), x))),
    "matmul": lambda x: (np.sqrt(x) @ np.array([[0.0, 0.0], [1.0, 2.0]]))[0] + np.sqrt(x)[1] * 0.0,
}


@pytest.mark.parametrize("name", ZERO_TIMES_INF)
def test_zero_times_infinity_is_zero_in_every_sweep(name):
    f = ZERO_TIMES_INF[name]
    x = np.array([0.0, 4.0])
    with np.errstate(all="ignore"):
        recording = tj.record(f, x)
        gradient = recording.grad(x)
        assert np.isfinite(gradient).all()
        tape = recording.tape
        # K seeds, one of them zero everywhere.
        seeds = np.zeros((tape.n_slots, 3))
        seeds[tape.output_slots] = [[1.0, 0.0, -2.0]]
        sweeps.reverse(tape, seeds)
        assert_allclose(seeds[tape.input_index()], np.outer(gradient, [1.0, 0.0, -2.0]), rtol=1e-14)
        # Tangents: along the second input only, the first has an infinite partial but a zero tangent.
        tangent = recording.jvp(x, np.array([0.0, 1.0]))[1]
        assert_allclose(tangent, gradient[1], rtol=1e-14)
        # Second order, and nested.
        product = recording.hvp(x, np.array([0.0, 1.0]))
        assert np.isfinite(product).all()
        nested = tj.jvp(tj.grad(f))(x, np.array([0.0, 1.0]))[1]
        assert_allclose(nested, product, rtol=1e-12)
        assert_allclose(tj.grad(lambda x: tj.grad(f)(x)[1])(x), product, rtol=1e-12)
        scalars = recording.expand()
        assert_allclose(sweeps.input_adjoint(scalars, scalars.output_slots, np.ones(1)), gradient, rtol=1e-14)


def test_zero_times_infinity_is_zero_in_a_tangent_of_a_nested_gradient():
    x = np.array([0.0, 4.0])
    with np.errstate(all="ignore"):
        product = tj.jvp(tj.grad(ZERO_TIMES_INF["select of a quotient"]))(x, np.array([0.0, 1.0]))[1]
    assert_array_equal(product, [0.0, 0.0])


@pytest.mark.parametrize("width", [1, 2, 300])
def test_matmul_with_infinite_factors_and_zero_adjoints(width):
    """BLAS multiplies 0 by inf; the rows whose adjoint is zero must come out as zero."""
    a = np.ones((2, 3))
    b = np.ones((3, width))
    b[1] = math.inf
    gradient = tj.grad(lambda a: (a @ b)[0, 0] * 0.0 + np.sum((a[:, ::2] @ b[::2])[1]))(a)
    assert_array_equal(gradient, [[0.0, 0.0, 0.0], [width, 0.0, width]])
    # Seed by seed.
    recording = tj.record(lambda a: a @ b, a)
    seeds = np.zeros((recording.n_slots, 2))
    rows = recording.tape.output_slots.reshape(2, width)
    seeds[rows[0], 0] = 1.0
    sweeps.reverse(recording.tape, seeds)
    x_bar = seeds[recording.tape.input_index()].reshape(2, 3, 2)
    assert_array_equal(x_bar[..., 0], [[width, math.inf, width], [0.0, 0.0, 0.0]])
    assert not x_bar[..., 1].any()
    # Tangent: a zero tangent meets inf.
    x_dot = np.zeros((2, 3))
    x_dot[0, 0] = 1.0
    tangent = recording.jvp(a, x_dot)[1]
    assert_array_equal(tangent, [[1.0] * width, [0.0] * width])


def test_active_matmul_with_infinite_factors():
    a = np.array([[1.0, math.inf], [2.0, 3.0]])
    b = np.ones((2, 2))
    f = tj.grad(lambda a, b: (a @ b)[1, 0], (0, 1))
    with np.errstate(all="ignore"):  # NumPy's own product warns
        a_bar, b_bar = f(a, b)
    assert_array_equal(a_bar, [[0.0, 0.0], [1.0, 1.0]])
    assert_array_equal(b_bar, [[2.0, 0.0], [3.0, 0.0]])


# NaN and infinity go through.


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "f", [lambda x: x[0] * x[1] + x[2] * 3.0, lambda x: np.sum(x * np.array([1.0, 2.0, 3.0])), lambda x: np.dot(x, x)]
)
def test_values_that_are_not_finite_propagate_as_in_numpy(f, bad):
    x = np.array([bad, 2.0, 3.0])
    value, gradient = tj.value_and_grad(f)(x)
    assert_array_equal(value, f(x))
    recording = tj.record(f, np.ones(3))
    assert_array_equal(recording.value(x), f(x))
    assert_array_equal(recording.grad(x), gradient)
    assert np.isfinite(recording.grad(np.ones(3))).all()


def test_a_nan_seed_reaches_only_what_it_touches():
    _, pullback = tj.vjp(lambda x: x * np.array([1.0, 2.0, 3.0]))(np.ones(3))
    assert_array_equal(pullback(np.array([0.0, math.nan, 1.0])), [0.0, math.nan, 3.0])


def test_overflow_in_a_replay_is_silent():
    recording = tj.record(lambda x: np.exp(x * 1000.0) + np.sum(np.exp(np.ones(300) * x * 1000.0)), 0.0)
    assert recording.value(1.0) == math.inf
    assert recording.grad(1.0) == math.inf


# Scalars and blocks.

ELEMENTWISE = {
    "arithmetic": lambda x: (x + 2.0) * x / (x - 3.0) - x,
    "functions": lambda x: np.sin(np.exp(x) * 0.3) + np.log1p(x * x) * np.tanh(x),
    "special": lambda x: scipy.special.erf(x) * scipy.special.gammaln(x + 2.5) + scipy.special.expit(x),
    "powers": lambda x: x**2 + x**3 - (x + 2.0) ** 2.5 + (x + 2.0) ** -1 + np.power(x + 2.0, x),
    "piecewise": lambda x: (
        np.maximum(x, 0.25) + abs(x) * np.where(x > 0.1, x, 2.0) + np.remainder(x, 0.3) + np.floor(x)
    ),
    "chain of forty": lambda x: _chain(x, 40),
    "chain of seventy": lambda x: _chain(x, 70),
}


def _chain(x, n):
    y = x
    for k in range(n):
        y = np.sin(y) * 0.9 + x * (0.1 * (k % 3)) if k % 2 else y / (1.5 + x * x)
    return y


@pytest.mark.parametrize("n", [2, 9, 255, 256, 257, 512, 513, 1025])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_scalar_slots_and_blocks_are_equal_to_the_last_bit(name, n, rng):
    f = ELEMENTWISE[name]
    recording = tj.record(f, rng.uniform(-0.9, 0.9, n))
    scalars = recording.expand()
    x, y_bar, x_dot = rng.uniform(-0.9, 0.9, (3, n))
    blocks = recording.tape.value.copy()
    recording.tape.set_inputs(blocks, x)
    sweeps.forward(recording.tape, blocks)
    value = scalars.value.copy()
    scalars.set_inputs(value, x)
    sweeps.forward(scalars, value)
    assert_array_equal(value[scalars.output_slots], blocks[output_of(recording)])
    assert_allclose(
        sweeps.input_adjoint(scalars, scalars.output_slots, y_bar, value),
        sweeps.input_adjoint(recording.tape, output_of(recording), y_bar, blocks),
        rtol=1e-13,
        atol=1e-15,
    )
    tangents = []
    for tape, numbers in ((scalars, value), (recording.tape, blocks)):
        tangent = np.zeros(tape.n_slots)
        tangent[tape.input_index()] = x_dot
        sweeps.tangent(tape, tangent, numbers)
        tangents.append(tangent[tape.output_slots])
    assert_allclose(*tangents, rtol=1e-13, atol=1e-15)


def test_a_scalar_program_and_an_array_program_are_equal_to_the_last_bit(rng):
    x, other = rng.uniform(0.1, 2.0, (2, 400))
    array = tj.record(lambda x: np.sin(x) * x + np.exp(-x), x)
    scalars = tj.record(lambda x: [np.sin(x_i) * x_i + np.exp(-x_i) for x_i in x], x)
    assert_array_equal(array.value(other), scalars.value(other))
    y_bar = rng.standard_normal(400)
    assert_array_equal(array.vjp(other, y_bar)[1], scalars.vjp(other, y_bar)[1])


# Threads.


def test_sweeps_run_in_several_threads_at_once(rng):
    def f(x):
        return np.sum(np.sin(np.tile(x, 500)) * np.tile(x, 500)[::-1]) / x[0]

    tape = tj.record(f, POINT).tape
    points = rng.uniform(0.5, 1.5, (16, 6))
    expected = [tj.grad(f)(x) for x in points]
    results = [None] * len(points)

    def work(k):
        for i in range(k, len(points), 4):
            value = tape.value.copy()
            tape.set_inputs(value, points[i])
            sweeps.forward(tape, value)
            results[i] = sweeps.input_adjoint(tape, tape.output_slots, np.ones(1), value)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, reference in zip(results, expected, strict=True):
        assert_allclose(result, reference, rtol=1e-12)
