"""What would lose a derivative is refused, and the message says what to write instead."""

import math

import numpy as np
import pytest

import tapejit as tj
from tapejit.errors import PassiveConversionError, ShapeError, TapeError, UnsupportedError

X = np.array([1.5, 2.5, 0.5])


def assign(target, key, new):
    target[key] = new


def add_to(target, new):
    target += new


PLAIN = r"a float array cannot hold active values"
REFUSED = {
    # name: what is refused, of which class, with which words
    "float": (lambda x: float(x[0]), PassiveConversionError, r"drop its derivative .*tj\.value\(x\)"),
    "float of an array": (lambda x: float(x[:1]), PassiveConversionError, r"tj\.value\(x\)"),
    "int": (lambda x: int(x[0]), PassiveConversionError, r"int\(x\) .*np\.trunc\(x\)"),
    "int of an array": (lambda x: int(x[:1]), PassiveConversionError, r"np\.trunc\(x\)"),
    "complex": (lambda x: complex(x[0]), PassiveConversionError, r"active values are real"),
    "math.sin": (lambda x: math.sin(x[0]), PassiveConversionError, r"np\.sin\(x\) instead of math\.sin\(x\)"),
    "math.sqrt": (lambda x: math.sqrt(x[0]), PassiveConversionError, r"np\.sin\(x\) instead of math\.sin\(x\)"),
    "math.sin of an array": (lambda x: math.sin(x[:1]), PassiveConversionError, r"instead of math"),
    "range": (lambda x: range(x[0]), PassiveConversionError, r"used as an integer .*np\.floor"),
    "index": (lambda x: [1, 2, 3][x[0]], PassiveConversionError, r"used as an integer .*np\.floor"),
    "index of an array": (lambda x: x[x[0]], PassiveConversionError, r"used as an integer"),
    "array as an index": (lambda x: x[x], PassiveConversionError, r"active array is used as an index .*astype\(int\)"),
    "floored array as an index": (
        lambda x: x[np.floor(x)],
        PassiveConversionError,
        r"active array is used as an index",
    ),
    "take": (lambda x: np.take(x, x), PassiveConversionError, r"active array is used as an index"),
    "round to digits": (lambda x: round(x[0], 2), UnsupportedError, r"round\(x, 2\).*np\.rint"),
    "np.round to digits": (lambda x: np.round(x, 2), UnsupportedError, r"decimals=2"),
    "a[0] = x[0]": (lambda x: assign(np.zeros(3), 0, x[0]), PassiveConversionError, PLAIN + r".*"),
    "a[0] = x[:1]": (lambda x: assign(np.zeros(3), 0, x[:1]), ValueError, r"setting an array element"),
    "a[:] = x": (lambda x: assign(np.zeros(3), slice(None), x), PassiveConversionError, r"np\.zeros\(n, like=x\)"),
    "a[1:] = [x, x]": (
        lambda x: assign(np.zeros(3), slice(1, None), [x[0], x[1]]),
        PassiveConversionError,
        r"np\.zeros\(n, like=x\)",
    ),
    "a[mask] = x": (lambda x: assign(np.zeros(3), X > 1, x[:2]), PassiveConversionError, r"np\.zeros\(n, like=x\)"),
    "int array": (lambda x: assign(np.zeros(3, int), 0, x[0]), PassiveConversionError, r"an active value"),
    "a += x": (lambda x: add_to(np.zeros(3), x), PassiveConversionError, r"plain float array cannot hold .*like=x"),
    "a += x[0]": (
        lambda x: add_to(np.zeros(3), x[0]),
        PassiveConversionError,
        r"plain float array cannot hold .*like=x",
    ),
    "out=": (
        lambda x: np.add(x, 1.0, out=np.zeros(3)),
        PassiveConversionError,
        r"plain float array cannot hold .*like=x",
    ),
    "out= of a sum": (lambda x: np.sum(x, out=np.zeros(())), PassiveConversionError, r"plain float array cannot hold"),
    "out= of a dot": (
        lambda x: np.dot(x, x, out=np.zeros(())),
        PassiveConversionError,
        r"plain float array cannot hold",
    ),
    "out= of stack": (
        lambda x: np.stack([x, x], out=np.zeros((2, 3))),
        PassiveConversionError,
        r"plain float array cannot hold",
    ),
    "np.add.at": (
        lambda x: np.add.at(np.zeros(3), [0, 1], x[0]),
        PassiveConversionError,
        r"plain float array cannot hold",
    ),
    "np.copyto": (lambda x: np.copyto(np.zeros(3), x), PassiveConversionError, r"plain float array cannot hold"),
    "np.fill_diagonal": (lambda x: np.fill_diagonal(np.zeros((3, 3)), x[0]), PassiveConversionError, PLAIN),
    "np.full_like": (
        lambda x: np.full_like(np.zeros(3), x[0]),
        PassiveConversionError,
        r"plain float array cannot hold",
    ),
    "np.array of dtype": (lambda x: np.array([x[0]], dtype=float), PassiveConversionError, PLAIN),
    "np.asarray of dtype": (lambda x: np.asarray(x, dtype=float), PassiveConversionError, r"tj\.value\(x\)"),
    "np.float64": (lambda x: np.float64(x[0]), PassiveConversionError, r"tj\.value\(x\)"),
    "a.fill": (lambda x: np.zeros(3).fill(x[0]), PassiveConversionError, PLAIN),
    "mean of an object array": (lambda x: np.array([x[0], x[1]]).mean(), PassiveConversionError, r"an active value"),
    "astype int": (lambda x: x.astype(int), UnsupportedError, r"astype\(int64\)"),
    "astype float32": (lambda x: x.astype(np.float32), UnsupportedError, r"float64"),
    "astype of a scalar": (lambda x: x[0].astype(int), UnsupportedError, r"float64"),
    "complex operand": (lambda x: x * 1j, UnsupportedError, r"active values are real"),
    "complex array": (lambda x: x + np.ones(3, complex), UnsupportedError, r"active values are real"),
    "complex scalar": (lambda x: x[0] * (1 + 2j), UnsupportedError, r"active values are real"),
    "complex array and scalar": (lambda x: x[0] * np.ones(3, complex), UnsupportedError, r"active values are real"),
    "complex stored": (lambda x: assign(x * 1.0, 0, 1j), UnsupportedError, r"active values are real"),
    "np.imag": (np.imag, UnsupportedError, r"active values are real"),
    "strings": (lambda x: x * np.array(["a", "b", "c"]), UnsupportedError, r"dtype <U1"),
    "dates": (lambda x: x + np.array(["2020-01-01"] * 3, dtype="M8[D]"), UnsupportedError, r"dtype datetime64"),
    "dtype of a ufunc": (lambda x: np.add(x, 1, dtype=np.float32), UnsupportedError, r"float32"),
    "dtype of a sum": (lambda x: np.sum(x, dtype=int), UnsupportedError, r"int64"),
    "dtype of zeros": (lambda x: np.zeros(3, dtype=int, like=x), UnsupportedError, r"int64"),
    "where= of a ufunc": (
        lambda x: np.add(x, 1, where=X > 1, out=x * 1.0),
        UnsupportedError,
        r"np\.add with where= .*np\.where",
    ),
    "where= of a ufunc's reduce": (lambda x: np.add.reduce(x, where=X > 1), UnsupportedError, r"where="),
    "reduce of differences": (np.subtract.reduce, UnsupportedError, r"np\.subtract\.reduce .*associative"),
    "reduceat": (lambda x: np.add.reduceat(x, [0, 1]), UnsupportedError, r"np\.add\.reduceat"),
    "multiply.at": (lambda x: np.multiply.at(x * 1.0, [0], 2.0), UnsupportedError, r"np\.multiply\.at"),
    "np.frexp": (np.frexp, UnsupportedError, r"np\.frexp is not differentiated .*tj\.primitive"),
    "np.nextafter": (lambda x: np.nextafter(x, 2.0), UnsupportedError, r"np\.nextafter is not differentiated"),
    "np.fft.fft": (np.fft.fft, UnsupportedError, r"np\.fft\.fft of active values is not supported .*tj\.value\(x\)"),
    "np.linalg.svd": (lambda x: np.linalg.svd(np.outer(x, x)), UnsupportedError, r"np\.linalg\.svd"),
    "np.linalg.inv": (lambda x: np.linalg.inv(np.outer(x, x)), UnsupportedError, r"np\.linalg\.inv"),
    "np.linalg.solve": (lambda x: np.linalg.solve(np.eye(3), x), UnsupportedError, r"np\.linalg\.solve"),
    "np.linalg.norm by svd": (
        lambda x: np.linalg.norm(np.outer(x, x), ord=2),
        UnsupportedError,
        r"np\.linalg\.norm with ord=2",
    ),
    "np.linalg.norm nuc": (lambda x: np.linalg.norm(np.outer(x, x), ord="nuc"), UnsupportedError, r"ord='nuc'"),
    "np.convolve": (lambda x: np.convolve(x, [1.0, 2.0]), UnsupportedError, r"np\.convolve"),
    "np.einsum": (lambda x: np.einsum("i,i", x, x), UnsupportedError, r"np\.einsum"),
    "np.unique": (np.unique, UnsupportedError, r"np\.unique"),
    "np.percentile": (lambda x: np.percentile(x, 50), UnsupportedError, r"np\.percentile"),
    "np.histogram": (np.histogram, UnsupportedError, r"np\.histogram"),
    "np.allclose": (lambda x: np.allclose(x, 1.0), UnsupportedError, r"compare tj\.value\(x\)"),
    "np.array_equal": (lambda x: np.array_equal(x, x), UnsupportedError, r"compare tj\.value\(x\)"),
    "np.piecewise": (lambda x: np.piecewise(x, [x > 1], [1, 2]), UnsupportedError, r"np\.select"),
    "np.put": (lambda x: np.put(np.zeros(3), [0], x[0]), (UnsupportedError, PassiveConversionError), r"np\.put|active"),
    "np.place": (lambda x: np.place(x * 1.0, X > 1, [1.0]), UnsupportedError, r"np\.place"),
    "np.putmask": (lambda x: np.putmask(np.zeros(3), X > 1, x), UnsupportedError, r"np\.putmask"),
    "np.pad mode": (lambda x: np.pad(x, 1, mode="mean"), UnsupportedError, r"mode='mean'"),
    "np.repeat by active": (lambda x: np.repeat(x, np.floor(x)), UnsupportedError, r"first argument only"),
    "np.arange of active": (lambda x: np.arange(x[0]), PassiveConversionError, r"an active value"),
    "np.interp with a period": (lambda x: np.interp(x, X, X, period=1.0), UnsupportedError, r"period"),
    "np.searchsorted with a sorter": (lambda x: np.searchsorted(X, x, sorter=[2, 0, 1]), UnsupportedError, r"sorter"),
    "np.cross in the plane": (lambda x: np.cross(x[:2], x[:2]), UnsupportedError, r"three components"),
    "ragged list": (lambda x: x * [x[0], [x[1], x[2]], 1.0], ShapeError, r"different shapes"),
}


