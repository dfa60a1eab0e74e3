"""Sums, means, extrema, norms, scans, products, choices: values, shapes and derivatives against NumPy's own."""

import numpy as np
import pytest
from numpy_agreement import ULPS, agrees

import tapejit as tj

RNG = np.random.default_rng(5)
X = (RNG.permutation(np.linspace(-1.3, 2.1, 24)) + RNG.uniform(-0.03, 0.03, 24)).reshape(
    2, 3, 4
)  # all apart from each other, and from 0
MASK = RNG.uniform(size=X.shape) < 0.6
MASK[:, :, 0] = True

# Where an order decides, moves are small enough to keep it.
REDUCTIONS = {
    "sum": np.sum,
    "prod": np.prod,
    "mean": np.mean,
    "var": np.var,
    "std": np.std,
    "max": np.max,
    "amax": np.amax,
    "min": np.min,
    "amin": np.amin,
    "nanmax": np.nanmax,
    "nanmin": np.nanmin,
    "ptp": np.ptp,
    "median": np.median,
    "average": np.average,
    "norm": np.linalg.norm,
    "any": lambda x, **kwargs: np.any(x > 1.0, **kwargs),
    "all": lambda x, **kwargs: np.all(x > -1.0, **kwargs),
}
AXES = [None, 0, 1, 2, -1, (0, 2), (1, 0, 2), (), (-1, 0)]
each_reduction = pytest.mark.parametrize("f", REDUCTIONS.values(), ids=REDUCTIONS)


@each_reduction
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
def test_reduction(f, axis, keepdims):
    if f is np.linalg.norm and isinstance(axis, tuple) and len(axis) not in (1, 2):
        axis = (0, 2)  # NumPy has norms over one axis, two, or all
    if axis == () and f in (np.median, np.average):
        axis = (1, 2)  # NumPy has no answer
    agrees(lambda x: f(x, axis=axis, keepdims=keepdims), X, tolerance=3 * ULPS, moves=1e-3)


