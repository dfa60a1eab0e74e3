"""Random programs agree on every path there is: recorded, replayed, expanded, tangent, reverse, K seeds, second order, nested, pickled."""

import pickle

import hypothesis.strategies as st
import numpy as np
import programs
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit import sweeps

# Two paths to one number, whose terms have size one or less and may cancel.
RTOL, ATOL = 1e-9, 1e-11
SECOND_RTOL, SECOND_ATOL = 1e-8, 1e-9
SEEDS = st.integers(0, 10**6)


def close(actual, expected, rtol=RTOL, atol=ATOL):
    """Equal up to rounding, relative to the largest entry."""
    expected = np.asarray(expected)
    assert_allclose(actual, expected, rtol=rtol, atol=atol + rtol * np.abs(expected).max(initial=0.0))


def check_first_order(f, plain, x, other, rng):
    """All first-order paths of a scalar function at `x`, and of its replay at another point."""
    recording = tj.record(f, x)
    value, gradient = tj.value_and_grad(f)(x)
    assert recording.n_recorded == 1
    close(value, plain(x.copy()))
    # Replayed at the same point.
    replayed, replayed_gradient = recording.value_and_grad(x)
    assert recording.n_recorded == 1, "a replay at the recorded point took another branch"
    close(replayed, value)
    close(replayed_gradient, gradient)
    # Tangent against reverse.
    direction = rng.standard_normal(x.shape)
    tangent = tj.jvp(f)(x, direction)[1]
    close(tangent, np.vdot(gradient, direction), atol=ATOL * x.size)
    close(recording.jvp(x, direction)[1], tangent)
    # K seeds against one at a time, and adjoints of every slot.
    tape = recording.tape
    seeds = np.zeros((tape.n_slots, 3))
    seeds[recording._current.call.output[0]] = 1.0, -2.0, 0.0
    seeds[tape.n_slots // 2, 2] = 1.0
    one_by_one = [np.ascontiguousarray(seeds[:, k]) for k in range(3)]
    sweeps.reverse(tape, seeds)
    for k, adjoint in enumerate(one_by_one):
        sweeps.reverse(tape, adjoint)
        close(seeds[tape.input_index(), k], adjoint[tape.input_index()])
    close(seeds[tape.input_index(), 0], np.ravel(gradient))
    # Blocks against scalar slots.
    scalars = tape.expand()
    close(scalars.value[scalars.output_slots], [value])
    sweeps.forward(scalars)
    close(scalars.value[scalars.output_slots], [value])
    close(sweeps.input_adjoint(scalars, scalars.output_slots, np.ones(1)), np.ravel(gradient))
    # At other inputs: the plain function, and a recording made there.
    moved, moved_gradient = recording.value_and_grad(other)
    close(moved, plain(other.copy()))
    close(moved_gradient, tj.grad(f)(other))
    # Pickled.
    again = pickle.loads(pickle.dumps(recording.tape))
    assert_array_equal(again.value, recording.tape.value)
    sweeps.forward(again)
    close(again.value[again.output_slots], [moved])
    close(sweeps.input_adjoint(again, again.output_slots, np.ones(1)), np.ravel(moved_gradient))


def check_second_order(f, x, rng):
    """H v by the second-order sweep, forward over reverse, reverse over forward, reverse over reverse, and from the Hessian."""
    v = rng.standard_normal(x.shape)
    product = tj.hvp(f)(x, v)
    options = {"rtol": SECOND_RTOL, "atol": SECOND_ATOL}
    close(tj.jvp(tj.grad(f))(x, v)[1], product, **options)
    close(tj.grad(lambda x: tj.jvp(f)(x, v)[1])(x), product, **options)
    close(tj.grad(lambda x: np.sum(tj.grad(f)(x) * v))(x), product, **options)
    close(tj.jvp(lambda t: tj.jvp(lambda s: f(x + s * v))(t, 1.0)[1])(0.0, 1.0)[1], np.vdot(v, product), **options)
    close(tj.record(f, x).hvp(x, v), product, **options)
    if x.size <= 12:
        close(np.tensordot(tj.hessian(f)(x), v, axes=x.ndim), product, **options)


@settings(max_examples=60)
@given(program=programs.scalar_programs(), seed=SEEDS)
def test_scalar_programs_agree_at_first_order(program, seed):
    rng = np.random.default_rng(seed)
    f, plain = programs.scalar_function(program), programs.scalar_function(program, plain=True)
    x, other = rng.uniform(-2.0, 2.0, (2, 4))
    assert tj.value_and_grad(f)(x)[0] == plain(x)
    check_first_order(f, plain, x, other, rng)


@settings(max_examples=40)
@given(program=programs.scalar_programs(max_size=15), seed=SEEDS)
def test_scalar_programs_agree_at_second_order(program, seed):
    rng = np.random.default_rng(seed)
    check_second_order(programs.scalar_function(program), rng.uniform(-2.0, 2.0, 4), rng)


@settings(max_examples=200)
@given(program=programs.array_programs(), shape=programs.shapes(), seed=SEEDS)
def test_array_programs_agree_at_first_order(program, shape, seed):
    rng = np.random.default_rng(seed)
    f = programs.array_function(program)
    check_first_order(f, f, programs.points(shape, seed), programs.points(shape, seed + 1), rng)


@settings(max_examples=50)
@given(program=programs.array_programs(max_size=4), shape=programs.shapes(limit=520), seed=SEEDS)
def test_array_programs_agree_at_second_order(program, shape, seed):
    check_second_order(programs.array_function(program), programs.points(shape, seed), np.random.default_rng(seed))


@settings(max_examples=60)
@given(
    program=programs.array_programs(kinds=programs.ELEMENTWISE),
    n=st.sampled_from([2, 7, 8, 255, 256, 257, 511, 512, 513, 1000]),
    seed=SEEDS,
)
def test_elementwise_programs_are_equal_to_the_last_bit_in_blocks_and_in_scalar_slots(program, n, seed):
    f = programs.elementwise_function(program)
    x, other = programs.points((n,), seed), programs.points((n,), seed + 1)
    recording = tj.record(f, x)
    scalars = recording.expand()
    assert not scalars.blocks()
    value = recording.value(other)
    replayed = scalars.value.copy()
    scalars.set_inputs(replayed, other)
    sweeps.forward(scalars, replayed)
    assert_array_equal(replayed[scalars.output_slots], value)
    y_bar = np.random.default_rng(seed).standard_normal(n)
    adjoint = sweeps.input_adjoint(scalars, scalars.output_slots, y_bar, replayed)
    close(recording.vjp(other, y_bar)[1], adjoint, rtol=1e-13)


@settings(max_examples=40)
@given(
    program=programs.array_programs(max_size=5), shape=programs.shapes(limit=300), seed=SEEDS, scale=st.floats(0.5, 1.5)
)
def test_gradients_agree_under_a_nested_closure(program, shape, seed, scale):
    """An inner gradient, closing over the outer variable, against the plain second derivative."""
    f = programs.array_function(program)
    x = programs.points(shape, seed)
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape)

    def outer(s):
        # d/dt f(x + t s w) at t = 0 is s * <grad f, w>; with s outside, its derivative is <grad f, w>.
        return tj.grad(lambda t: f(x + t * s * w) * s)(0.0)

    expected = 2.0 * scale * np.vdot(tj.grad(f)(x), w)
    close(tj.grad(outer)(scale), expected, rtol=SECOND_RTOL, atol=SECOND_ATOL * x.size)


@settings(max_examples=25)
@given(program=programs.array_programs(max_size=4), shape=programs.shapes(limit=300), seed=SEEDS)
def test_programs_have_the_gradient_that_differences_say(program, shape, seed):
    """The one check that shares nothing with the tape; jumps and kinks of the program may lie between, so that one point of three counts."""
    f = programs.array_function(program)
    rng = np.random.default_rng(seed)
    failures = []
    for attempt in range(3):
        x = programs.points(shape, seed + attempt)
        direction = rng.standard_normal(shape)
        h = 1e-5
        expected = (
            8.0 * (f(x + h * direction) - f(x - h * direction)) - f(x + 2 * h * direction) + f(x - 2 * h * direction)
        ) / (12.0 * h)
        actual = np.vdot(tj.grad(f)(x), direction)
        if abs(actual - expected) <= 1e-6 * (1.0 + abs(expected)):
            return
        failures.append((actual, expected))
    pytest.fail(f"gradient against differences: {failures}")
