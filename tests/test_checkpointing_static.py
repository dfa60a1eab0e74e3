"""What is no float in loops and regions: integers, booleans, index arrays, objects, in states, parameters, inputs and results."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit.errors import BranchChangeError, ShapeError


def flagged(x):
    """Python decides by a boolean that a region gives."""
    y, is_large = tj.checkpoint(lambda x: (x * x, bool(x > 1.0)))(x)
    return y if is_large else -y


def counted(x):
    """An integer in the state of a loop is a factor afterwards."""
    y, n = tj.loop(lambda s: (s[0] * 1.1, s[1] + (1 if s[0] > 1.0 else 0)), (x, 0), 10)
    return y * n


def counted_while(x):
    y, n = tj.while_loop(lambda s: s[0] < 10.0, lambda s: (s[0] * 1.5, s[1] + 1), (x, 0))
    return y * n


@pytest.mark.parametrize("f", [flagged, counted, counted_while])
def test_replay_notices_other_integers_and_booleans_among_the_results(f):
    expected = tj.value_and_grad(f)(2.0)
    assert_allclose(tj.record(f, 0.5).vjp(2.0, 1.0), expected, rtol=1e-14)
    assert_allclose(tj.compile(f, 0.5).value_and_grad(2.0), expected, rtol=1e-14)
    with pytest.raises(BranchChangeError, match="a loop or a region gives the same integers and booleans"):
        tj.record(f, 0.5, on_branch_change="raise").value(2.0)
    same = tj.record(f, 2.0)
    assert_allclose(same.vjp(2.01, 1.0), tj.value_and_grad(f)(2.01), rtol=1e-14)
    assert same.n_recorded == 1


@pytest.mark.parametrize(
    "f",
    [
        lambda x: tj.loop(lambda s: (np.where(s[1], s[0] * 1.5, s[0] * 0.5), s[1]), (x, x > 1.0), 3)[0],
        lambda x: tj.loop(lambda s: (s[0] * (1.5 if s[1] else 0.5), s[1]), (x, x[0] > 1.0), 3)[0],
        lambda x: tj.loop(lambda s, large: np.where(large, s * 1.5, s * 0.5), x, 3, x > 1.0),
        lambda x: tj.loop(lambda s, large: s * 1.5 if large else s * 0.5, x, 2, inputs=x > 1.0),
        lambda x: tj.checkpoint(lambda x, large: np.where(large, x * 2.0, x * 3.0))(x, x > 1.0),
    ],
)
def test_replay_notices_other_comparisons_that_go_into_a_loop(f):
    x, other = np.array([0.5, 2.0]), np.array([2.0, 0.5])
    expected = tj.vjp(f)(other)
    y, x_bar = tj.record(f, x).vjp(other, np.ones(2))
    assert_array_equal(y, expected[0])
    assert_array_equal(x_bar, expected[1](np.ones(2)))


def test_comparisons_in_the_state_go_through_all_derivatives():
    def step(state):
        x, large = state
        return np.where(large, x * 1.1, np.sin(x) + 0.2), x > 0.5

    def plain(x):
        state = x, np.array([True, False])
        for _ in range(5):
            state = step(state)
        return np.sum(state[0] ** 2)

    def looped(x):
        return np.sum(tj.loop(step, (x, np.array([True, False])), 5)[0] ** 2)

    x, x_dot = np.array([0.45, 0.7]), np.array([1.0, -2.0])
    for transform in (tj.jvp, tj.hvp):
        assert_allclose(transform(looped)(x, x_dot), transform(plain)(x, x_dot), rtol=1e-13)


def test_step_may_write_into_integers_of_its_state():
    def step(state):
        x, count = state
        count += 1
        return x * np.sqrt(count[0]) + np.sin(x), count

    def plain(x):
        state = x, np.array([0, 1])
        for _ in range(5):
            state = step(state)
        return state[0]

    for compile in (False, True):
        found = tj.value_and_grad(lambda x: tj.loop(step, (x, np.array([0, 1])), 5, compile=compile)[0])(0.7)  # noqa: B023
        assert_allclose(found, tj.value_and_grad(plain)(0.7), rtol=1e-14)


def test_integers_that_the_caller_changes_afterwards_are_those_of_the_recording():
    weights, x = np.array([1.0, 2.0]), np.zeros(2)  # All states are zero, so that no value shows the change.
    functions = [
        lambda x, index: tj.loop(lambda s, i: s[i] * weights, x, 2, index),
        lambda x, index: tj.loop(lambda s, i: s[i] * weights, x, 2, inputs=np.stack([index[::-1], index])),
        lambda x, index: tj.checkpoint(lambda x, i: x[i] * weights)(x, index),
    ]
    for f in functions:
        index = np.array([0, 1])
        expected = tj.vjp(f)(x, index)[1](np.array([1.0, 3.0]))
        if f is functions[1]:
            rows = np.array([[1, 0], [0, 1]])
            _, pullback = tj.vjp(lambda x: tj.loop(lambda s, i: s[i] * weights, x, 2, inputs=rows))(x)  # noqa: B023
            rows[:] = 0
        else:
            _, pullback = tj.vjp(f)(x, index)
            index[:] = 0
        assert_array_equal(pullback(np.array([1.0, 3.0])), expected)


@dataclass
class Held:
    value: float


@pytest.mark.parametrize("made", [lambda x: OrderedDict(v=x), Held, lambda x: {x}, lambda x: np.array([x], object)])
def test_objects_that_may_hide_floats_are_refused_in_results(made):
    def step(state):
        x, _ = state
        return x * 0.9, made(0.1)

    for state in ((1.0, made(0.0)), (1.0, None)):
        with pytest.raises(ShapeError, match=r"state\[1\] is of type .* would lose their derivatives"):
            tj.grad(lambda x: tj.loop(step, (x * state[0], state[1]), 3)[0])(2.0)  # noqa: B023
    with pytest.raises(ShapeError, match="output"):
        tj.grad(lambda x: tj.checkpoint(lambda x: (x, made(0.1)))(x)[0])(2.0)


def test_outputs_that_are_the_state_itself_keep_their_values():
    def step(state):
        state[:] = np.sin(state) * 1.1
        return state, state

    def total(x):
        return np.sum(tj.loop(step, x, 4, outputs=True)[1] ** 2)

    x = np.array([0.7, -0.4])
    values = [x]
    for _ in range(4):
        values.append(np.sin(values[-1]) * 1.1)
    assert_array_equal(tj.loop(step, x, 4, outputs=True)[1], values[1:])
    assert_allclose(tj.jacobian(tj.grad(total))(x), tj.hessian(total)(x), rtol=1e-13)


def test_outputs_that_are_none_or_integers_are_refused():
    for output in (None, 1, True):
        with pytest.raises(ShapeError, match="output of a step is made of floats"):
            tj.loop(lambda x: (2.0 * x, output), 1.0, 3, outputs=True)  # noqa: B023
        with pytest.raises(ShapeError, match="output of a step is made of floats"):
            tj.grad(lambda x: tj.loop(lambda x: (2.0 * x, output), x, 3, outputs=True)[0])(1.0)  # noqa: B023