@pytest.mark.parametrize("refused, error, message", REFUSED.values(), ids=REFUSED)
def test_refused_with_its_remedy(refused, error, message):
    with tj.Tape() as tape:
        x = tape.input(X)
        with pytest.raises(error, match=message):
            refused(x)


def test_messages_name_the_line_of_the_user():
    with pytest.raises(PassiveConversionError, match=r"\(test_numpy_refusals\.py:\d+, in drag\)"):

        def drag(x):
            return math.sin(x[0])

        tj.grad(drag)(X)
    with pytest.raises(UnsupportedError, match=r"\(test_numpy_refusals\.py:\d+, in lift\)"):

        def lift(x):
            return np.fft.fft(x)

        tj.grad(lift)(X)


# Tapes that have nothing to do with each other.


def test_two_unrelated_tapes_are_not_mixed():
    with tj.Tape() as one:
        x, s = one.input(X), one.input(2.0)
        mask = x > 1
    with tj.Tape() as other:
        y, t = other.input(X), other.input(2.0)
        for mix in (
            lambda: x + y,
            lambda: s * t,
            lambda: s * y,
            lambda: np.dot(x, y),
            lambda: np.concatenate([x, y]),
            lambda: np.where(mask, y, 0.0),
            lambda: assign(y, 0, s),
            lambda: assign(y, slice(None), x),
            lambda: np.add(y, x, out=y),
            lambda: np.stack([s, t]),
        ):
            with pytest.raises(TapeError, match=r"two unrelated tapes .*tj\.value\(x\)"):
                mix()
    with pytest.raises(TapeError, match="not being recorded"):
        x + 1.0
    with pytest.raises(TapeError, match="not being recorded"):
        s + 1.0


