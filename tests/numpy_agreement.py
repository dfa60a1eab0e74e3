"""Does a function do to active arguments what it does to plain ones? One check for all tables of NumPy functions.

`agrees` compares, with NumPy itself on plain arrays: shape, dtype, whether a scalar or an array comes back, and the value; the adjoint with
differences of fourth order; the tangent with the adjoint; and a replay at other inputs with NumPy at those inputs.
"""

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj

EXACT = 0.0
ULPS = 4 * np.finfo(float).eps  # of the largest element, for sums and products in another order
DIFFERENCES_RTOL = 2e-7
STEP = 2e-4


def parts_of(output):
    """Outputs as a list: what a list or tuple holds, else the one output."""
    return list(output) if isinstance(output, (list, tuple)) else [output]


def plain_flat(output):
    """All numbers of a plain output as one vector."""
    return np.concatenate([np.ravel(np.asarray(part, dtype=float)) for part in parts_of(output)] or [np.zeros(0)])


def active_flat(output):
    """All active numbers as one vector; booleans as 1.0 and 0.0, which have no derivative."""
    parts = [np.ravel(part) * 1.0 for part in parts_of(output)]
    return np.concatenate(parts) if parts else np.zeros(0)


def same_kind(active, plain):
    """An output has the shape, dtype and kind (scalar or array) of NumPy's, and its numbers stand for themselves."""
    if not isinstance(active, (tj.Array, tj.Variable)):
        assert type(active) is type(plain), f"{type(active)} for {type(plain)}"
        assert_array_equal(active, plain)
        return
    assert active.shape == np.shape(plain)
    assert np.asarray(plain).dtype.kind in ("b" if active.dtype == bool else "fiu"), (
        f"{active.dtype} for {np.asarray(plain).dtype}"
    )
    if isinstance(plain, np.ndarray) and plain.ndim:
        assert isinstance(active, tj.Array)
    elif not isinstance(plain, np.ndarray):
        assert isinstance(active, tj.Variable), (
            f"an array of shape {active.shape} came back for NumPy's scalar {plain!r}"
        )


def close(actual, expected, tolerance, what=""):
    """Equal up to `tolerance`, relative to the largest finite element."""
    expected = np.asarray(expected, dtype=float)
    finite = np.abs(expected[np.isfinite(expected)])
    assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * finite.max(initial=0.0), err_msg=what)


def agrees(f, *args, tolerance=EXACT, replay_tolerance=None, differentiable=True, step=STEP, moves=0.03, seed=0):
    """Check `f` at these arguments, all of them active: floats become scalars, arrays arrays.

    Parameters
    ----------
    f : callable
        Of plain or active arguments; returns a number, an array, or a list of either.
    tolerance, replay_tolerance : float
        Of the recorded and of the replayed value, relative to the largest element.
    differentiable : bool
        Whether to compare with differences; the tangent is compared with the adjoint in any case.
    moves : float
        How far the inputs of the replay lie away.
    """
    rng = np.random.default_rng(seed)
    args = [
        np.float64(x) if np.ndim(x) == 0 and not isinstance(x, np.ndarray) else np.array(x, dtype=float) for x in args
    ]
    expected = (
        f(*map(np.copy, args))
        if not any(np.ndim(x) == 0 for x in args)
        else f(*(np.float64(x) if np.ndim(x) == 0 else x.copy() for x in args))
    )
    seen = []

    def flat(*active):
        output = f(*active)
        seen.append(output)
        return active_flat(output)

    tape = tj.record(flat, *args, argnums=tuple(range(len(args))))
    active, plain = parts_of(seen[0]), parts_of(expected)
    assert len(active) == len(plain)
    for a, p in zip(active, plain, strict=True):
        same_kind(a, p)
    close(tape.tape.value[tape._current.call.output], plain_flat(expected), tolerance, "recorded value")

    def at(points):
        return plain_flat(f(*(np.float64(x) if np.ndim(x) == 0 else x.copy() for x in points)))

    moved = [
        np.asarray(x + moves * rng.uniform(-1, 1, np.shape(x)))[()]
        if np.ndim(x) == 0
        else x + moves * rng.uniform(-1, 1, x.shape)
        for x in args
    ]
    close(
        tape.value(tuple(moved)),
        at(moved),
        max(tolerance, ULPS) if replay_tolerance is None else replay_tolerance,
        "replayed value",
    )

    for points in (args, moved):
        y_bar = rng.uniform(-1, 1, plain_flat(expected).shape)
        x_dots = [rng.uniform(-1, 1, np.shape(x)) for x in points]
        x_bars = tape.vjp(tuple(points), y_bar)[1]
        y_dot = tape.jvp(tuple(points), tuple(x_dots))[1]
        for x, x_bar in zip(points, x_bars, strict=True):
            assert np.shape(x_bar) == np.shape(x)
        left = float(np.dot(y_bar, y_dot))
        right = sum(float(np.sum(np.asarray(b) * d)) for b, d in zip(x_bars, x_dots, strict=True))
        assert_allclose(
            left,
            right,
            rtol=1e-11,
            atol=1e-11 * sum(np.abs(b).sum() for b in x_bars),
            err_msg="tangent against adjoint",
        )
        if differentiable:
            matches_differences(lambda *z, y_bar=y_bar: float(np.dot(y_bar, at(z))), points, x_bars, step)
    return tape


def matches_differences(f, points, x_bars, step=STEP):
    """The gradient of a scalar function of plain arguments by differences of fourth order."""
    scale = max((np.abs(x_bar).max(initial=0.0) for x_bar in map(np.asarray, x_bars)), default=0.0)
    for which, (x, x_bar) in enumerate(zip(points, x_bars, strict=True)):
        expected = np.zeros(np.shape(x))
        for index in np.ndindex(np.shape(x)):
            values = []
            for k in (-2, -1, 1, 2):
                shifted = [np.array(p, dtype=float) for p in points]
                shifted[which][index] += k * step
                values.append(f(*(p[()] if p.ndim == 0 else p for p in shifted)))
            expected[index] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
        assert_allclose(
            x_bar,
            expected,
            rtol=DIFFERENCES_RTOL,
            atol=DIFFERENCES_RTOL * max(scale, 1e-3),
            err_msg=f"adjoint of argument {which}",
        )