METHODS = {
    "sum": lambda x: x.sum(),
    "sum axis": lambda x: x.sum(0),
    "sum keepdims": lambda x: x.sum(axis=(0, 1), keepdims=True),
    "mean": lambda x: x.mean(axis=-1),
    "prod": lambda x: x.prod(1),
    "var": lambda x: x.var(ddof=1),
    "std": lambda x: x.std(axis=0),
    "max": lambda x: x.max(),
    "max axis": lambda x: x.max(axis=1),
    "min": lambda x: x.min(0),
    "cumsum": lambda x: x.cumsum(),
    "cumsum axis": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(axis=0),
    "dot": lambda x: x[0].dot(x[1].T),
    "clip": lambda x: x.clip(-0.5, 0.51),
    "clip min": lambda x: x.clip(min=0.011),
    "round": lambda x: x.round(),
    "argmax": lambda x: x.argmax(),
    "argmin": lambda x: x.argmin(axis=2),
    "argsort": lambda x: x.argsort(axis=1),
    "nonzero": lambda x: x.nonzero(),
    "searchsorted": lambda x: np.sort(x, axis=None).searchsorted(0.3),
    "any": lambda x: (x > 0).any(axis=0),
    "all": lambda x: (x > 0).all(),
    "where sum": lambda x: np.sum(x, where=MASK),
    "where sum axis": lambda x: x.sum(axis=1, where=MASK),
    "where mean": lambda x: np.mean(x, axis=2, where=MASK),
    "where var": lambda x: np.var(x, axis=(1, 2), where=MASK),
    "where std": lambda x: np.std(x, where=MASK, ddof=1),
    "where max": lambda x: np.max(x, axis=2, where=MASK, initial=-5.0),
    "where prod": lambda x: np.prod(x, axis=0, where=MASK),
    "where any": lambda x: np.any(x > 1, axis=0, where=MASK),
    "where all": lambda x: np.all(x > 0, axis=0, where=MASK),
    "where broadcast": lambda x: np.sum(x, axis=0, where=np.array([True, False, True, True])),
    "initial sum": lambda x: np.sum(x, axis=0, initial=2.0),
    "initial prod": lambda x: np.prod(x, initial=2.0),
    "initial max": lambda x: np.max(x, axis=1, initial=0.21, keepdims=True),
    "initial min": lambda x: np.min(x, initial=-9.0),
    "initial active": lambda x: np.sum(x, axis=0, initial=x[0, 0, 0]),
    "dtype": lambda x: np.sum(x, dtype=float),
    "var mean": lambda x: np.var(x, axis=0, mean=np.mean(x, axis=0, keepdims=True)),
    "average weights": lambda x: np.average(x, weights=np.exp(x)),
    "average weights axis": lambda x: np.average(x, axis=1, weights=[1.0, 2.0, 3.0]),
    "average active weights": lambda x: np.average(np.arange(12.0).reshape(3, 4), axis=0, weights=np.exp(x[0])),
    "average returned": lambda x: np.average(x, axis=1, weights=np.exp(x), returned=True),
    "average returned plain": lambda x: np.average(x, axis=1, returned=True),
    "ufunc reduce": lambda x: np.add.reduce(x),
    "ufunc reduce axis": lambda x: np.multiply.reduce(x, axis=(0, 1)),
    "maximum.reduce": lambda x: np.maximum.reduce(x, axis=None, keepdims=True),
    "minimum.reduce": lambda x: np.minimum.reduce(x),
    "logaddexp.reduce": lambda x: np.logaddexp.reduce(x, axis=2),
    "logaddexp2.reduce": lambda x: np.logaddexp2.reduce(x, axis=1),
    "hypot.reduce": lambda x: np.hypot.reduce(x, axis=2),
    "logical_or.reduce": lambda x: np.logical_or.reduce(x > 1),
    "bitwise_and.reduce": lambda x: np.bitwise_and.reduce(x > 1, axis=2),
    "logical_xor.reduce": lambda x: np.logical_xor.reduce(x > 1, axis=2),
    "add.accumulate": lambda x: np.add.accumulate(x, axis=1),
    "maximum.accumulate": lambda x: np.maximum.accumulate(x, axis=2),
    "subtract.accumulate": lambda x: np.subtract.accumulate(x),
    "multiply.accumulate": lambda x: np.multiply.accumulate(x[::-1], axis=2),
    "cumsum of a view": lambda x: np.cumsum(x.T[::-1], axis=1),
    "cumsum of one": lambda x: np.cumsum(x[:1], axis=0),
    "diff": lambda x: np.diff(x),
    "diff 2": lambda x: np.diff(x, n=2, axis=1),
    "diff 0": lambda x: np.diff(x, n=0) * 2.0,
    "diff ends": lambda x: np.diff(x, axis=1, prepend=0.0, append=x[:, :1]),
    "diff scalar end": lambda x: np.diff(x, append=x[0, 0, 0]),
    "ediff1d": lambda x: np.ediff1d(x),
    "ediff1d ends": lambda x: np.ediff1d(x, to_begin=0.5, to_end=x[0, 0, :2]),
    "trapezoid": lambda x: np.trapezoid(x, axis=1),
    "trapezoid axis 0": lambda x: np.trapezoid(x, axis=0, dx=0.3),
    "trapezoid x": lambda x: np.trapezoid(x, [0.0, 0.5, 2.0], axis=1),
    "trapezoid active x": lambda x: np.trapezoid(np.arange(4.0), x),
    "trapezoid both": lambda x: np.trapezoid(x, np.exp(x), axis=0),
}


@pytest.mark.parametrize("f", METHODS.values(), ids=METHODS)
def test_reduction_in_all_its_forms(f):
    agrees(f, X, tolerance=3 * ULPS, moves=1e-3)


EMPTY = {
    "sum": lambda x: np.sum(x, axis=0),
    "sum all": lambda x: np.sum(x),
    "sum of other axis": lambda x: np.sum(x, axis=1),
    "prod": lambda x: np.prod(x, axis=0),
    "any": lambda x: np.any(x > 0, axis=0),
    "all": lambda x: np.all(x > 0),
    "max of other axis": lambda x: np.max(x, axis=1),
    "max initial": lambda x: np.max(x, axis=0, initial=2.0),
    "max initial keepdims": lambda x: np.max(x, axis=0, initial=2.0, keepdims=True),
    "min initial": lambda x: np.min(x, initial=2.0),
    "cumsum": lambda x: np.cumsum(x, axis=0),
    "cumsum flat": lambda x: np.cumsum(x),
    "norm": lambda x: np.linalg.norm(x),
    "dot": lambda x: np.dot(x.T, x),
    "dot flat": lambda x: np.dot(x.ravel(), x.ravel()),
    "matmul": lambda x: x @ np.ones((3, 2)),
    "outer": lambda x: np.outer(x, [1.0, 2.0]),
    "inner": lambda x: np.inner(x, x),
    "tensordot": lambda x: np.tensordot(x, x, axes=((0,), (0,))),
    "where": lambda x: np.where(x > 0, x, 1.0),
    "clip": lambda x: np.clip(x, 0, 1),
    "argsort": lambda x: np.argsort(x, axis=0),
    "sort": lambda x: np.sort(x, axis=1),
    "nonzero": lambda x: np.nonzero(x),
    "argmax of other axis": lambda x: np.argmax(x, axis=1),
    "sort flat": lambda x: np.sort(x, axis=None),
    "diff": lambda x: np.diff(x, axis=0),
    "nan_to_num": lambda x: np.nan_to_num(x),
    "exp": lambda x: np.exp(x) + x**2,
}


