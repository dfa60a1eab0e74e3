"""Whole arrays in compiled code: every ufunc and operator of the op table on arrays, and a table of NumPy functions and methods.

Many expressions stand in one compiled function, since compiling is what takes time. The value must be that of the plain compiled function to
the last bit; derivatives are compared with those of the same operation on scalars, or with differences.
"""

import re

import numba
import numpy as np
import pytest
from numba import njit
from numba.core.registry import cpu_target
from numpy.testing import assert_allclose, assert_array_equal
from table import interior_points

import tapejit as tj
from tapejit.errors import BranchChangeError, TapejitError, UninitializedError
from tapejit.ops import OPS
from tapejit.recording.native.scalars import functions_of

STEP = 1e-4  # of fourth-order differences
DIFFERENCES = 2e-8  # relative to the largest derivative of an expression

rng = np.random.default_rng(20240917)
ARGUMENTS = {
    "x": rng.uniform(0.5, 1.5, 5),
    "y": rng.uniform(0.5, 1.5, 5),
    "s": 0.83,
    "M": rng.uniform(0.5, 1.5, (3, 4)),
    "F": np.asfortranarray(rng.uniform(0.5, 1.5, (3, 4))),
    "S": rng.uniform(0.5, 1.5, (3, 3)) + 3.0 * np.eye(3),
    "Z": rng.uniform(0.5, 1.5, (2, 3, 2)),
}
PLAIN = {
    "a": rng.uniform(0.5, 1.5, 5),
    "A": rng.uniform(0.5, 1.5, (3, 4)),
    "g": np.linspace(0.0, 2.0, 6),
    "k": np.array([2, 0, 1, 2]),
    "n": 3,
    "mask": np.array([True, False, True, True, False]),
}


@njit
def put(out, at, items):
    """A function of its own: compiled once for each kind of array, not for each expression."""
    for item in items.flat:
        out[at] = item
        at += 1
    return at


def function_of(expressions, names):
    """A compiled function whose result holds every element of every expression, and which expression an element is of."""
    lines, owner = [], []
    for expression in expressions:
        statements, _, expression_only = expression.rpartition("; ")
        namespace = {"np": np, **{name: np.array(value) for name, value in {**ARGUMENTS, **PLAIN}.items()}}
        with np.errstate(all="ignore"):
            exec(statements, namespace)
            shape = np.shape(eval(expression_only, namespace))
        lines += [part.strip() for part in statements.split("; ")] if statements else []
        lines += [f"t{len(lines)} = {expression_only}"]
        if shape:
            lines += [f"at = put(out, at, t{len(lines) - 1})"]
        else:
            lines += [f"out[at] = t{len(lines) - 1}", "at += 1"]
        owner += [expression] * int(np.prod(shape))
    body = "\n    ".join([f"out = np.empty({len(owner)})", "at = 0", *lines, "return out"])
    namespace = {"np": np, "put": put}
    exec(f"def f({', '.join(names)}):\n    {body}\n", namespace)
    return njit(namespace["f"]), owner


def names_in(expressions):
    used = set(re.findall(r"\w+", " ".join(expressions)))
    return [name for name in ARGUMENTS if name in used], [name for name in PLAIN if name in used]


def copied(args):
    return [arg.copy(order="K") if isinstance(arg, np.ndarray) else arg for arg in args]


def differences(f, args, which):
    """Jacobian (m, n) by one argument, by fourth-order differences."""
    columns = []
    for i in np.ndindex(np.shape(args[which])):
        results = []
        for k in (-2, -1, 1, 2):
            moved = copied(args)
            if isinstance(moved[which], float):
                moved[which] += k * STEP
            else:
                moved[which][i] += k * STEP
            results.append(f(*moved))
        columns.append((results[0] - 8.0 * results[1] + 8.0 * results[2] - results[3]) / (12.0 * STEP))
    return np.stack(columns, axis=1)


