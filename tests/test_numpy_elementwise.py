"""Ufuncs on active operands against NumPy's and SciPy's own: every one of the op table, every mix of operands, every broadcast."""

import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal
from numpy_agreement import ULPS, agrees

import tapejit as tj
from tapejit.ops import OPS

# Points where every primitive is smooth and defined, one array an operand; others below by name.
ORDINARY = ([0.31, 0.52, 0.74], [0.42, 0.83, 0.25])
POINTS = {
    "arccosh": ([1.31, 2.52, 3.74],),
    "power": ([0.31, 1.52, 2.74], [1.42, -0.83, 2.25]),
    "float_power": ([0.31, 1.52, 2.74], [1.42, -0.83, 2.25]),
    "fmod": ([5.31, -4.52, 3.74], [1.42, 0.83, -1.25]),
    "remainder": ([5.31, -4.52, 3.74], [1.42, 0.83, -1.25]),
    "floor_divide": ([5.31, -4.52, 3.74], [1.42, 0.83, -1.25]),
}
UFUNCS = [
    pytest.param(op, getattr(module, name), id=f"{module.__name__}.{name}")
    for op in OPS
    for module, names in ((np, op.numpy), (scipy.special, op.scipy))
    for name in names
    if isinstance(getattr(module, name, None), np.ufunc)
    and name not in ("bitwise_and", "bitwise_or", "bitwise_xor", "invert")
]


def points(ufunc):
    return [np.array(x) for x in POINTS.get(ufunc.__name__, ORDINARY)[: ufunc.nin]]


def replay_tolerance(op):
    return max(op.ulp, 4) * np.finfo(float).eps


@pytest.mark.parametrize("op, ufunc", UFUNCS)
def test_ufunc_of_arrays(op, ufunc):
    agrees(ufunc, *points(ufunc), replay_tolerance=replay_tolerance(op), step=5e-5, moves=0.01)


@pytest.mark.parametrize("op, ufunc", UFUNCS)
def test_ufunc_of_scalars(op, ufunc):
    agrees(ufunc, *(x[0] for x in points(ufunc)), replay_tolerance=replay_tolerance(op), step=5e-5, moves=0.01)


@pytest.mark.parametrize("op, ufunc", UFUNCS)
def test_ufunc_writes_into_out(op, ufunc):
    def f(*operands):
        out = np.zeros_like(operands[0]) if isinstance(operands[0], tj.Array) else np.zeros(3)
        result = ufunc(*operands, out=out, casting="unsafe")
        assert result is out
        return out

    agrees(f, *points(ufunc), replay_tolerance=replay_tolerance(op), step=5e-5, moves=0.01)


BINARY = [
    np.add,
    np.subtract,
    np.multiply,
    np.divide,
    np.power,
    np.arctan2,
    np.hypot,
    np.maximum,
    np.logaddexp,
    np.less,
    np.fmod,
]
BINARY_OPS = [pytest.param(ufunc, id=ufunc.__name__) for ufunc in BINARY]


@pytest.mark.parametrize("ufunc", BINARY_OPS)
@pytest.mark.parametrize(
    "shapes",
    [
        ((), ()),
        ((3,), ()),
        ((), (3,)),
        ((3,), (3,)),
        ((2, 3), (3,)),
        ((2, 1), (1, 3)),
        ((3,), (2, 1)),
        ((1,), (3,)),
        ((1,), (1,)),
        ((1, 1), (1,)),
        ((1,), ()),
        ((0,), (0,)),
        ((2, 0), (1,)),
        ((0,), ()),
        ((2, 3, 2), (3, 1)),
    ],
    ids=str,
)
def test_broadcasting(ufunc, shapes, rng):
    # Numbers that keep their distance, from each other and from kinks.
    x, y = (
        1.2 + start + 0.07 * rng.permutation(int(np.prod(shape))).reshape(shape)
        for start, shape in zip((0.0, 0.035), shapes, strict=True)
    )
    agrees(ufunc, *(z[()] if z.ndim == 0 else z for z in (x, y)), replay_tolerance=ULPS, moves=0.001)


PASSIVE = {
    "ndarray": np.array([1.5, 2.5, 0.5]),
    "column": np.array([[1.5], [2.5]]),
    "reversed": np.array([1.5, 2.5, 0.5])[::-1],
    "strided": np.arange(1.0, 7.0)[::2],
    "transposed": np.arange(1.0, 7.0).reshape(3, 2).T,
    "fortran": np.asfortranarray(np.arange(1.0, 7.0).reshape(2, 3)),
    "broadcast": np.broadcast_to(np.array(1.5), (2, 3)),
    "0-d": np.array(1.5),
    "one": np.array([1.5]),
    "int": np.array([1, 2, 3]),
    "int8": np.array([1, 2, 3], dtype=np.int8),
    "uint64": np.array([1, 2, 3], dtype=np.uint64),
    "float32": np.array([1.5, 2.1, 0.3], dtype=np.float32),
    "bool": np.array([True, True, True]),
    "list": [1.5, 2.5, 0.5],
    "nested list": [[1, 2, 3], [4, 5, 6.5]],
    "tuple": (1, 2, 3),
    "float": 1.5,
    "python int": 2,
    "python bool": True,
    "float64": np.float64(1.5),
    "np.float32": np.float32(1.1),
    "np.int64": np.int64(2),
    "np.bool": np.bool_(True),
    "empty": np.zeros((0, 3)),
    "read-only": np.frombuffer(np.array([1.5, 2.5, 0.5]).tobytes()),
}
OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    "%": lambda a, b: a % b,
    "//": lambda a, b: a // b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("passive", PASSIVE.values(), ids=PASSIVE)
