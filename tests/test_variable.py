"""Active scalars: Python's operators and what Python's semantics ask of them, define-by-run gradients, replays, refusals."""

import decimal
import fractions
import math
import operator

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit.errors import (
    BranchChangeError,
    PassiveConversionError,
    ShapeError,
    TapeError,
    TapejitError,
    UnsupportedError,
)

OPERATORS = {
    "+": (operator.add, lambda x, y: (1.0, 1.0)),
    "-": (operator.sub, lambda x, y: (1.0, -1.0)),
    "*": (operator.mul, lambda x, y: (y, x)),
    "/": (operator.truediv, lambda x, y: (1.0 / y, -x / y**2)),
    "**": (operator.pow, lambda x, y: (y * x ** (y - 1.0), x**y * math.log(x))),
    "%": (operator.mod, lambda x, y: (1.0, -(x // y))),
    "//": (operator.floordiv, lambda x, y: (0.0, 0.0)),
}
NUMBERS = [3, 2.5, np.float64(1.75), np.float32(1.5), np.int64(2), np.int32(3), np.uint8(2), True, np.bool_(True)]


def number_id(number):
    return f"{type(number).__name__}({number})"


@pytest.mark.parametrize("symbol", OPERATORS)
@pytest.mark.parametrize("number", NUMBERS, ids=number_id)
def test_operators_with_a_plain_number_on_the_right(symbol, number):
    apply, partials = OPERATORS[symbol]
    with tj.Tape() as tape:
        x = tape.input(2.25)
        f = apply(x, number)
    f.backward()
    assert f.value == apply(2.25, float(number))
    assert_allclose(x.grad, partials(2.25, float(number))[0], rtol=1e-15)


@pytest.mark.parametrize("symbol", OPERATORS)
@pytest.mark.parametrize("number", NUMBERS, ids=number_id)
def test_operators_with_a_plain_number_on_the_left(symbol, number):
    apply, partials = OPERATORS[symbol]
    with tj.Tape() as tape:
        y = tape.input(1.25)
        f = apply(number, y)
    f.backward()
    assert isinstance(f, tj.Variable)
    assert f.value == apply(float(number), 1.25)
    assert_allclose(y.grad, partials(float(number), 1.25)[1], rtol=1e-15, atol=1e-300)


@pytest.mark.parametrize("symbol", OPERATORS)
@pytest.mark.parametrize(("x", "y"), [(2.25, 1.5), (0.3, 0.1), (7.5, 2.5)])
def test_operators_of_two_variables(symbol, x, y):
    apply, partials = OPERATORS[symbol]
    f = tj.value_and_grad(apply, argnums=(0, 1))
    value, gradient = f(x, y)
    assert value == apply(x, y)
    if symbol != "%" or x % y > 1e-9:
        assert_allclose(gradient, partials(x, y), rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("symbol", OPERATORS)
def test_in_place_operators_make_a_new_value(symbol):
    apply, _ = OPERATORS[symbol]
    with tj.Tape() as tape:
        x = tape.input(2.25)
        y = x
        y = getattr(operator, f"i{apply.__name__.strip('_')}")(y, 1.5)
    assert y.value == apply(2.25, 1.5)
    assert x.value == 2.25


@pytest.mark.parametrize("symbol", OPERATORS)
@pytest.mark.parametrize("x", [-7.5, -3.0, -0.5, 0.25, 3.0, 7.3, 1e17, -1e17, 5e-324, math.inf])
@pytest.mark.parametrize("y", [-2.0, -0.3, 0.1, 1.0, 2.0, 3, 1e-3, math.inf, -math.inf])
def test_recorded_and_replayed_values_are_python_s(symbol, x, y):
    """Signs, exact multiples, results next to a jump, infinities."""
    apply, _ = OPERATORS[symbol]
    try:
        expected = apply(x, float(y))
    except OverflowError:
        expected = math.inf if x > 0 or y % 2 == 0 else -math.inf
    if isinstance(expected, complex):
        expected = math.nan  # a negative base with a fraction as exponent
    with tj.Tape() as tape:
        a, b = tape.input(x), tape.input(float(y))
        results = [apply(a, b), apply(a, y), apply(x, b)]
    assert_array_equal([f.value for f in results], [expected] * 3)
    assert [math.copysign(1.0, f.value) for f in results if f.value == f.value] == [
        math.copysign(1.0, expected) for f in results if f.value == f.value
    ]
    tape.forward([x, float(y)])
    for f in results:
        if symbol == "**" and math.isfinite(expected):
            assert_allclose(f.value, expected, rtol=1e-15)
        else:
            assert_array_equal(f.value, expected)


@pytest.mark.parametrize("x", [-7.5, 7.5, -0.5])
@pytest.mark.parametrize("y", [2.0, -2.0, 0.3])
def test_divmod(x, y):
    for f in (lambda a, b: divmod(a, b), lambda a, b: divmod(a, y), lambda a, b: divmod(x, b)):
        with tj.Tape() as tape:
            quotient, rest = f(tape.input(x), tape.input(y))
        assert (quotient.value, rest.value) == divmod(x, y)
    gradients = tj.grad(lambda a, b: divmod(a, b)[1], (0, 1))(x, y)
    assert gradients == (1.0, -(x // y))


# Where Python raises and NumPy gives inf or NaN: a line search can step back.


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda x: 1.0 / (x - x), math.inf),
        (lambda x: -1.0 / (x - x), -math.inf),
        (lambda x: x / 0.0, math.inf),
        (lambda x: x / -0.0, -math.inf),
        (lambda x: (x - x) / 0, math.nan),
        (lambda x: (x * math.nan) / 0.0, math.nan),
        (lambda x: x % 0.0, math.nan),
        (lambda x: x // 0.0, math.inf),
        (lambda x: (x - x) // 0.0, math.nan),
        (lambda x: (x - x) ** -1, math.inf),
        (lambda x: (x - x) ** -2.5, math.inf),
        (lambda x: (-x) ** 0.5, math.nan),
        (lambda x: (-x) ** (x / 4.0), math.nan),
        (lambda x: (x * 1e300) ** 2, math.inf),
        (lambda x: (x * 1e200) ** 2.5, math.inf),
        (lambda x: 1e300**x, math.inf),
        (lambda x: np.exp(1000.0 * x), math.inf),
        (lambda x: np.log(-x), math.nan),
        (lambda x: np.log(x - x), -math.inf),
        (lambda x: np.sqrt(-x), math.nan),
    ],
)
def test_outside_a_domain_the_value_is_numpy_s(compute, expected):
    with tj.Tape() as tape, np.errstate(all="ignore"):
        x = tape.input(2.0)
        f = compute(x)
    assert_array_equal(f.value, expected)
    tape.forward([2.0])
    assert_array_equal(f.value, expected)


# One operand.


@pytest.mark.parametrize("x", [-2.5, -1.5, -0.5, -0.0, 0.0, 0.5, 1.5, 2.5, 2.4, -2.6, 1e17])
def test_rounding_is_python_s(x):
    with tj.Tape() as tape:
        v = tape.input(x)
        results = [round(v), round(v, 0), math.floor(v), math.ceil(v), math.trunc(v), np.rint(v)]
        assert all(isinstance(f, tj.Variable) for f in results)
        integers = [int(f) for f in results]
    expected = [round(x), round(x), math.floor(x), math.ceil(x), math.trunc(x), round(x)]
    assert [f.value for f in results] == expected
    assert integers == expected
    assert all(tj.grad(f)(x) == 0.0 for f in (round, math.floor, math.ceil, math.trunc))


def test_round_to_digits_is_refused():
    with pytest.raises(UnsupportedError, match=r"round\(x, 2\).*np.rint"):
        tj.grad(lambda x: round(x, 2))(1.234)


@pytest.mark.parametrize(
    ("f", "x", "value", "derivative"),
    [
        (operator.neg, 3.0, -3.0, -1.0),
        (operator.pos, 3.0, 3.0, 1.0),
        (abs, -3.0, 3.0, -1.0),
        (abs, 3.0, 3.0, 1.0),
        (abs, 0.0, 0.0, 0.0),
        (lambda x: x**2, -3.0, 9.0, -6.0),
        (lambda x: x**3, -2.0, -8.0, 12.0),
        (lambda x: x**1, -2.0, -2.0, 1.0),
        (lambda x: x**0, -2.0, 1.0, 0.0),
        (lambda x: x**0, 0.0, 1.0, 0.0),
        (lambda x: x**-1, -2.0, -0.5, -0.25),
        (lambda x: x**-3, -2.0, -0.125, -3.0 / 16.0),
        (lambda x: x**0.5, 4.0, 2.0, 0.25),
        (lambda x: x**7, -1.0, -1.0, 7.0),
        (lambda x: pow(x, 5), -2.0, -32.0, 80.0),
        (lambda x: x**2, 0.0, 0.0, 0.0),
        (lambda x: x**1.5, 0.0, 0.0, 0.0),
        (lambda x: x**True, 5.0, 5.0, 1.0),
        (lambda x: x ** np.int64(2), 5.0, 25.0, 10.0),
        (lambda x: 0.0**x, 2.0, 0.0, 0.0),
        (lambda x: 2**x, 3.0, 8.0, 8.0 * math.log(2.0)),
    ],
)
def test_derivatives_of_one_variable(f, x, value, derivative):
    result = tj.value_and_grad(f)(x)
    assert result[0] == value
    if derivative == derivative:
        assert_allclose(result[1], derivative, rtol=1e-15, atol=0.0)


def test_a_negative_base_with_an_active_exponent_has_no_derivative_with_respect_to_the_exponent():
    x_bar, y_bar = tj.grad(lambda x, y: x**y, (0, 1))(-2.0, 3.0)
    assert x_bar == 12.0
    assert math.isnan(y_bar)


def test_pow_takes_no_modulus():
    with pytest.raises(TypeError, match="no third argument"):
        tj.grad(lambda x: pow(x, 2, 5))(3.0)


# Fan-out, accumulation, seeds.


def test_slot_used_twice_sums_adjoints():
    with tj.Tape() as tape:
        x = tape.input(3.0)
        y = x * x
        f = y + y * x + y - x / y
    f.backward()
    assert_allclose(x.grad, 4 * 3.0 + 3 * 9.0 + 1 / 9.0, rtol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 100])
def test_fan_out(n):
    assert tj.grad(lambda x: sum(x * k for k in range(n)))(1.5) == sum(range(n))


def test_the_classic_example():
    with tj.Tape() as tape:
        x = tape.input(3.0)
        f = x**3 + 2 * x**2
    f.backward()
    assert (f.value, x.grad) == (45.0, 39.0)


def test_gradients_accumulate_until_zero_grad():
    with tj.Tape() as tape:
        x, y = tape.input(2.0), tape.input(5.0)
        f = x * y
    assert (x.grad, y.grad) == (0.0, 0.0)
    f.backward()
    f.backward()
    assert (x.grad, y.grad) == (10.0, 4.0)
    f.backward(-0.5)
    assert (x.grad, y.grad) == (7.5, 3.0)
    tape.zero_grad()
    assert (x.grad, y.grad) == (0.0, 0.0)
    f.backward()
    assert (x.grad, y.grad) == (5.0, 2.0)


def test_backward_from_two_results_on_one_recording():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        f, g = x**2, x**3
    f.backward()
    g.backward()
    assert x.grad == 4.0 + 12.0


def test_backward_from_an_input_and_from_a_constant_power():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        one = x**0
    x.backward(3.0)
    one.backward()
    assert x.grad == 3.0


def test_inputs_made_later_join_the_gradient():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        f = x * x
        f.backward()
        y = tape.input(3.0)
        g = f * y
        g.backward()
    assert (x.grad, y.grad) == (4.0 + 12.0, 4.0)


def test_backward_inside_the_block_and_after():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        f = x * x
        f.backward()
        g = f * x
    g.backward()
    assert x.grad == 4.0 + 12.0


def test_only_inputs_keep_a_gradient():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        f = x * x
    f.backward()
    with pytest.raises(TapeError, match="only inputs keep a gradient"):
        f.grad  # noqa: B018


def test_array_inputs_and_scalars_on_one_tape():
    with tj.Tape() as tape:
        x = tape.input(np.array([1.0, 2.0, 3.0]))
        s = tape.input(2.0)
        y = tape.input([[4.0]])
        f = np.sum(x * x) * s + y[0, 0]
    f.backward()
    assert_array_equal(x.grad, [4.0, 8.0, 12.0])
    assert (s.grad, y.grad.tolist()) == (14.0, [[1.0]])
    tape.forward([np.zeros(3), 1.0, [[7.0]]])
    assert f.value == 7.0
    tape.forward([1.0, 0.0, 0.0, 3.0, -1.0])
    assert f.value == 2.0
    with pytest.raises(ShapeError, match="has 5 inputs, but 3 numbers were given"):
        tape.forward([1.0, 2.0, 3.0])


def test_array_backward_with_a_seed():
    with tj.Tape() as tape:
        x = tape.input(np.array([1.0, 2.0]))
        y = x * x
    y.backward([1.0, 0.5])
    assert_array_equal(x.grad, [2.0, 2.0])
    with pytest.raises(ShapeError, match=r"shape \(2,\) needs a seed"):
        y.backward()
    with pytest.raises(ShapeError, match=r"seed has shape \(3,\)"):
        y.backward(np.ones(3))


# Replays.


def test_forward_replays_and_values_read_the_new_numbers():
    with tj.Tape() as tape:
        x = tape.input(10.0)
        f = 2 * np.sin(x**3) ** 2
    for number in (10.0, 5.0, 3.0):
        tape.forward([number])
        tape.zero_grad()
        f.backward()
        assert x.value == number
        assert_allclose(f.value, 2 * math.sin(number**3) ** 2, rtol=1e-15)
        assert_allclose(x.grad, 6 * number**2 * math.sin(2 * number**3), rtol=1e-12)
    assert repr(f) == f"Variable({f.value!r})"
    assert f"{f:.3f}" == f"{f.value:.3f}"


def test_a_replay_that_would_branch_otherwise_is_refused_and_keeps_the_values():
    with tj.Tape() as tape:
        x = tape.input(3.0)
        f = x * x if x > 1.0 else -x
    with pytest.raises(
        BranchChangeError,
        match=r"greater\(%1 \(0.5\), %2 \(1\)\) was true when recorded, now false \(slot 3; test_variable.py:\d+",
    ):
        tape.forward([0.5])
    assert (x.value, f.value) == (3.0, 9.0)
    tape.forward([2.0])
    assert f.value == 4.0


CLOSED = [
    lambda x, y: x * y,
    lambda x, y: x + 1.0,
    lambda x, y: 2.0 / x,
    lambda x, y: -x,
    lambda x, y: x**2,
    lambda x, y: np.sin(x),
    lambda x, y: x > y,
    lambda x, y: abs(x),
    lambda x, y: round(x),
    lambda x, y: x + 12345.678,
    lambda x, y: np.where(x > 0.0, x, y),
    lambda x, y: np.array([x, y]) * 2.0,
    lambda x, y: bool(x),
]


@pytest.mark.parametrize("compute", CLOSED)
@pytest.mark.parametrize("replayed", [False, True])
def test_nothing_is_recorded_on_a_closed_or_replayed_tape(compute, replayed):
    with tj.Tape() as tape:
        x, y = tape.input(2.0), tape.input(3.0)
        f = x * y
        x + 1.0
        x > y  # noqa: B015
    if replayed:
        tape.forward([4.0, 5.0])
    before = tape.n_slots
    with pytest.raises(TapeError, match="was replayed at other inputs" if replayed else "is not being recorded"):
        compute(x, y)
    assert tape.n_slots == before
    f.backward()
    assert (x.grad, y.grad) == ((5.0, 4.0) if replayed else (3.0, 2.0))


def test_a_replayed_tape_is_not_reopened():
    """Its variables were computed with other numbers, so what would be recorded now would not fit the tape."""
    with tj.Tape() as tape:
        x = tape.input(2.0)
        x * x
    tape.forward([3.0])
    with pytest.raises(TapeError, match="was replayed"), tape:
        pass
    with tj.Tape() as tape:
        x = tape.input(2.0)
        truth = x > 1.0
        tape.forward([3.0])
        with pytest.raises(TapeError, match="was replayed"):
            x * x
        with pytest.raises(TapeError, match="was replayed"):
            bool(truth)
    with pytest.raises(TapeError, match="was replayed"):
        x * x


def test_a_closed_tape_can_be_opened_again():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        y = x * x
    with tape:
        z = y * x
    z.backward()
    assert x.grad == 12.0


# Long chains: no recursion anywhere.


def test_a_chain_of_a_million_operations():
    n = 1_000_000
    with tj.Tape() as tape:
        x = tape.input(1.0)
        y = x
        for _ in range(n // 2):
            y = y * 1.000001 + 1e-9
    y.backward()
    assert tape.n_slots > n
    assert_allclose(x.grad, 1.000001 ** (n // 2), rtol=1e-9)
    tape.forward([2.0])
    value = 2.0
    for _ in range(n // 2):
        value = value * 1.000001 + 1e-9
    assert y.value == value


def test_a_fan_in_of_many_operands():
    assert_array_equal(
        tj.grad(lambda x: sum(x[i] * x[i] for i in range(1000)))(np.arange(1000.0)), 2.0 * np.arange(1000.0)
    )


# Comparisons and decisions.

COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@pytest.mark.parametrize("compare", COMPARISONS)
@pytest.mark.parametrize("other", [1.0, 2.0, 3.0, 2, np.float64(2.0), np.int64(2), True, math.nan, math.inf])
def test_comparisons_with_plain_numbers(compare, other):
    with tj.Tape() as tape:
        x = tape.input(2.0)
        right, left = compare(x, other), compare(other, x)
        assert bool(right) is bool(compare(2.0, other))
        assert bool(left) is bool(compare(other, 2.0))
        assert right.dtype == bool
    assert repr(right) == f"Truth({compare(2.0, float(other))})"


@pytest.mark.parametrize("compare", COMPARISONS)
def test_comparisons_of_variables(compare):
    for a in (1.0, 2.0):
        with tj.Tape() as tape:
            assert bool(compare(tape.input(a), tape.input(2.0))) is compare(a, 2.0)


def test_a_comparison_alone_is_no_decision():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        truth = (x > 1.0) & ~(x > 5.0) | (x < 0.0) ^ (x == 7.0)
        y = np.where(truth, x, -x)
        assert len(tape.guards.slot) == 0
        assert truth
        assert len(tape.guards.slot) == 1
    assert y.value == 2.0


def test_a_number_in_a_condition_is_compared_with_zero():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        assert x and not (x - x)
        assert (x or 3.0) is x
        assert not (not x)
    tape.forward([1.0])
    with pytest.raises(BranchChangeError):
        tape.forward([0.0])


def test_chained_comparisons_min_max_and_sorted():
    with tj.Tape() as tape:
        x, y = tape.input(2.0), tape.input(1.0)
        assert 0.0 < y < x <= 2.0
        assert max(x, y, 0.5) is x and min(x, y) is y
        assert [v.value for v in sorted([x, y])] == [1.0, 2.0]
    assert tj.grad(lambda x: max(x * 2.0, 3.0))(2.0) == 2.0
    assert tj.grad(lambda x: max(x * 2.0, 3.0))(1.0) == 0.0


def test_comparison_with_something_else_is_python_s():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        assert (x == None) is False  # noqa: E711
        assert (x != "a") is True
        with pytest.raises(TypeError):
            x < "a"  # noqa: B015


def test_arithmetic_of_truth_values():
    value, gradient = tj.value_and_grad(lambda x: x * (x > 1.0) + (x < 5.0) * 2.0 - (x > 0.0))(3.0)
    assert (value, gradient) == (3.0 + 2.0 - 1.0, 1.0)


# What Variables are not.


def test_variables_are_not_hashable():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        for use in (hash, lambda v: {v}, lambda v: {v: 1}):
            with pytest.raises(TypeError, match="unhashable"):
                use(x)


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (float, r"turned into a plain float.*np.sin\(x\).*np.zeros\(n, like=x\).*tj.value"),
        (int, r"int\(x\).*would drop its derivative.*np.trunc\(x\)"),
        (complex, "active values are real"),
        (math.sin, r"write np.sin\(x\) instead of math.sin\(x\)"),
        (math.exp, "turned into a plain float"),
        (math.isnan, "turned into a plain float"),
        (lambda x: np.zeros(2).__setitem__(0, x), "turned into a plain float|float array"),
        (lambda x: np.array([x], dtype=float), "turned into a plain float"),
        (lambda x: [1, 2, 3][x], "used as an integer"),
        (range, "used as an integer"),
        (lambda x: int(x > 1.0), "would drop its derivative"),
    ],
)
def test_conversions_that_would_drop_the_derivative_are_refused(convert, message):
    with pytest.raises(PassiveConversionError, match=message) as caught:
        tj.grad(lambda x: convert(x) * x)(2.0)
    assert "test_variable.py" in str(caught.value) or "tj.value" in str(caught.value)


def test_the_plain_number_on_purpose():
    assert tj.grad(lambda x: x * tj.value(x))(3.0) == 3.0
    assert tj.grad(lambda x: x * math.sin(tj.value(x)))(3.0) == math.sin(3.0)


@pytest.mark.parametrize("other", [1j, np.complex128(1j)])
def test_complex_numbers_are_refused(other):
    for compute in (lambda x: x * other, lambda x: other * x, lambda x: x**other if False else x + other):
        with pytest.raises(TypeError, match="real"):
            tj.grad(compute)(2.0)


@pytest.mark.parametrize("other", ["a", None, object(), fractions.Fraction(1, 2), decimal.Decimal(2)])
def test_other_operands_are_refused(other):
    for compute in (lambda x: x * other, lambda x: other + x, lambda x: x - other, lambda x: x / other):
        with pytest.raises((TypeError, TapejitError)):
            tj.grad(compute)(2.0)


def test_lists_are_not_repeated():
    with pytest.raises(TypeError, match="can't multiply a list"):
        tj.grad(lambda x: np.floor(x) * [1.0, 2.0])(2.0)


def test_an_integer_too_large_for_a_float_is_refused_as_by_python():
    with pytest.raises(OverflowError):
        tj.grad(lambda x: x + 10**400)(2.0)


def test_values_of_two_unrelated_tapes_do_not_mix():
    with tj.Tape() as tape:
        x = tape.input(2.0)
    with tj.Tape() as other:
        y = other.input(3.0)
        for compute in (
            lambda: x * y,
            lambda: y + x,
            lambda: x < y,
            lambda: np.hypot(x, y),
            lambda: np.array([x, y]) * 2.0,
        ):
            with pytest.raises(TapeError, match="unrelated tapes.*tj.value|is not being recorded.*tj.value"):
                compute()
    assert (tape.n_slots, other.n_slots) == (2, 2)


def test_scalar_protocol_of_numpy():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        assert (x.shape, x.ndim, x.size, x.dtype) == ((), 0, 1, np.float64)
        assert x.item() is x and x.real is x and x.T is x and x.copy() is x and x.conjugate() is x
        assert x.astype(float) is x
        with pytest.raises(UnsupportedError, match="astype"):
            x.astype(int)
    assert np.shape(x) == ()


@pytest.mark.parametrize("bad", [1j, "a", None, [[1.0], [1.0, 2.0]], np.arange(3), np.array([True])])
def test_inputs_are_real_numbers(bad):
    with pytest.raises((ShapeError, ValueError)), tj.Tape() as tape:
        tape.input(bad)


def test_backward_from_a_tape_inside_a_transform_is_refused():
    """Its gradient is a plain number, so the outer derivative would be lost."""

    def f(x):
        with tj.Tape() as tape:
            a = tape.input(2.0)
            y = a * a * x
        y.backward()
        return a.grad * x

    with pytest.raises(TapeError, match="derivative would be lost.*tj.grad"):
        tj.grad(f)(3.0)
    assert f(3.0) == 36.0


def test_a_tape_inside_a_transform_that_reads_nothing_of_it_works():
    def f(x):
        with tj.Tape() as tape:
            a = tape.input(tj.value(x))
            y = a * a
        y.backward()
        return a.grad * x

    assert tj.grad(f)(3.0) == 6.0