@pytest.mark.parametrize("f", EMPTY.values(), ids=EMPTY)
def test_reduction_of_nothing(f):
    agrees(f, np.zeros((0, 3)))


def test_means_of_nothing_are_nan():
    for f in (np.mean, np.var, np.std):
        with np.errstate(invalid="ignore"):
            assert np.isnan(tj.record(f, np.zeros(0)).value(np.zeros(0)))


@pytest.mark.parametrize("f", [np.max, np.min, np.argmax, np.argmin, np.ptp], ids=lambda f: f.__name__)
def test_extremum_of_nothing_is_an_error(f):
    with pytest.raises(ValueError, match="zero-size|empty"):
        tj.record(f, np.zeros(0))


@pytest.mark.parametrize("f", REDUCTIONS.values(), ids=REDUCTIONS)
def test_reduction_of_a_scalar_and_of_one_element(f):
    agrees(f, [0.7])
    agrees(f, [[0.7]])
    if f is not np.average:
        agrees(lambda x: f(x), 0.7)


@pytest.mark.parametrize("f", [f for name, f in REDUCTIONS.items() if name not in ("any", "all", "norm", "average")])
def test_reduction_writes_into_out(f):
    def into(x):
        out = np.zeros_like(x[0])
        assert f(x, axis=0, out=out) is out
        also = np.zeros_like(x[0])
        f(x, 0, None, also) if f in (np.sum, np.prod, np.mean, np.var, np.std) else f(x, 0, also)
        return out + also

    agrees(into, X, tolerance=3 * ULPS, moves=1e-3)


def test_cumsum_and_dot_write_into_out():
    def f(x):
        a, b, c = np.zeros_like(x), np.zeros((3, 3), **like(x)), np.zeros((3, 3), **like(x))
        np.cumsum(x, axis=1, out=a)
        np.dot(x[0], x[1].T, out=b)
        np.matmul(x[0], x[1].T, out=c)
        return a.ravel(), b, c

    agrees(f, X, tolerance=3 * ULPS)


def like(x):
    return {"like": x} if isinstance(x, tj.Array) else {}


def test_a_reduction_over_one_element_is_no_view():
    for f in (np.sum, np.max, np.prod, np.maximum.reduce, np.cumsum, np.mean, np.ptp):

        def changed(x, f=f):
            y = f(x, axis=0)
            y[...] = 7.0
            z = f(x, 0)
            z += 1.0
            return x + z

        agrees(changed, [[1.5, 2.5, 0.5]])


# Products.