def test_a_value_that_escaped_its_function_is_refused():
    escaped = []

    def f(x):
        escaped.append(x * 2.0)
        return np.sum(x)

    tj.grad(f)(X)
    with pytest.raises(TapeError, match="not being recorded"):
        np.sum(escaped[0] ** 2)
    with pytest.raises(TapeError, match="unrelated tapes"):
        tj.grad(lambda x: np.sum(x * escaped[0]))(X)
    with pytest.raises(TapeError, match="Return it"):
        tj.grad(lambda x: escaped[0][0])(X)
    assert tj.value(escaped[0]).tolist() == [3.0, 5.0, 1.0]


def test_a_value_of_an_inner_tape_is_not_stored_in_an_outer_array():
    def f(x):
        kept = np.zeros_like(x)

        def inner(z):
            kept[0] = z * 2.0
            return z * z

        return tj.grad(inner)(x[0]) + np.sum(kept)

    with pytest.raises(TapeError, match=r"allocate the array inside"):
        tj.grad(f)(X)


# Arguments and results.


@pytest.mark.parametrize(
    "x, message",
    [
        (np.ones(3, complex), r"complex128.*two inputs"),
        (np.arange(3), r"int64; pass x\.astype\(float\)"),
        (np.array([True, False]), r"bool; pass x\.astype\(float\)"),
        (np.array(["a"]), r"dtype <U1"),
        ("a", r"dtype <U1"),
        (1j, r"complex128"),
        (True, r"bool"),
        (None, r"object"),
        ({"a": 1.0}, r"object"),
        (np.ones(2, np.longdouble), r"float128|longdouble|must be real"),
    ],
)
def test_arguments_that_are_not_real_floats_are_refused(x, message):
    for transform in (tj.grad, tj.value_and_grad, tj.jacobian, tj.vjp):
        with pytest.raises(ShapeError, match=message):
            transform(lambda x: np.sum(x))(x)
    with pytest.raises(ShapeError, match=message):
        tj.record(lambda x: np.sum(x), x)