def check(expressions):
    """Value to the last bit, and derivatives by every argument."""
    active, passive = names_in(expressions)
    f, owner = function_of(expressions, [*active, *passive])
    args = [{**ARGUMENTS, **PLAIN}[name] for name in [*active, *passive]]
    value, _ = tj.vjp(f, tuple(range(len(active))))(*copied(args))
    expected = f(*copied(args))
    wrong = {name for name, one, two in zip(owner, value, expected, strict=True) if one.tobytes() != two.tobytes()}
    assert not wrong, wrong
    jacobians = tj.jacobian(f, tuple(range(len(active))))(*copied(args))
    for which, name in enumerate(active):
        jacobian = np.reshape(jacobians[which], (value.size, -1))
        reference = differences(f, args, which)
        scale = np.maximum(1.0, np.abs(reference).max(axis=1, keepdims=True))
        bad = {owner[i] for i in np.flatnonzero((np.abs(jacobian - reference) > DIFFERENCES * scale).any(axis=1))}
        assert not bad, f"derivative by {name} of {bad}"


# fmt: off
# One compiled function each group.
EXPRESSIONS = {
    "broadcasting": [
        "x + y * 2.0 - x ** 2 / y", "s * x + x * s", "np.hypot(x, s) + np.sin(s) ** y[0]", "F + M", "F * 2.0 + 1", "F.T - M.T * F.T", "Z + Z[0]",
        "x ** k[:1]", "x[:4] ** k", "x ** 7 + x ** -2 + x ** 0.5 + x ** n", "2 ** x + s ** x + x ** s", "a * x + x * a - a / x", "-x + +y",
        "np.power(M, F)", "x // 0.3 + x % 0.3", "(x < y) * x + (x >= s) * y", "x[(x > 0.7) & (y < 1.3)]", "x * k[0] + np.float32(2.0) * x",
        "np.add(x, True)",
    ],
    "in place": [
        "b = x.copy(); b += y; b *= 2.0; b -= s; b /= y; b **= 2; b", "c = M.copy(); c[:, 1] *= x[:3]; c -= x[:4]; c[0] = s; c",
        "d = x * 1.0; np.add(x, y, d); np.multiply(d, d, d); d", "l = np.zeros(5); l[k] = x[k]; l", "o = np.zeros(3); o.fill(s); o",
        "p = M.copy(); p.T[0] = x[0] * 3.0; p", "q = np.zeros(5, np.bool_); np.less(x, y, q); q * x", "r = S.copy(); np.fill_diagonal(r, 2.0); r",
    ],
    "allocation": [
        "b = np.zeros(3); b[0] = s; b", "b3 = np.zeros(2, dtype=np.int64); b3[0] = 4; b3 * s", "c = np.ones(3); c[1] *= s; c",
        "c2 = np.ones(2, dtype=float); c2 *= x[:2]; c2", "d = np.full((2, 3), 2.5); d[0, 0] = s; d", "d2 = np.full(3, 2); d2 * s",
        "np.full(3, s) + np.full((3,), s, dtype=np.float64)", "e2 = np.identity(2); e2[0, 1] = s; e2",
        "h = np.linspace(0.0, 1.0, 4); h[1] *= s; h", "np.linspace(s, x[0], 5)", "np.linspace(s, 2, 1)", "i = np.arange(3.0); i[1] *= s; i",
        "np.arange(s, x[0] + 3.0, s / 3.0)", "np.arange(4 * s)", "j = np.array([1.0, 2.0, 3.0]); j[1] = s; j", "np.array([[s, 1.0], [x[0], 2]])",
        "np.array((s, 1)) + np.array([True, False])", "np.asarray(x, dtype=np.float64) + np.asarray(x)", "l = np.zeros_like(M); l[0, 0] = s; l",
        "l2 = np.ones_like(A); l2[0, 1] = s; l2", "l3 = np.full_like(F, 3.0); l3[0, 2] = s; l3", "np.full_like(x, s)",
        "o = np.empty(3); o[:] = x[:3]; o", "o3 = np.empty((2, 2), x.dtype); o3[:] = s; o3", "p = np.copy(A); p[0, 0] = s; p",
        "p2 = A.copy(); p2 *= s; p2", "x.astype(np.float64) + x.astype('float64')", "np.zeros(0).size * s",
    ],
    "reductions": [
        "np.sum(x) + x.sum()", "np.sum(F) * F.sum()", "np.sum(M[:, ::2])", "np.sum(M, axis=0)", "M.sum(axis=1)", "np.prod(x) + M.prod()",
        "np.mean(x) + F.mean()", "np.std(x) + F.std()", "np.max(x) + x.max() + np.amax(M)", "np.cumsum(x) + x.cumsum()", "np.cumsum(M)",
        "np.cumprod(x) * x.cumprod()", "np.any(x > 1.0) * s + np.all(x) * s + x.any() * s", "sum(x) + max(x) - min(x)",
    ],
    "products": [
        "np.dot(x, y) + x.dot(y) + x @ y + np.vdot(x, y)", "M @ x[:4] + np.dot(M, M[1])", "M @ F.T", "np.dot(x[:0], y[:0]) + s",
    ],
    "linear algebra": [
        "np.linalg.solve(S, x[:3])", "np.linalg.det(S)", "np.linalg.norm(x) + np.linalg.norm(F)",
        "np.linalg.norm(x * 1e-200) * 1e200 + np.linalg.norm(x * 1e200) * 1e-200",
    ],
    "selection": [
        "np.where(x > 1.0, x, y)", "np.where(mask, x, a)", "np.where(s > 0.5, x, y)", "np.where(s > 0.5, s, x[0]) * x + s",
        "np.where(s > 0.5, 1.0, 2.0) * x", "np.where(s > 0.5, 1, 2) * x", "np.where(x > 1.0)[0] * s", "np.nonzero(x > 1.0)[0] * s",
        "np.clip(x, 0.8, 1.2) + x.clip(0.8, 1.2)", "x[mask]", "x[x > 1.0]", "x[k]", "M[k[:3]]", "np.sort(x)", "np.interp(x, g, g ** 2)",
        "np.interp(g, g * s, x[0] * g)", "np.interp(np.array([-1.0, 0.0, 0.4, 2.0, 3.0]) + 0.0 * s, g, g * s)",
        "np.searchsorted(g, s, side='right') * s", "np.round(x) * s + np.around(x + 0.01, 1) * s", "(s in x) * s", "isinstance(s, float) * s",
        "np.conj(x)",
    ],
    "structure": [
        "np.concatenate((x, y, a))", "np.concatenate((M, F), axis=1)", "np.stack((x, y), axis=1)", "np.vstack((x, a))", "np.column_stack((x, y))",
        "np.append(a, x)", "np.flip(x) + x[::-1]", "np.roll(x, 2)", "x.reshape(5, 1)", "M.reshape(-1) + np.ravel(M)", "np.diag(x)", "np.diag(M)",
        "np.diagflat(x[:2])", "np.expand_dims(x, 0)", "np.atleast_2d(x)", "np.ascontiguousarray(M.T)", "np.asfortranarray(M)", "np.delete(x, 1)",
        "Z[1, ..., 0] + Z[0, :, None][:, 0, 0]", "np.sum(np.sqrt(x).reshape(5, 1) * y)",
    ],
}

