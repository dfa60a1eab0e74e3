"""Every scalar operation in compiled code, from the op table: one compiled function a row holds all its names and patterns of operands.

The value must be that of the plain compiled function to the last bit, at special values too; the derivative, what the expressions of the
row say (`table.kernel_partial`).
"""

import builtins
import math
import operator
import signal

import numba
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from table import interior_points, kernel_partial, kernel_second
from tolerances import EPS, PARTIAL_RTOL, SECOND_RTOL, SUBNORMAL, scale, steepness

import tapejit as tj
from tapejit.errors import BranchChangeError
from tapejit.ops import BY_NAME, OPS
from tapejit.recording.native.scalars import functions_of

inf, nan = math.inf, math.nan

SPECIAL = [
    0.0,
    -0.0,
    0.5,
    1.0,
    -1.0,
    2.0,
    -2.0,
    3.0,
    1.5,
    0.25,
    -0.5,
    40.0,
    -40.0,
    1e-300,
    1e160,
    1e300,
    -1e300,
    inf,
    -inf,
    nan,
]
INTEGERS = [0, 1, 2, 3, -1, -2, 4, 7]

# The text of a call, where it is not ``function(x, y)``.
SYMBOLS = {
    operator.add: "{} + {}", operator.sub: "{} - {}", operator.mul: "{} * {}", operator.truediv: "{} / {}",
    operator.floordiv: "{} // {}", operator.mod: "{} % {}", operator.pow: "{} ** {}", operator.neg: "-{}", operator.pos: "+{}",
    operator.lt: "{} < {}", operator.le: "{} <= {}", operator.gt: "{} > {}", operator.ge: "{} >= {}",
    operator.eq: "{} == {}", operator.ne: "{} != {}",
}  # fmt: skip
IN_PLACE = {
    operator.iadd: "+=", operator.isub: "-=", operator.imul: "*=", operator.itruediv: "/=", operator.ifloordiv: "//=",
    operator.imod: "%=", operator.ipow: "**=",
}  # fmt: skip

# Patterns of two operands: names of the operands in the text below, and which of them are differentiated by.
PATTERNS = {"x, y": (0, 1), "x, b": (0,), "a, y": (1,), "x, n": (0,), "n, y": (1,), "x, x": (0,)}


def is_known_to_numba(function, arity):
    """Whether plain Numba compiles the function for float64; what it cannot do, an active version need not."""
    kind = numba.core.registry.cpu_target.typing_context.resolve_value_type(function)
    try:
        return kind is not None and kind.get_call_type(
            numba.core.registry.cpu_target.typing_context, (numba.float64,) * arity, {}
        )
    except numba.TypingError:
        return False


def calls_of(op):
    """The calls of a row: their text, and the pattern of operands."""
    numba.core.registry.cpu_target.typing_context.refresh()
    calls = []
    for function in functions_of(op):
        if not is_known_to_numba(function, op.arity):
            continue
        patterns = PATTERNS if op.arity == 2 else {"x": (0,)}
        for pattern in patterns:
            operands = pattern.split(", ")
            if function in IN_PLACE:
                text = f"z = 1.0 * {operands[0]}; z {IN_PLACE[function]} {operands[1]}"
            else:
                form = (
                    SYMBOLS.get(function)
                    or f"{module_of(function)}{function.__name__}({', '.join('{}' for _ in operands)})"
                )
                text = "z = " + form.format(*operands)
            calls.append((text, pattern))
    return calls


def module_of(function):
    module = {"math": "math.", "builtins": ""}.get(function.__module__, "np.")
    return "" if function in (builtins.pow, builtins.abs) else module


def compiled(calls):
    """A compiled function of points: x and y differentiated by, a and b the same numbers plain, n an integer."""
    lines = [
        "def f(p, q, integers):",
        f"    out = np.empty((p.shape[1], {len(calls)}))",
        "    for i in range(p.shape[1]):",
    ]
    lines += ["        x, y, a, b, n = p[0, i], p[1, i], q[0, i], q[1, i], integers[i]"]
    for k, (text, _) in enumerate(calls):
        lines += [f"        {text}", f"        out[i, {k}] = z"]
    namespace = {"np": np, "math": math}
    exec("\n".join([*lines, "    return out"]), namespace)
    return numba.njit(error_model="numpy")(namespace["f"])


