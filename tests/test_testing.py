"""`tj.testing.check_grads`: passes what is right, fails what is wrong, and names the input and the amount."""

import re

import numpy as np
import pytest

import tapejit as tj
from tapejit.testing import check_grads

# The partial of `off` is too large by a thousandth, its second by as much; `shifted` has a right first and a wrong second partial.
off = tj.primitive("testing_off", "sin(x)", "1.001 * cos(x)")
shifted = tj.primitive("testing_shifted", "x * x * x", "3 * (x * x)", seconds=("6.01 * x",))
swapped = tj.primitive("testing_swapped", "x * sin(y)", ("x * cos(y)", "sin(y)"))


@pytest.mark.parametrize(
    ("f", "args"),
    [
        (np.sin, 0.5),
        (np.sin, (0.5,)),
        (lambda x: np.sum(np.sin(x)), np.linspace(0.0, 1.0, 5)),
        (lambda x: np.sin(x) * x, np.ones((2, 3))),
        (lambda x, y: np.sum(x * y), (np.ones(3), np.array([1.0, 2.0, 3.0]))),
        (lambda x, y: x * np.sum(y), (0.5, np.ones((2, 2)))),
        (lambda x, n: np.sum(x**n), (np.ones(3), 3)),
        (lambda x, name: np.sum(getattr(np, name)(x)), (np.ones(3), "cos")),
        (lambda x: [x[0] * x[1], np.exp(x[0])], np.array([0.3, 0.7])),
        (lambda x: x[0] * x[1], [0.3, 0.7]),
        (lambda x: np.sum(x * x), 1e6 * np.ones(3)),
        (lambda x: np.sum(x * x), 1e-6 * np.ones(3)),
        (lambda x: 3.0, np.ones(2)),
        (lambda x: np.sum(x), np.zeros(0)),
        (lambda x: x * x, np.ones(3, np.float32)),
    ],
)
@pytest.mark.parametrize("order", [1, 2])
def test_right_derivatives_pass(f, args, order):
    check_grads(f, args, order=order)


def figures(error):
    return [float(number) for number in re.findall(r"-?\d+\.\d+(?:e[-+]?\d+)?", str(error.value))]


@pytest.mark.parametrize("modes", [("forward",), ("forward", "reverse")])
def test_a_wrong_partial_fails_and_names_the_input(modes):
    def f(x):
        return np.sum(np.cos(x)) + off(x[3])

    with pytest.raises(
        AssertionError, match=r"forward mode, order 1, against differences.*Along args\[0\]\[3\] alone"
    ) as error:
        check_grads(f, np.linspace(0.1, 1.0, 8), modes=modes)
    *_, ours, reference, difference = figures(error)
    x = np.linspace(0.1, 1.0, 8)[3]
    assert ours == pytest.approx(1.001 * np.cos(x) - np.sin(x), rel=1e-6)
    assert reference == pytest.approx(np.cos(x) - np.sin(x), rel=1e-6)
    assert difference == pytest.approx(0.001 * np.cos(x), rel=1e-2)


@pytest.mark.parametrize(
    ("f", "args", "place"),
    [
        (lambda x: off(x), 0.3, "args[0] alone"),
        (lambda x, y: x * off(y), (0.5, 0.3), "args[1] alone"),
        (lambda x, y: np.sum(x) + off(y[1, 2]) * np.sum(y), (np.ones(2), np.full((2, 3), 0.4)), "args[1][1, 2] alone"),
        (lambda n, x: off(x[0]) * n, (3, np.array([0.2, 0.3])), "args[1][0] alone"),
        (lambda x: [x[0], off(x[1])], np.array([0.2, 0.3]), "args[0][1] alone"),
        (lambda x: np.stack([off(x[2]), x[0] * x[1]]), np.array([0.2, 0.3, 0.4]), "args[0][2] alone"),
    ],
)
def test_the_input_at_fault_is_named(f, args, place):
    with pytest.raises(AssertionError, match=re.escape(place)):
        check_grads(f, args)


def test_a_wrong_partial_is_found_among_many_inputs():
    def f(x):
        return np.sum(np.where(np.arange(1000) == 617, off(x), np.sin(x)))

    with pytest.raises(AssertionError, match=r"args\[0\]\[617\] alone"):
        check_grads(f, np.linspace(0.0, 1.0, 1000))


def test_swapped_partials_fail():
    with pytest.raises(AssertionError, match="forward mode, order 1"):
        check_grads(lambda x: swapped(x[0], x[1]), np.array([0.5, 1.2]))


def test_a_wrong_second_partial_fails_at_order_2_only():
    check_grads(shifted, 1.5, order=1)
    with pytest.raises(AssertionError, match=r"order 2, against differences of gradients.*args\[0\] alone"):
        check_grads(shifted, 1.5)
    with pytest.raises(AssertionError, match=r"order 2.*args\[0\]\[2\] alone"):
        check_grads(lambda x: np.sum(np.sin(x)) + shifted(x[2]), np.array([0.1, 0.2, 0.3]))
    check_grads(lambda x: [shifted(x), x], 1.5)  # not scalar: no second order


def test_a_dropped_derivative_fails():
    with pytest.raises(AssertionError, match=r"args\[0\]\[1\] alone: .* and "):
        check_grads(lambda x: x[0] * tj.value(x[1]), np.array([2.0, 3.0]))


def test_reverse_mode_alone_is_compared_with_forward_mode():
    """Both follow the same wrong row, so reverse alone cannot see it; forward can."""
    check_grads(off, 0.3, order=1, modes=("reverse",))
    with pytest.raises(AssertionError, match="forward mode"):
        check_grads(off, 0.3, order=1, modes=("forward",))


def test_a_nan_gradient_fails():
    def f(x):
        return np.sqrt(x[0] * x[0]) + x[1]  # derivative 0 * inf at 0, where differences see a kink

    with pytest.raises(AssertionError, match=r"args\[0\]\[0\] alone"), np.errstate(all="ignore"):
        check_grads(f, np.array([0.0, 1.0]), order=1)


def test_tolerances_and_argnums():
    check_grads(off, 0.3, rtol=1e-2, order=1)
    check_grads(lambda x, y: x * off(y), (0.5, 0.3), argnums=0)
    with pytest.raises(AssertionError, match=r"args\[1\]"):
        check_grads(lambda x, y: x * off(y), (0.5, 0.3), argnums=(1,))
    with pytest.raises(
        ValueError, match="no argument is a real floating-point number; name those to check with argnums"
    ):
        check_grads(lambda n: n, 3)


def test_the_cost_does_not_grow_with_the_number_of_inputs():
    calls = []

    def f(x):
        calls.append(1)
        return np.sum(np.sin(x))

    counts = []
    for n in (2, 2000):
        calls.clear()
        check_grads(f, np.linspace(0.0, 1.0, n))
        counts.append(len(calls))
    assert counts[0] == counts[1] < 25


def test_the_directions_are_the_caller_s():
    a = np.random.default_rng(1)
    check_grads(np.sin, 0.5, rng=a)
    assert a.random() != np.random.default_rng(1).random()