def test_python_ints_and_lists_convert():
    assert tj.grad(lambda x: x**2)(3) == 6.0
    assert tj.grad(lambda x: x[0] * x[1])([3, 4]).tolist() == [4.0, 3.0]
    assert tj.grad(lambda x: np.sum(x**2))(np.array([1.0, 2.0], dtype=np.float32)).tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    "f, message",
    [
        (lambda x: {"loss": np.sum(x)}, r"returned a dict; return a number"),
        (lambda x: None, r"returned None; did it forget"),
        (lambda x: "a", r"returned str|dtype <U1"),
        (lambda x: x, r"scalar, got one of shape \(3,\)"),
        (lambda x: [np.sum(x)], r"scalar, got one of shape \(1,\)"),
        (lambda x: [x, x[0]], r"different shapes"),
        (lambda x: 1j, r"real"),
        (lambda x: np.ones(2, complex), r"real"),
        (lambda x: object(), r"returned object|real"),
    ],
)
def test_results_that_have_no_gradient_are_refused(f, message):
    with pytest.raises((ShapeError, UnsupportedError), match=message):
        tj.grad(f)(X)


def test_assignment_through_a_broadcast_view_is_refused_as_in_numpy():
    for view in (lambda x: np.broadcast_to(x, (2, 3)), lambda x: np.broadcast_to(x[:1], (3,))):
        with pytest.raises(ValueError, match="read-only"):
            view(X)[0] = 1.0
        with tj.Tape() as tape, pytest.raises(ValueError, match="read-only"):
            view(tape.input(X))[0] = 1.0


def test_np_asarray_does_not_pretend_to_alias():
    with tj.Tape() as tape:
        x = tape.input(X)
        with pytest.raises(ValueError, match="read-only"):
            np.asarray(x)[0] = 1.0


def test_value_gives_the_plain_number_on_purpose():
    with tj.Tape() as tape:
        x = tape.input(X)
        assert type(tj.value(x[0])) is float and tj.value(x[0]) == 1.5
        assert type(tj.value(x)) is np.ndarray and tj.value(x).tolist() == X.tolist()
        assert tj.value(x > 1).tolist() == [True, True, False] and tj.value(x > 1).dtype == bool
        assert tj.value(x[0] > 1) is True
        assert tj.value([x[0], (x[1], 2)]) == [1.5, (2.5, 2)]
        assert tj.value(np.array([x[0], x[1]])).tolist() == [1.5, 2.5]
        assert tj.value("a") == "a" and tj.value(3) == 3
        taken = tj.value(x)
        taken[0] = 7.0
        assert tj.value(x[0]) == 1.5
        assert math.sin(tj.value(x[0])) == math.sin(1.5)
        assert not tape.guards.slot