def special_points(op):
    """Special values in all combinations, also for a row with one operand, where the second is not read."""
    x, y = np.meshgrid(SPECIAL, SPECIAL if op.arity == 2 else SPECIAL[:1])
    points = np.stack([x.ravel(), y.ravel()])
    integers = np.resize(INTEGERS, points.shape[1])
    # Numba raises for 0.0**-1, whatever the error model.
    return points, np.where(np.abs(points[0]) < 1e-100, np.abs(integers), integers)


def inner_points(op, rng, size):
    """Points inside the domain; the integer operand stands for either, so it is one that fits both where possible."""
    points = interior_points(op, rng, size)
    return np.stack([points[0], points[-1]]), np.resize([2, 3, 1, 5], size)


def operands_at(pattern, p, integers):
    """The numbers that a call gets."""
    numbers = {"x": p[0], "a": p[0], "y": p[1], "b": p[1], "n": integers.astype(float)}
    return [numbers[name] for name in pattern.split(", ")]


def expected_partials(op, pattern, p, integers):
    """What a call adds to the derivatives by x and by y, and rounding that it may have."""
    operands = operands_at(pattern, p, integers)
    names = pattern.split(", ")
    out = np.zeros_like(p)
    constant = op.name == "power" and names[1] in "bn"
    for which, name in enumerate(names):
        if name in "xy":
            row = BY_NAME["power_constant"] if constant else op
            out["xy".index(name)] += kernel_partial(row, which, *operands)
    return out


def assert_close(actual, expected, op, points, rtol, total):
    """Equal to rounding, NaN and infinities too."""
    places = list(zip(*(numbers.tolist() for numbers in points), strict=True))
    steep = np.array([steepness(op.name, place) for place in places])
    atol = np.array([rtol * scale(op.name, place, total) for place in places])
    with np.errstate(all="ignore"):
        finite = np.isfinite(expected)
        # What rounds infinitely underflows.
        allowed = np.nan_to_num((rtol + steep * EPS) * np.abs(expected), nan=0.0) + np.nan_to_num(atol) + SUBNORMAL
        wrong = np.where(finite, ~(np.abs(actual - expected) <= allowed), False)
        wrong |= ~finite & (actual != expected) & ~(np.isnan(actual) & np.isnan(expected))
    assert not wrong.any(), [(tuple(p[wrong][:3] for p in points), actual[wrong][:3], expected[wrong][:3])]