def test_active_array_with_passive_operand(operator, passive):
    x = np.array([1.31, 2.12, 3.23])
    with np.errstate(divide="ignore", invalid="ignore"):
        agrees(lambda x: operator(x, passive), x, moves=1e-3, replay_tolerance=ULPS)
        agrees(lambda x: operator(passive, x), x, moves=1e-3, replay_tolerance=ULPS)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("name", PASSIVE)
def test_active_scalar_with_passive_operand(operator, name):
    passive = PASSIVE[name]
    if isinstance(passive, (list, tuple)) and operator(2, 3) == 6:
        with tj.Tape() as tape:
            for x in (tape.input(2.0), np.floor(tape.input(2.0))):
                for refused in (lambda x=x: x * passive, lambda x=x: passive * x):
                    with pytest.raises(TypeError, match="can't multiply a (list|tuple) by an active value"):
                        refused()
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        agrees(lambda x: operator(x, passive), 1.31, moves=1e-3, replay_tolerance=ULPS)
        agrees(lambda x: operator(passive, x), 1.31, moves=1e-3, replay_tolerance=ULPS)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_active_scalar_with_active_array(operator):
    agrees(lambda s, x: operator(s, x), 1.31, [1.1, 2.3, 0.7], moves=1e-3, replay_tolerance=ULPS)
    agrees(lambda s, x: operator(x, s), 1.31, [1.1, 2.3, 0.7], moves=1e-3, replay_tolerance=ULPS)


@pytest.mark.parametrize(
    "exponent", [0, 1, 2, 3, 4, 7, -1, -2, 0.5, -0.5, 1.5, 2.0, True, np.int8(3), np.float32(2.5)], ids=repr
)
def test_powers_with_a_plain_exponent(exponent):
    agrees(lambda x: x**exponent, [0.5, 1.5, 2.5], replay_tolerance=ULPS)
    agrees(lambda x: np.power(x, exponent), [0.5, 1.5, 2.5], replay_tolerance=ULPS)
    agrees(lambda x: x**exponent, 1.5, tolerance=ULPS)
    if float(exponent).is_integer():
        agrees(lambda x: x**exponent, [-0.5, -1.5, 2.5], replay_tolerance=ULPS)


def test_powers_with_an_array_of_exponents():
    agrees(lambda x: x ** np.array([0, 1, 2, 3]), [-0.5, -1.5, 2.5, 1.2], replay_tolerance=ULPS)
    agrees(lambda x: x ** [2.0, 0.5], [1.5, 2.5], replay_tolerance=ULPS)
    agrees(lambda x: 2**x, [1.5, 2.5], replay_tolerance=ULPS)
    agrees(lambda x: np.array([2, 3]) ** x, [1.5, 2.5], replay_tolerance=ULPS)


def test_a_power_of_one_does_not_alias_its_operand():
    def f(x):
        y = x**1
        y[0] = 5.0
        return x + y

    agrees(f, [1.5, 2.5])


@pytest.mark.parametrize(
    "f", [lambda x: -x, lambda x: +x, abs, lambda x: x.conj(), np.conj, lambda x: x.real, np.real], ids=range(7)
)
@pytest.mark.parametrize("x", [[1.5, -2.5], [], [[1.0, -2.0]], 1.5], ids=str)
def test_unary_operators(f, x):
    agrees(f, x)


@pytest.mark.parametrize(
    "f",
    [
        lambda x, y: np.divmod(x, y),
        lambda x, y: divmod(x, y),
        lambda x, y: np.modf(x),
        lambda x, y: divmod(x, 0.7),
        lambda x, y: divmod(7.1, x),
        lambda x, y: np.true_divide(x, y),
        lambda x, y: np.multiply.outer(x, y),
        lambda x, y: np.add.outer(x, [1.0, 2.0]),
        lambda x, y: np.subtract.outer([1.0, 2.0], x),
        lambda x, y: np.fabs(x) + np.absolute(y),
    ],
    ids=range(10),
)
def test_ufuncs_of_several_results_and_outer(f):
    agrees(f, [1.31, 2.52], [0.4, 0.7], moves=1e-3, tolerance=ULPS)