A, B = X[0], X[1].T + 0.3  # (3, 4) and (4, 3)
V, W = X[0, 0], X[1, 1]
C3 = RNG.uniform(0.5, 1.5, (2, 3, 4))
D3 = RNG.uniform(0.5, 1.5, (2, 4, 3))
PRODUCTS = {
    "matmul": (np.matmul, A, B),
    "@": (lambda a, b: a @ b, A, B),
    "matrix vector": (np.matmul, A, V),
    "vector matrix": (np.matmul, V, B),
    "vector vector": (np.matmul, V, W),
    "row column": (np.matmul, V[None], W[:, None]),
    "column row": (np.matmul, V[:, None], W[None]),
    "one one": (np.matmul, [[1.5]], [[2.5]]),
    "batch": (np.matmul, C3, D3),
    "batch broadcast": (np.matmul, C3, B),
    "batch broadcast left": (np.matmul, A, D3),
    "batch vector": (np.matmul, C3, V),
    "vector batch": (np.matmul, V, D3),
    "batch by batch": (np.matmul, C3[:, None], D3[None]),
    "transposed": (lambda a, b: a.T @ b.T, A, B),
    "strided": (lambda a, b: a[::-1, ::2] @ b[::2, ::-1], A, B),
    "same": (lambda a, b: a @ a.T + b.T @ b, A, B),
    "dot matrices": (np.dot, A, B),
    "dot vectors": (np.dot, V, W),
    "dot scalar": (np.dot, 1.5, V),
    "dot scalars": (np.dot, 1.5, 2.5),
    "dot 3-D 2-D": (np.dot, C3, B),
    "dot 2-D 3-D": (np.dot, A, D3),
    "dot 3-D 3-D": (np.dot, C3, D3),
    "dot 1-D 3-D": (np.dot, V, D3),
    "dot 3-D 1-D": (np.dot, C3, V),
    "vdot": (np.vdot, A, B.T),
    "inner": (np.inner, A, B.T),
    "inner vectors": (np.inner, V, W),
    "inner scalar": (np.inner, V, 2.0),
    "inner 3-D": (np.inner, C3, A),
    "outer": (np.outer, V, W[:2]),
    "outer of matrices": (np.outer, A, V),
    "outer of scalars": (np.outer, 1.5, V),
    "tensordot": (lambda a, b: np.tensordot(a, b, axes=1), C3, B),
    "tensordot 2": (lambda a, b: np.tensordot(a, b), C3, np.moveaxis(D3, 0, 2).transpose(1, 0, 2)),
    "tensordot 0": (lambda a, b: np.tensordot(a, b, axes=0), V[:2], W[:3]),
    "tensordot axes": (lambda a, b: np.tensordot(a, b, axes=([0, 2], [0, 1])), C3, D3),
    "tensordot all": (lambda a, b: np.tensordot(a, b, axes=((0, 1, 2), (0, 2, 1))), C3, D3),
    "kron": (np.kron, A[:2, :2], B[:2]),
    "kron vectors": (np.kron, V[:2], W),
    "kron mixed": (np.kron, V[:2], A[:2]),
    "cross": (np.cross, V[:3], W[:3]),
    "cross rows": (np.cross, B, W[:3]),
    "cross axis": (lambda a, b: np.cross(a, b, axis=0), A, A[:, ::-1] + 0.1),
    "cross axes": (lambda a, b: np.cross(a, b, axisa=0, axisb=1, axisc=0), A, B[:, :3]),
    "vecdot": (np.vecdot, A, V),
}


@pytest.mark.parametrize("f, a, b", PRODUCTS.values(), ids=PRODUCTS)
def test_product(f, a, b):
    agrees(f, a, b, tolerance=3 * ULPS)


@pytest.mark.parametrize("f, a, b", PRODUCTS.values(), ids=PRODUCTS)
def test_product_with_a_passive_operand(f, a, b):
    a, b = np.asarray(a), np.asarray(b)
    agrees(lambda a: f(a, b), a[()], tolerance=3 * ULPS)
    agrees(lambda b: f(a, b), b[()], tolerance=3 * ULPS)
    if a.ndim and b.ndim:
        integers = np.arange(1, b.size + 1).reshape(b.shape)
        agrees(lambda a: f(a, integers), a, tolerance=3 * ULPS)
        if b.shape == b.T.shape or f is np.matmul:
            agrees(lambda a: f(a, np.asfortranarray(b)), a, tolerance=3 * ULPS)


@pytest.mark.parametrize(
    "a, b", [((2, 3), (2, 3)), ((3,), (4,)), ((2, 2, 3), (3, 3, 2)), ((2, 3), ()), ((2, 3), (4,))], ids=str
)
def test_products_of_shapes_that_do_not_fit(a, b):
    for f in (np.matmul, np.dot, np.inner, np.tensordot):
        x, y = np.ones(a), np.ones(b)
        try:
            f(x, y)
        except (ValueError, IndexError):
            with pytest.raises((ValueError, IndexError)):
                tj.record(lambda x, f=f, y=y: f(x, y), x)