def frozen(array):
    """A read-only copy: recordings hold such, and one type of arguments is compiled once."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def assert_same_bits(actual, desired):
    is_nan = np.isnan(desired)
    assert_array_equal(np.isnan(actual), is_nan)
    assert_array_equal(actual[~is_nan].view(np.int64), desired[~is_nan].view(np.int64))


NUMERIC = [op for op in OPS if not op.boolean and calls_of(op)]
BOOLEAN = [op for op in OPS if op.boolean and calls_of(op)]


def test_the_rows_without_a_name_are_those_known():
    """A row that compiled code cannot call under any name is not tested here: these are all."""
    silent = {op.name for op in OPS if op.arity and not calls_of(op)}
    assert silent == {
        "cube", "power_constant", "length", "expit", "log_expit", "softplus", "logit", "xlogy", "ndtr", "digamma", "polygamma",
        "select", "chain",
    }  # fmt: skip


@pytest.mark.parametrize("op", NUMERIC, ids=lambda op: op.name)
def test_values_and_derivatives_of_a_row(op, rng):
    calls = calls_of(op)
    f = compiled(calls)
    inside, integers = inner_points(op, rng, 24)
    special, special_integers = special_points(op)
    p, n = np.hstack([inside, special]), frozen(np.concatenate([integers, special_integers]))
    plain = f(p, frozen(p), n)
    value, pullback = tj.vjp(f)(p, frozen(p), n)
    for k, (text, pattern) in enumerate(calls):
        assert_same_bits(value[:, k], plain[:, k])
        seed = np.zeros(value.shape)
        seed[:, k] = 1.0
        expected = expected_partials(op, pattern, p, n)
        operands = operands_at(pattern, p, n)
        try:
            for actual, wanted in zip(pullback(seed), expected, strict=True):
                assert_close(actual, wanted, op, operands, PARTIAL_RTOL, 1)
        except AssertionError as error:
            raise AssertionError(f"{text} with {pattern}") from error
    check_second_order(op, calls, f, inside[:, :6], integers[:6])
    check_replay(f, inside, integers, rng)


def check_second_order(op, calls, f, p, integers):
    """The Hessian of each call at interior points."""
    plain, integers = frozen(p), frozen(integers)
    for k, (_, pattern) in enumerate(calls):
        names = pattern.split(", ")
        if names == ["x", "x"]:
            continue
        hessian = tj.hessian(lambda p, k=k: np.sum(tj.native(f)(p, plain, integers)[:, k]))(p)
        operands = operands_at(pattern, p, integers)
        row = BY_NAME["power_constant"] if op.name == "power" and names[1] in "bn" else op
        for which, (i, j) in enumerate([(0, 0)] if op.arity == 1 else [(0, 0), (0, 1), (1, 1)]):
            if names[i] in "xy" and names[j] in "xy":
                actual = np.diagonal(hessian["xy".index(names[i]), :, "xy".index(names[j]), :])
                assert_close(actual, kernel_second(row, which, *operands), op, operands, SECOND_RTOL, 2)


def check_replay(f, p, integers, rng):
    """A recording replayed elsewhere gives what a new one gives there."""
    plain, integers = frozen(p), frozen(integers)
    recording = tj.record(f, p, plain, integers)
    moved = np.ascontiguousarray(p[:, rng.permutation(p.shape[1])])
    value, pullback = tj.vjp(f)(moved, plain, integers)
    y_bar = rng.standard_normal(value.shape)
    replayed, x_bar = recording.vjp(moved, y_bar)
    assert_allclose(replayed, value, rtol=16 * EPS, atol=SUBNORMAL)
    assert_allclose(x_bar, pullback(y_bar), rtol=1e-13, atol=SUBNORMAL)


# Truth values.


def compiled_decisions(calls):
    """Each comparison as a condition, as a number, and stored; a row of results each."""
    lines = [
        "def f(p, q, integers):",
        f"    out = np.zeros((p.shape[1], {3 * len(calls)}))",
        "    for i in range(p.shape[1]):",
    ]
    lines += ["        x, y, a, b, n = p[0, i], p[1, i], q[0, i], q[1, i], integers[i]"]
    for k, (text, _) in enumerate(calls):
        lines += [f"        {text}", f"        out[i, {3 * k}] = 3.0 * x if z else 2.0 * y"]
        lines += [f"        out[i, {3 * k + 1}] = z * y", f"        if {text.removeprefix('z = ')}:"]
        lines += [f"            out[i, {3 * k + 2}] = 1.0"]
    namespace = {"np": np, "math": math}
    exec("\n".join([*lines, "    return out"]), namespace)
    return numba.njit(namespace["f"])


@pytest.mark.parametrize("op", BOOLEAN, ids=lambda op: op.name)
def test_comparisons_decide_count_and_are_guarded(op):
    calls = calls_of(op)
    f = compiled_decisions(calls)
    p, n = special_points(op)
    p[1] = np.where(op.arity == 1, 0.75, p[1])
    n = frozen(n)
    value, pullback = tj.vjp(f)(p, frozen(p), n)
    assert_same_bits(value, f(p, frozen(p), n))
    holds = value[:, 2::3]
    for k in range(len(calls)):
        x_bar, y_bar = pullback(one_column(value.shape, 3 * k))
        assert_array_equal(x_bar, 3.0 * holds[:, k])
        assert_array_equal(y_bar, 2.0 - 2.0 * holds[:, k])
        assert_array_equal(pullback(one_column(value.shape, 3 * k + 1)), [np.zeros(len(n)), holds[:, k]])
    check_guards(f, p, n)


def one_column(shape, k):
    seed = np.zeros(shape)
    seed[:, k] = 1.0
    return seed


def check_guards(f, p, n):
    """Recorded at one point, a replay at another is right where all decisions are the same, and says so where not."""
    first = p[:, :1].copy()
    recording = tj.record(f, first, frozen(first), n[:1], on_branch_change="raise")
    plain = frozen(first)
    expected = tj.vjp(f)(first, plain, n[:1])[0]
    assert_same_bits(recording.value(first), expected)
    for i in range(0, p.shape[1], 5):
        point = p[:, i : i + 1].copy()
        fresh, pullback = tj.vjp(f)(point, plain, n[:1])
        seed = np.ones(fresh.shape)
        if decisions(fresh) == decisions(expected):
            replayed, x_bar = recording.vjp(point, seed)
            assert_same_bits(replayed, fresh)
            if np.isfinite(point).all():  # else the condition that counts as a number has the adjoint 0 x inf
                assert_array_equal(x_bar, pullback(seed))
        else:
            with pytest.raises(BranchChangeError):
                recording.value(point)


def decisions(value):
    return value[:, 2::3].tolist()


# Integers and Python's builtin functions.


@numba.njit
def to_integers(x):
    return np.array(
        [
            x[0] * int(x[1]),
            x[0] * round(x[1]),
            x[0] * math.floor(x[1]),
            x[0] * math.ceil(x[1]),
            x[0] * math.trunc(x[1]),
            x[0] * (int(x[1]) // 2 + int(x[1] > 0.5)),
        ]
    )


def test_integers_are_decisions():
    for number in (2.5, -2.5, 0.4999, -0.0, 3.0, 1e15 + 0.5, -7.9):
        x = np.array([1.7, number])
        value, matrix = to_integers(x), tj.jacobian(to_integers)(x)
        assert_same_bits(tj.vjp(to_integers)(x)[0], value)
        assert_array_equal(matrix[:, 0], [int(number), round(number), math.floor(number), math.ceil(number), math.trunc(number),
                                          int(number) // 2 + (number > 0.5)])  # fmt: skip
        assert_array_equal(matrix[:, 1], 0.0)
    recording = tj.record(to_integers, np.array([1.7, 2.25]), on_branch_change="raise")
    assert_array_equal(recording.jacobian(np.array([3.0, 2.35]))[:, 0], [2.0, 2.0, 2.0, 3.0, 2.0, 2.0])
    for number in (1.9, 3.0, -2.25, 2.75):
        with pytest.raises(BranchChangeError):
            recording.value(np.array([1.7, number]))


@numba.njit
def builtin_functions(x, y, a, n):
    quotient, remainder = divmod(x, y)
    back, rest = divmod(a, x)
    return np.array(
        [
            quotient * y,
            remainder,
            back * x,
            rest,
            max(x, y),
            min(x, y),
            max(x, a),
            max(a, x),
            min(x, n),
            max(x, y, a, n),
            min(n, a, y, x),
            abs(x),
            float(x) * y,
            x if bool(x) else y,
            y if not x else x * y,
            x.real * y + x.imag,
            x.conjugate() * x,
            float(n) * x,
            sum((x, y, a)),
            x if x else 2.0 * y,
        ]
    )


def test_builtin_functions():
    def jacobian(x, y):
        return np.stack(tj.jacobian(builtin_functions, (0, 1))(x, y, 1.25, 2), axis=1)

    for x in (3.75, -3.75, 0.5, 2.0):
        for y in (0.8, -1.3, 3.0):
            value = tj.vjp(builtin_functions, (0, 1))(x, y, 1.25, 2)[0]
            assert_same_bits(value, builtin_functions(x, y, 1.25, 2))
            step = 1e-6
            differences = [
                builtin_functions(x + dx, y + dy, 1.25, 2) - builtin_functions(x - dx, y - dy, 1.25, 2)
                for dx, dy in ((step, 0.0), (0.0, step))
            ]
            quotient = np.floor(x / y)
            matrix = jacobian(x, y)
            if x != 2.0:  # a kink of min(x, 2)
                assert_allclose(matrix, np.stack(differences, axis=1) / (2.0 * step), rtol=0.0, atol=1e-8)
            assert_array_equal(matrix[:4], [[0.0, quotient], [1.0, -quotient], [1.25 // x, 0.0], [-(1.25 // x), 0.0]])
    # Zero is a decision, and a kink of abs.
    assert_array_equal(tj.jacobian(decides_on_zero)(0.0), [0.0, 3.0, 0.0])


@numba.njit
def decides_on_zero(x):
    return np.array([2.0 * x if x else 5.0, 3.0 * x if not bool(x) else 1.0, abs(x)])


@numba.njit
def extremes(x):
    return np.array(
        [max(x[0], x[1]), max(x[1], x[0]), min(x[0], x[1]), min(x[1], x[0]), max(x[0], 1.0), min(1.0, x[0])]
    )


def test_minima_and_maxima_are_one_of_their_operands():
    for pair in [(1.0, 1.0), (0.0, -0.0), (-0.0, 0.0), (nan, 1.0), (1.0, nan), (inf, inf)]:
        x = np.array(pair)
        assert_same_bits(tj.vjp(extremes)(x)[0], extremes(x))
    # Of two equals the first, as Python does it.
    matrix = tj.jacobian(extremes)(np.array([1.0, 1.0]))
    assert_array_equal(matrix, [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])


def test_minima_and_maxima_choose_again_in_a_replay():
    recording = tj.record(extremes, np.array([0.5, 2.0]), on_branch_change="raise")
    for pair in [(0.5, 2.0), (2.0, 0.5), (-1.0, -3.0), (1.0, 1.0), (1.5, 0.25)]:
        x = np.array(pair)
        assert_same_bits(recording.value(x), extremes(x))
        assert_array_equal(recording.jacobian(x), tj.jacobian(extremes)(x))


# Operands of other types.


@numba.njit
def with_other_types(x, k8, u8, k32, u64, f32, flag):
    z = x * k8 + u8 - x / k32
    z += x * u64
    z -= f32 * x
    return z + x**k8 + flag * x + x * flag + (x if flag else -x) + x * (k8 > 1) + k32 // x + x % k8


def test_operands_of_other_types():
    args = np.int8(3), np.uint8(200), np.int32(-7), np.uint64(2**63 + 2**12), np.float32(0.1), True
    value, derivative = tj.value_and_grad(with_other_types)(1.3, *args)
    assert_same_bits(np.array([value]), np.array([with_other_types(1.3, *args)]))
    k8, _, k32, u64, f32, _ = (float(arg) for arg in args)
    assert derivative == pytest.approx(k8 - 1.0 / k32 + u64 - f32 + 3.0 * 1.3**2 + 4.0 + 1.0, rel=1e-15)


@numba.njit
def powers(x):
    return np.array([x**0, x**1, x**2, x**3, x**7, x**0.5, x**1.5, 2**x, 2.5**x, 0**x, 1**x])


@numba.njit
def negative_powers(x):
    return np.array([x**-1, x**-3, x**-0.5, x**x])


def test_powers():
    for x in (0.7, 2.0, 3.5):
        assert_same_bits(tj.vjp(powers)(x)[0], powers(x))
        exponents = np.array([0, 1, 2, 3, 7, 0.5, 1.5])
        by_exponent = [2**x * math.log(2), 2.5**x * math.log(2.5), 0.0, 0.0]
        expected = [*(exponents * x ** (exponents - 1.0)), *by_exponent]
        assert_allclose(tj.jacobian(powers)(x), expected, rtol=1e-14)
        assert_same_bits(tj.vjp(negative_powers)(x)[0], negative_powers(x))
        expected = [-(x**-2), -3.0 * x**-4, -0.5 * x**-1.5, x**x * (1.0 + math.log(x))]
        assert_allclose(tj.jacobian(negative_powers)(x), expected, rtol=1e-14)
    assert_array_equal(tj.jacobian(powers)(0.0)[:7], [0.0, 1.0, 0.0, 0.0, 0.0, inf, 0.0])
    assert_array_equal(tj.jacobian(powers)(-2.0)[:5], [0.0, 1.0, -4.0, 12.0, 448.0])
    assert_array_equal(tj.jacobian(negative_powers)(-2.0)[:2], [-0.25, -0.1875])


def test_a_chain_of_all_operations_equals_the_same_recorded_from_python():
    def f(x):
        y = x * 1.5 + 0.25
        for _ in range(3):
            y = np.sin(y) * np.exp(-y * y) + np.arctan2(y, 1.5 + x) - np.hypot(x, y) / (2.0 + np.cosh(0.1 * y))
            y -= np.log1p(y * y) ** 1.5 + abs(y - 0.2) % 0.7
        return y * np.tanh(x) - np.maximum(x, y) + np.copysign(x, y)

    for x in (0.3, 1.1, -0.8):
        native, python = tj.value_and_grad(numba.njit(f))(x), tj.value_and_grad(f)(x)
        assert_allclose(native, python, rtol=1e-13)
        assert tj.hessian(numba.njit(f))(x) == pytest.approx(tj.hessian(f)(x), rel=1e-11)


@numba.njit
def long_running(x, n):
    s = x
    for _ in range(n):
        s = s * 0.5 + x
    return s


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Python drops what is raised in a __del__
def test_a_signal_whose_handler_raises_stops_the_recording_whole():
    class Timeout(Exception):
        pass

    def handler(number, frame):
        raise Timeout

    expected = tj.grad(long_running)(1.0, 400000)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        n_stopped = 0
        for k in range(40):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + 2e-4 * k)
                gradient = tj.grad(long_running)(1.0, 400000)
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                assert gradient == expected
            except Timeout:
                n_stopped += 1
        assert n_stopped > 0
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert tj.grad(long_running)(1.0, 400000) == expected