def test_results_of_divmod_are_written_into_out():
    def f(x):
        whole, rest = np.zeros_like(x), np.zeros_like(x)
        np.divmod(x, 0.7, out=(whole, rest))
        return whole + 10 * rest

    agrees(f, [1.31, 2.52], moves=1e-3)


def test_out_may_be_active_where_the_operands_are_not():
    def f(x):
        y = x * 2.0
        np.add([1.0, 2.0], 3.0, out=y)
        return x + y

    agrees(f, [1.5, 2.5])


def test_out_broadcasts_and_overlaps():
    def f(x):
        y = np.zeros((2, 3), like=x) if isinstance(x, tj.Array) else np.zeros((2, 3))
        np.multiply(x, 2.0, out=y)
        np.add(y[:, :-1], y[:, 1:], out=y[:, 1:])
        return y

    agrees(f, [1.5, 2.5, 4.5])


# Booleans.


@pytest.mark.parametrize(
    "f",
    [
        lambda x, m: (x > 2) & m,
        lambda x, m: m | (x > 2),
        lambda x, m: m ^ (x > 2),
        lambda x, m: ~(x > 2),
        lambda x, m: (x > 2) + (x < 3),
        lambda x, m: (x > 2) * m,
        lambda x, m: np.maximum(m, x > 2),
        lambda x, m: np.minimum(x < 3, x > 2),
        lambda x, m: (x > 2) * 2.0,
        lambda x, m: (x > 2) * x,
        lambda x, m: x[(x > 2) & m],
        lambda x, m: x[~(x > 2)],
        lambda x, m: np.sum(x > 2),
        lambda x, m: np.sum((x > 2)[None], axis=0) + np.sum((x > 1)[None], axis=0),
        lambda x, m: np.mean(x > 2),
        lambda x, m: np.cumsum(x > 2),
        lambda x, m: np.prod(x > 1),
        lambda x, m: np.where(m, x > 2, x > 3),
        lambda x, m: np.where(x > 2, m, False),
        lambda x, m: np.concatenate([x > 2, m]),
        lambda x, m: np.concatenate([x > 2, [2.5]]),
        lambda x, m: np.logical_and(x, m),
        lambda x, m: np.logical_not(x),
        lambda x, m: np.zeros_like(x > 2),
        lambda x, m: (x > 2).astype(float) + x,
        lambda x, m: x[np.where(m, x > 2, x > 3)],
        lambda x, m: np.diff(x > 2),
        lambda x, m: np.max(x > 2),
        lambda x, m: np.any(x),
        lambda x, m: np.all(x[:1]),
        lambda x, m: np.any(x[None], axis=0),
        lambda x, m: (x > 2).any(),
        lambda x, m: (x > 0).all(),
    ],
    ids=range(33),
)
def test_booleans(f):
    m = np.array([True, False, True, True])
    agrees(lambda x: f(x, m), [1.5, 2.5, 3.5, 4.5])


def test_a_mask_takes_booleans_in_place():
    def f(x):
        mask = x > 2
        mask[0] = True
        mask |= x > 4
        mask &= np.array([True, True, False, True])
        mask[1:2] = x[1:2]
        return np.where(mask, x, 0.0), mask

    agrees(f, [1.5, 2.5, 3.5, 4.5])


def test_arithmetic_that_numpy_refuses_of_booleans_is_refused():
    with tj.Tape() as tape:
        x = tape.input(np.array([1.0, 2.0]))
        for refused in (
            lambda: (x > 1) - (x > 0),
            lambda: ~x,
            lambda: x & x,
            lambda: (x > 1) & 1,
            lambda: (x > 1).__iadd__(x),
        ):
            with pytest.raises(TypeError):
                refused()


def test_a_users_ufunc_with_a_name_of_numpys_is_not_taken_for_it():
    import numba

    @numba.vectorize(["float64(float64)"])
    def cbrt(x):
        return x + 1.0

    for f in (lambda x: np.sum(cbrt(x)), lambda x: cbrt(x[0])):
        with pytest.raises(tj.errors.UnsupportedError, match="cbrt is not differentiated"):
            tj.grad(f)(np.array([2.0]))


def test_values_outside_the_domain_are_numpys():
    x = np.array([-1.0, 0.0, 2.0, np.inf, -np.inf, np.nan])
    for ufunc in (np.sqrt, np.log, np.arcsin, np.arccosh, np.reciprocal, np.log1p, np.exp, np.sign, np.cbrt):
        with np.errstate(all="ignore"):
            expected = ufunc(x)
            value, pullback = tj.vjp(ufunc)(x)
            replayed = tj.record(ufunc, np.full(6, 1.5)).value(x)
        assert_array_equal(value, expected)
        assert_allclose(replayed, expected, rtol=1e-15)
        assert pullback(np.zeros(6)).tolist() == [0.0] * 6


@pytest.fixture
def rng():
    return np.random.default_rng(20)