# What Numba itself takes long to compile, or what takes the same way as another expression.
LONG_TO_COMPILE = {
    "broadcasting": [
        "np.exp(M + x[:4]) * y[:4] - M ** 3", "M[:, ::2] * F[:, 1::2]", "Z * x[:2]", "Z[:, 1:, :] / Z[:, :1, :]", "A @ np.ones(4) * s + M[:, 0]",
        "np.maximum(Z, Z[:, :, ::-1])",
    ],
    "in place": [
        "e = np.zeros((3, 4)); e[:] = x[:4]; e[1:] += M[1:]; e", "h = x.copy(); h[1:] += h[:-1]; h",
        "i = x.copy(); i[mask] = s; i[~mask] *= 2.0; i", "j = np.zeros(5); j[mask] = x[mask]; j",
    ],
    "allocation": [
        "b2 = np.zeros((2, 3), np.float64); b2[1, :] = x[:3]; b2", "e = np.eye(3); e[1, 1] = s; e",
        "j3 = np.array([[1.0, 2.0], [3.0, 4.0]]); j3[0] = x[:2]; j3", "o2 = np.empty_like(M); o2[:] = x[:4]; o2",
        "np.zeros_like(x, dtype=np.float64) + np.ones_like(x) * s", "np.sum(F.copy()) + np.sum(np.copy(F)) + np.sum(F.astype(np.float64))",
    ],
    "reductions": [
        "np.sum(F, axis=-1)", "np.sum(Z, axis=1)", "np.sum(Z.T, 0)", "x.sum(axis=0)", "np.var(x) + M.var()", "np.min(x) + x.min() + np.amin(M)",
        "np.ptp(x)", "np.argmax(x) * s + x.argmin() * s", "np.argmax(M, axis=0) * s", "np.median(x) + np.median(x[:4])", "np.trace(S)",
        "np.diff(x)", "np.diff(M)", "np.ediff1d(x)", "np.average(x) + np.average(x, weights=y)",
        "np.trapezoid(x) + np.trapezoid(x, y) + np.trapezoid(x, dx=0.5)", "np.nansum(x) + np.nanmean(x) + np.nanmax(x) * np.nanmin(x)",
        "np.nanvar(x) + np.nanstd(x) + np.nanprod(x) + np.nanmedian(x)", "np.cov(x, y)",
    ],
    "products": [
        "x[:3] @ M", "np.dot(F, M.T)", "M.T.dot(F)", "a @ x + x @ a", "A @ M.T + M @ A.T", "A.T @ S", "np.outer(x, y)", "np.outer(x, a)",
        "np.kron(M, S)", "np.cross(x[:3], y[:3])", "np.convolve(x, y)", "np.convolve(a, x)", "np.correlate(x, y)", "np.vander(x, 3)",
    ],
    "linear algebra": [
        "np.linalg.solve(S, M)", "np.linalg.solve(S.T, A)", "np.linalg.solve(np.diag(a[:3]), x[:3])", "np.linalg.inv(S)",
        "np.sum(np.linalg.inv(S.T))", "np.linalg.det(S[::-1] * 1.0)", "np.linalg.slogdet(S)[1]", "np.linalg.cholesky(S @ S.T)",
        "np.linalg.norm(x, 1) + np.linalg.norm(x, 2) + np.linalg.norm(x, 3)", "np.linalg.norm(x, np.inf) + np.linalg.norm(x, -np.inf)",
    ],
    "selection": [
        "np.where(x > s, x, 0.0)", "np.where(x > 1.0, 2, y)", "np.where(M > 1.0, M, M[0])", "np.where(F > 1.0, F, 2 * F)",
        "np.clip(x, 0.8, y * 1.5)", "np.clip(a, x * 0.9, y + 1.0)", "np.select([x > 1.0, x > 0.7], [x, y], 0.0)", "x.take(k) + np.take(M, k)",
        "np.extract(mask, x)", "b = x.copy(); b.sort(); b", "x[np.argsort(x)]", "x[x.argsort(kind='mergesort')]", "np.partition(x, 2)",
        "np.unique(x)", "np.interp(s, g, g * s)", "np.interp(M, g, g ** 3)", "np.searchsorted(g, x) * s", "np.digitize(x, g) * s",
        "np.sinc(x) + np.sinc(x - x)", "np.nan_to_num(x)", "np.isclose(x, y) * s + np.allclose(x, x) * s + np.array_equal(x, y) * s",
    ],
    "structure": [
        "np.hstack((x, y))", "np.append(x, s)", "np.repeat(x, 2)", "F.ravel() + F.flatten()", "np.transpose(Z, (2, 0, 1))",
        "Z.transpose(1, 0, 2) + np.swapaxes(Z, 0, 1)", "np.broadcast_to(x, (2, 5)) * 1.0", "np.tril(S) + np.triu(S, 1)",
        "np.array_split(x, 2)[1]", "np.unwrap(x * 9.0)",
    ],
}
# fmt: on