NORMS = {
    "vector": (V, {}),
    "all": (X, {}),
    "1": (V, {"ord": 1}),
    "2": (V, {"ord": 2}),
    "3": (V, {"ord": 3}),
    "0.5": (V, {"ord": 0.5}),
    "-1": (V, {"ord": -1}),
    "0": (V, {"ord": 0}),
    "inf": (V, {"ord": np.inf}),
    "-inf": (V, {"ord": -np.inf}),
    "fro": (A, {"ord": "fro"}),
    "matrix 1": (A, {"ord": 1}),
    "matrix -1": (A, {"ord": -1}),
    "matrix inf": (A, {"ord": np.inf}),
    "matrix -inf": (A, {"ord": -np.inf}),
    "matrix inf keepdims": (A, {"ord": np.inf, "keepdims": True}),
    "axis": (X, {"axis": 1}),
    "axis tuple": (X, {"axis": (0, 2)}),
    "axis 1": (X, {"ord": 1, "axis": -1, "keepdims": True}),
    "axes 1": (X, {"ord": 1, "axis": (0, 1)}),
    "axes 1 swapped": (X, {"ord": 1, "axis": (1, 0)}),
    "axes inf": (X, {"ord": np.inf, "axis": (2, 0)}),
    "axes negative": (X, {"ord": 1, "axis": (-1, 0), "keepdims": True}),
}


@pytest.mark.parametrize("x, kwargs", NORMS.values(), ids=NORMS)
def test_norm(x, kwargs):
    agrees(lambda x: np.linalg.norm(x, **kwargs), x, tolerance=3 * ULPS, moves=1e-3)


def test_norm_and_deviation_have_no_gradient_at_the_origin():
    assert tj.grad(np.linalg.norm)(np.zeros(3)).tolist() == [0.0] * 3
    assert tj.grad(np.std)(np.ones(3)).tolist() == [0.0] * 3


# Choices.

CHOICES = {
    "where": lambda x: np.where(x > 0.2, x, x**2),
    "where plain condition": lambda x: np.where(MASK, x, -x),
    "where passive choice": lambda x: np.where(x > 0.2, 1.0, x),
    "where passive array": lambda x: np.where(x > 0.2, x, np.arange(4.0)),
    "where passive array and condition": lambda x: np.where(MASK[0, 0], x, np.arange(4.0)),
    "where list condition": lambda x: np.where([True, False, True, True], x, 0.0),
    "where both passive": lambda x: np.where(x > 0.2, 2.0, 3.0) * x,
    "where both passive arrays": lambda x: np.where(x > 0.2, np.arange(4.0), np.ones((3, 1))) * x,
    "where of a number": lambda x: np.where(x, x, 2.0),
    "where scalar": lambda x: np.where(x[0, 0, 0] > 0, x[0, 0, 1], 2.0),
    "where broadcast": lambda x: np.where(x[0, 0] > 0.2, x, x[:, :1]),
    "where one": lambda x: np.where(x[:1, :1, :1] > 0.0, x[:1, :1, :1], 2.0),
    "where guards a root": lambda x: np.where(x > 0.2, np.sqrt(np.where(x > 0.2, x, 1.0)), 0.0),
    "clip": lambda x: np.clip(x, -0.5, 0.51),
    "clip low": lambda x: np.clip(x, 0.011, None),
    "clip high": lambda x: np.clip(x, None, 0.511),
    "clip keywords": lambda x: np.clip(x, a_min=-0.5, a_max=0.51),
    "clip arrays": lambda x: np.clip(x, x[0, 0] - 0.21, np.arange(4.0) + 0.211),
    "clip of passive": lambda x: np.clip(np.arange(4.0) + 0.123, x[:, :, :1], 2.2),
    "select": lambda x: np.select([x > 1, x > 0], [x**2, x * 3.0], -x),
    "select default": lambda x: np.select([x > 1, MASK], [x**2, 7.0]),
    "nan_to_num": lambda x: np.nan_to_num(x * np.array([1.0, np.nan, np.inf, -np.inf])),
    "nan_to_num numbers": lambda x: np.nan_to_num(
        x + np.array([1.0, np.nan, np.inf, -np.inf]), nan=1.0, posinf=2.0, neginf=3.0
    ),
    "sinc": lambda x: np.sinc(x * 1e-3) + np.sinc(x),
    "fix": lambda x: np.fix(x) + np.trunc(x) * x,
    "round": lambda x: np.round(x) * x + np.around(x),
    "maximum": lambda x: np.maximum(x, 0.211) * np.minimum(x, x[::-1] + 0.0123),
    "interp": lambda x: np.interp(x, np.linspace(-1.011, 1.5, 7), np.arange(7.0) ** 2),
    "interp ends": lambda x: np.interp(x, [-0.5, 0.5], [1.0, 2.0], left=-3.0, right=5.0),
    "interp active table": lambda x: np.interp([-0.5, 0.1, 0.4, 9.0, -9.0], [-1.0, 0.0, 0.5], np.exp(x[0, 0, :3])),
    "interp active grid": lambda x: np.interp([-5.0, 0.1, 0.4, 9.0], np.sort(x[0, 0]), np.exp(x[0, 1])),
    "interp scalar": lambda x: np.interp(x[0, 0, 0], [-2.0, 0.0, 3.0], [0.0, 1.0, 5.0]),
    "interp one": lambda x: np.interp(x, [0.1], [2.0]) + x,
    "sort": lambda x: np.sort(x, axis=1),
    "sort flat": lambda x: np.sort(x, axis=None),
    "argsort": lambda x: x[0, 0][np.argsort(x[0, 0])] * np.arange(4.0),
    "argmax as index": lambda x: x[0, 0][np.argmax(x[0, 0])] * x[0, 0],
    "argmax keepdims": lambda x: np.take_along_axis(x, np.argmax(x, axis=1, keepdims=True), 1),
    "argmin axes": lambda x: np.argmin(x, axis=0),
    "digitize": lambda x: np.digitize(x, [-1.0, 0.2, 1.0]),
    "digitize down": lambda x: np.digitize(x, [1.0, 0.2, -1.0], right=True),
    "searchsorted": lambda x: np.searchsorted([-1.0, 0.2, 1.0], x),
    "nonzero": lambda x: np.nonzero(x > 0.2),
    "flatnonzero": lambda x: np.flatnonzero(x > 0.2),
    "argwhere": lambda x: np.argwhere(x > 0.2),
    "count_nonzero": lambda x: np.count_nonzero(x > 0.2, axis=1),
    "where places": lambda x: np.where(x > 0.2),
    "boolean index": lambda x: x[x > 0.2] ** 2,
    "boolean index of plain": lambda x: np.arange(24.0).reshape(X.shape)[x > 0.2] * x[x > 0.2],
    "fill_diagonal": lambda x: filled_diagonal(x[0], x[1, 0, 0]),
    "fill_diagonal tall": lambda x: filled_diagonal(x[0].T, [1.0, 2.0]),
    "fill_diagonal wrap": lambda x: filled_diagonal(np.reshape(x, (12, 2)), x[0, 0], True),
    "copyto": lambda x: copied(x),
}