@pytest.mark.parametrize("group", EXPRESSIONS)
def test_expressions(group):
    check([expression for expression in EXPRESSIONS[group] if is_known_to_numba(expression)])


@pytest.mark.slow
@pytest.mark.parametrize("group", LONG_TO_COMPILE)
def test_expressions_that_are_long_to_compile(group):
    check([expression for expression in LONG_TO_COMPILE[group] if is_known_to_numba(expression)])


@pytest.mark.slow
@pytest.mark.skipif(numba.version_info.short < (0, 62), reason="axes that older versions do not take")
def test_reductions_along_several_axes():
    check(["np.sum(Z, axis=(0, 2))", "np.sum(F, axis=(1, 0))", "np.cumsum(M, axis=0)", "np.cumsum(Z, axis=-2)"])


def is_known_to_numba(expression):
    """Whether this NumPy has the functions."""
    return all(hasattr(np, name) for name in re.findall(r"np\.(\w+)", expression))


# With NaN, infinities and signed zeros Numba's own choice of order and result: values only.
SPECIAL = "np.max(x) np.min(x) x.max() np.argmax(x)*1.0 np.argmin(x)*1.0 np.sort(x) np.median(x) np.sum(x) np.clip(x,0.5,1.0) min(x) max(x)".split()
SPECIAL_LONG_TO_COMPILE = (
    "np.max(x) np.min(x) x.max() np.ptp(x) np.argmax(x)*1.0 np.argmin(x)*1.0 np.sort(x) np.argsort(x)*1.0 np.median(x) np.nanmax(x) "
    "np.nanmin(x) np.nansum(x) np.nanmean(x) np.nanvar(x) np.nanmedian(x) np.nan_to_num(x) np.unique(x) np.clip(x,0.5,1.0) "
    "np.maximum(x,x[::-1]) np.fmin(x,x[::-1]) np.sum(x) np.cumsum(x) np.interp(x,g,g**2) np.searchsorted(g,x)*1.0 np.any(x)*1.0 "
    "np.where(x,x,1.0) min(x) max(x) np.partition(x,2) np.mean(x) np.var(x) np.sign(x) np.isnan(x)*1.0 np.round(x,1) "
    "np.nonzero(x)[0]*1.0 np.union1d(x,x) np.prod(x) np.cumprod(x)"
).split()


@pytest.mark.parametrize(
    "expressions", [SPECIAL, pytest.param(SPECIAL_LONG_TO_COMPILE, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_special_values(expressions):
    lines, at = [], 0
    for i, expression in enumerate(expressions):
        lines += [f"t{i} = np.asarray({expression})", f"out[{at}:{at} + t{i}.size] = t{i}.ravel()"]
        at += 12
    body = "\n    ".join([f"out = np.zeros({at})", *lines, "return out"])
    namespace = {"np": np}
    exec(f"def f(x, g):\n    {body}\n", namespace)
    f = njit(namespace["f"])
    nan, inf = np.nan, np.inf
    for x in (
        [1.0, nan, 0.5, 2.0],
        [nan, nan, 3.0],
        [inf, -inf, 1.0, 0.25],
        [0.0, -0.0, 1.0, -0.0, 0.0],
        [2.0],
        [nan],
        [1.0, 2.0, nan],
    ):
        x = np.resize(x, max(len(x), 3))
        value, _ = tj.vjp(f)(x, np.linspace(0.0, 2.0, 6))
        assert_array_equal(value, f(x, np.linspace(0.0, 2.0, 6)))


# The op table on arrays.


def ufuncs():
    context = cpu_target.typing_context
    context.refresh()
    for op in OPS:
        for function in functions_of(op):
            if isinstance(function, np.ufunc) and op.arity:
                kind = numba.float64[:]
                try:
                    callee = context.resolve_value_type(function)
                    if callee.get_call_type(context, (kind,) * op.arity, {}) is not None:
                        yield op, function
                except (numba.TypingError, ValueError):  # Numba does not know it
                    continue


UNARY = [(op, function) for op, function in ufuncs() if op.arity == 1]
BINARY = [(op, function) for op, function in ufuncs() if op.arity == 2]
SIZE = 6


def compiled(text, name="f"):
    namespace = {"np": np}
    exec(text, namespace)
    return njit(error_model="numpy")(namespace[name])


def assert_same_as_loop(whole, loop, *args, argnums, patterns):
    """The same primitives of the same numbers, so the same value and the same derivative.

    `whole` has each array expression for several patterns of operands: which of them are active.
    """
    value, pullback = tj.vjp(whole, argnums)(*args)
    expected, expected_pullback = tj.vjp(loop, argnums)(*args)
    assert_array_equal(value, whole(*args))
    seed = np.linspace(-1.0, 1.0, expected.size).reshape(expected.shape)
    for pattern, active in enumerate(patterns):
        assert_array_equal(value[pattern], expected)
        only = np.zeros(value.shape)
        only[pattern] = seed
        for which, (x_bar, expected_x_bar) in enumerate(zip(pullback(only), expected_pullback(seed), strict=True)):
            # A passive exponent has formulas of its own.
            assert_allclose(
                x_bar,
                expected_x_bar if which in active else 0.0 * x_bar,
                rtol=0.0 if len(active) == len(argnums) else 1e-14,
            )


def whole_and_loop(expressions, patterns, parameters):
    """Two functions: of arrays, and of one element after the other; `x` and `y` stand for row `i` of the operands."""
    whole = [
        f"    out[{p}, {i}] = {of_row(expression, i, pattern)}"
        for i, expression in enumerate(expressions)
        for p, pattern in enumerate(patterns)
    ]
    loop = [f"        out[{i}, j] = {of_row(expression, i, 'xy', ', j')}" for i, expression in enumerate(expressions)]
    n = len(expressions)
    return (
        compiled(
            f"def f({parameters}):\n    out = np.empty(({len(patterns)}, {n}, {SIZE}))\n"
            + "\n".join(whole)
            + "\n    return out\n"
        ),
        compiled(
            f"def f({parameters}):\n    out = np.empty(({n}, {SIZE}))\n    for j in range({SIZE}):\n"
            + "\n".join(loop)
            + "\n    return out\n"
        ),
    )


def of_row(expression, row, pattern, element=""):
    """The expression with the operands that a pattern names, ``x`` and ``y`` active, ``a`` and ``b`` the same numbers plain."""
    names = dict(zip("xy", pattern, strict=False))
    return re.sub(r"\b[xy]\b", lambda found: f"{names[found[0]]}[{row}{element}]", expression)


PATTERNS = {"xy": (0, 1), "xb": (0,), "ay": (1,)}  # operands, and which of x and y are active


def test_ufuncs_of_one_operand(rng):
    points = np.stack([interior_points(op, rng, SIZE)[0] for op, _ in UNARY])
    functions = whole_and_loop([f"np.{function.__name__}(x)" for _, function in UNARY], ["x"], "x")
    assert_same_as_loop(*functions, points, argnums=(0,), patterns=[(0,)])


def test_ufuncs_of_two_operands(rng):
    x, y = np.stack([np.stack(interior_points(op, rng, SIZE)) for op, _ in BINARY], axis=1)
    functions = whole_and_loop(
        [f"np.{function.__name__}(x, y)" for _, function in BINARY], list(PATTERNS), "x, y, a, b"
    )
    power = [i for i, (op, _) in enumerate(BINARY) if op.name == "power"]
    x[power] = np.abs(x[power])  # an active exponent gives NaN where a plain one does not
    assert_same_as_loop(*functions, x, y, x, y, argnums=(0, 1), patterns=list(PATTERNS.values()))


OPERATORS = "+ - * / // % ** < <= > >= == !=".split()


def test_operators(rng):
    x, y = rng.uniform(0.5, 2.0, (2, len(OPERATORS), SIZE))
    y[:, 2] = x[:, 2]
    functions = whole_and_loop([f"x {symbol} y" for symbol in OPERATORS], list(PATTERNS), "x, y, a, b")
    assert_same_as_loop(*functions, x, y, x, y, argnums=(0, 1), patterns=list(PATTERNS.values()))


# Conventions, decisions and refusals.


def test_equal_extremes_share_the_derivative():
    f = njit(lambda x: np.max(x) + 2.0 * np.min(x))
    assert_array_equal(tj.grad(f)(np.array([3.0, 3.0, 1.0, 1.0])), [0.5, 0.5, 1.0, 1.0])


def test_norm_and_deviation_at_the_origin():
    f = njit(lambda x: np.linalg.norm(x) + np.std(x))
    assert_array_equal(tj.grad(f)(np.zeros(3)), 0.0)


def test_determinant_of_a_singular_matrix():
    singular = np.array([[0.0, 1.0, 2.0], [0.0, 3.0, 4.0], [0.0, 5.0, 7.0]])
    adjugate_transposed = np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [-2.0, 0.0, 0.0]])
    assert_allclose(
        tj.grad(njit(lambda a: np.linalg.det(a)))(singular),
        adjugate_transposed * [1.0, 1.0, 1.0] * -1.0 * [-1.0, 1, 1],
        atol=1e-12,
    )


def test_singular_system_raises_as_the_plain_function():
    solve = njit(lambda a: np.sum(np.linalg.solve(a, np.ones(2))))
    for f in (solve, tj.grad(solve)):
        with pytest.raises(np.linalg.LinAlgError, match="singular"):
            f(np.ones((2, 2)))


def test_where_on_a_number_needs_no_guard():
    f = njit(lambda x: np.sum(np.where(x[0] > 1.0, x, 2.0 * x)))
    recording = tj.record(f, np.array([0.5, 3.0]), on_branch_change="raise")
    assert recording.value(np.array([1.5, 3.0])) == 4.5
    assert_array_equal(recording.grad(np.array([1.5, 3.0])), [1.0, 1.0])


@pytest.mark.parametrize(
    "expression",
    [
        "x[np.argmax(x)]",
        "np.sort(x)[0]",
        "np.interp(x[0], g, g ** 2)",
        "np.sum(x[x > 1.0])",
        "np.searchsorted(g, x)[0] * x[1]",
        "np.median(x)",
    ],
)
def test_decisions_are_guarded(expression):
    f = compiled(f"def f(x, g):\n    return {expression}\n")
    grid = np.linspace(0.0, 3.0, 7)
    recording = tj.record(f, np.array([0.6, 1.8, 1.2]), grid, argnums=0, on_branch_change="raise")
    near = np.array([0.61, 1.79, 1.21])
    assert_allclose(recording.value(near), f(near, grid), rtol=1e-15)
    with pytest.raises(BranchChangeError):
        recording.value(np.array([2.6, 0.3, 1.4]))


REFUSED = {
    "x.astype(np.int64)[0] * x[0]": "int64",
    "x.astype(np.float32)[0] * x[0]": "float32",
    "np.array([x[0]], dtype=np.int64)[0] * x[0]": "int64",
    "np.frombuffer(x)[0] * x[0]": "memory",
    "np.lib.stride_tricks.as_strided(x, (2,), (8,))[0]": "memory",
    "x.strides[0] * x[0]": "memory",
    "np.linalg.eigvalsh(x.reshape(2, 2))[0]": "eigvalsh",
    "np.percentile(x, 30.0)": "percentile",
}


@pytest.mark.parametrize("expression", REFUSED)
def test_refusals(expression):
    with pytest.raises(TapejitError, match=REFUSED[expression]):
        tj.grad(compiled(f"def f(x):\n    return {expression}\n"))(np.ones(4))


@pytest.mark.parametrize(
    "expression",
    ["np.empty(3, x.dtype)[1] * x[0]", "np.empty_like(x)[1] + x[0]", "np.sum(np.empty((2, 2), x.dtype).T) * x[0]"],
)
def test_reading_uninitialized_memory(expression):
    with pytest.raises(UninitializedError):
        tj.grad(compiled(f"def f(x):\n    return {expression}\n"))(np.ones(3))


def test_output_of_another_shape_raises():
    f = njit(lambda x, y: np.sum(np.add(x, y, np.zeros(2) * x[0])))
    with pytest.raises(ValueError, match="broadcast"):
        tj.grad(f)(np.ones(3), np.ones(3))


def test_plain_functions_compile_as_before():
    f = njit(
        lambda x: (
            np.sum(np.where(x > 0.5, x, 2.0)) + x.sum(axis=0) + np.max(np.sort(x)) + (x @ x) + np.empty_like(x).size
        )
    )
    x = np.array([0.25, 1.0, 2.0])
    assert f(x) == 5.0 + 3.25 + 2.0 + 5.0625 + 3
    assert f(x.astype(np.float32)) == 15.3125 + 3.0


@numba.njit
def of_no_dimension(x, rate):
    return x[()] * rate[()] + x[()]


def test_arrays_without_dimensions():
    x, rate = np.array(3.0), np.array(2.0)
    assert tj.grad(of_no_dimension)(x, rate) == 3.0
    assert tj.grad(of_no_dimension, argnums=1)(x, rate) == 3.0
    assert tj.record(of_no_dimension, x, rate).value_and_grad(4.0, args=(np.array(5.0),)) == (24.0, 6.0)