def filled_diagonal(x, value, wrap=False):
    y = x * 2.0
    np.fill_diagonal(y, value, wrap=wrap)
    return y


def copied(x):
    y = x * 2.0
    np.copyto(y[0], x[1], where=MASK[0])
    np.copyto(y[1], 3.0)
    return y


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("f", CHOICES.values(), ids=CHOICES)
def test_choice(f):
    agrees(f, X, tolerance=ULPS, moves=1e-3, differentiable=f is not CHOICES["nan_to_num"])


def test_the_branch_not_chosen_does_not_spoil_the_gradient():
    x_bar = tj.grad(lambda x: np.sum(np.where(x > 0, np.sqrt(x), 0.0)))
    with np.errstate(invalid="ignore", divide="ignore"):
        assert x_bar(np.array([-1.0, 4.0])).tolist() == [0.0, 0.25]


def test_ties_share_the_gradient():
    assert tj.grad(lambda x: np.maximum(x[0], x[1]))(np.array([1.0, 1.0])).tolist() == [0.5, 0.5]
    assert tj.grad(np.max)(np.array([1.0, 0.0, 1.0])).sum() == 1.0
    assert tj.grad(lambda x: np.sum(np.clip(x, 0.0, 1.0)))(np.array([0.0, 0.5, 1.0])).tolist() == [0.5, 1.0, 0.5]


def test_reductions_of_nan_and_inf_are_numpys():
    x = np.array([[1.0, np.nan, 3.0], [np.inf, 2.0, -np.inf]])
    for f in (
        np.sum,
        np.max,
        np.min,
        np.prod,
        np.nanmax,
        np.nanmin,
        np.mean,
        np.median,
        np.argmax,
        np.argsort,
        np.sort,
        np.cumsum,
    ):
        with np.errstate(invalid="ignore"):
            agrees_in_value(lambda x, f=f: f(x, axis=1), x)


def agrees_in_value(f, x):
    with tj.Tape() as tape:
        np.testing.assert_array_equal(tj.value(f(tape.input(x))), f(x))
