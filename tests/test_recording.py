"""`tj.record`: replays, static arguments, decisions that change, threads, pickling, and every derivative of a recording."""

import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit.errors import BranchChangeError, BranchChangeWarning, ShapeError, TapejitError


def loss(x, data=None, power=2):
    return np.sum(np.sin(x) ** power * (1.0 if data is None else data)) + x[0] * x[-1]


def branching(x):
    return np.sum(x * x) if x[0] > 0.0 else -3.0 * np.sum(x)


# Replays.


def test_a_replay_gives_what_a_recording_there_gives(rng):
    recording = tj.record(loss, np.ones(5))
    for _ in range(5):
        x = rng.standard_normal(5)
        value, gradient = recording.value_and_grad(x)
        assert_allclose(value, loss(x), rtol=1e-14)
        assert_allclose(gradient, tj.grad(loss)(x), rtol=1e-13)
        assert_allclose(recording.value(x), value, rtol=0.0)
        assert_array_equal(recording.grad(x), gradient)
    assert recording.n_recorded == 1


@pytest.mark.parametrize(
    ("f", "x", "other"),
    [
        (lambda x: x**3 + 2 * x**2, 3.0, 1.0),
        (lambda x: np.sum(x), np.ones(3), [4.0, 5.0, 6.0]),
        (lambda x: np.sum(x), [1, 2], (3, 4)),
        (lambda x: np.sum(x * x), np.ones((2, 3)), np.arange(6.0).reshape(2, 3)),
        (lambda x: np.sum(x * x), np.zeros((0, 2)), np.zeros((0, 2))),
        (lambda x: x[0, 0] * 2.0, [[1.0]], [[3.0]]),
        (lambda x: 7.0, np.ones(2), np.zeros(2)),
        (lambda x: x, 1.0, 2.0),
    ],
)
def test_shapes_of_replays(f, x, other):
    recording = tj.record(f, x)
    value, gradient = recording.value_and_grad(other)
    assert isinstance(value, float)
    assert value == f(np.asarray(other, dtype=float) if np.ndim(other) else other)
    assert_array_equal(gradient, tj.grad(f)(other))
    assert np.shape(gradient) == np.shape(x)
    assert isinstance(gradient, float) == (np.ndim(x) == 0)


def test_every_derivative_equals_its_transform(rng):
    def f(x):
        return np.array([np.sum(np.sin(x) * x), x[0] * x[1], np.exp(x[2])])

    def g(x):
        return np.sum(f(x) ** 2)

    vector, scalar = tj.record(f, np.ones(4)), tj.record(g, np.ones(4))
    for _ in range(2):
        x, v, y_bar = rng.standard_normal(4), rng.standard_normal(4), rng.standard_normal(3)
        options = {"rtol": 1e-11, "atol": 1e-12}
        assert_allclose(vector.value(x), f(x), **options)
        assert_allclose(vector.jacobian(x), tj.jacobian(f)(x), **options)
        assert_allclose(vector.vjp(x, y_bar)[1], tj.vjp(f)(x)[1](y_bar), **options)
        assert_allclose(vector.vjp(x, y_bar)[0], f(x), **options)
        assert_allclose(vector.jvp(x, v)[0], f(x), **options)
        assert_allclose(vector.jvp(x, v)[1], tj.jvp(f)(x, v)[1], **options)
        assert_allclose(scalar.hvp(x, v), tj.hvp(g)(x, v), **options)
        assert_allclose(scalar.hessian(x), tj.hessian(g)(x), **options)
        assert_allclose(scalar.jacobian(x), tj.grad(g)(x), **options)
        assert_allclose(scalar.vjp(x, 2.0)[1], 2.0 * tj.grad(g)(x), **options)


ARGS = (2.0, np.array([1.0, -1.0]), np.array([[0.5, 1.0]]))


def three(a, b, c):
    return a**2 * np.sum(np.sin(b)) + np.sum(b * c) * a


@pytest.mark.parametrize("argnums", [0, 1, -1, (0, 1, 2), (2, 0), (1,), (-1, 0)])
def test_argnums_of_a_recording(argnums, rng):
    recording = tj.record(three, *ARGS, argnums=argnums)
    several = np.ndim(argnums) == 1
    wanted = argnums if several else (argnums,)
    new = tuple(ARGS[i] + 0.1 for i in wanted)
    moved = list(ARGS)
    for i, x in zip(wanted, new, strict=True):
        moved[i] = x
    x = new if several else new[0]
    v = tuple(rng.standard_normal(np.shape(part)) for part in new)
    value, gradient = recording.value_and_grad(x)
    assert_allclose(value, three(*moved), rtol=1e-14)
    pairs = [
        (gradient, tj.grad(three, argnums)(*moved)),
        (recording.vjp(x, 3.0)[1], tj.vjp(three, argnums)(*moved)[1](3.0)),
        (recording.jacobian(x), tj.jacobian(three, argnums)(*moved)),
        (recording.hvp(x, v if several else v[0]), tj.hvp(three, argnums)(*moved, v if several else v[0])),
    ]
    for ours, reference in pairs:
        for part, expected in zip(ours if several else (ours,), reference if several else (reference,), strict=True):
            assert_allclose(part, expected, rtol=1e-12, atol=1e-14)
            assert np.shape(part) == np.shape(expected)
    assert_allclose(
        recording.jvp(x, v if several else v[0])[1],
        tj.jvp(three, argnums)(*moved, v if several else v[0])[1],
        rtol=1e-12,
    )
    hessian, expected = recording.hessian(x), tj.hessian(three, argnums)(*moved)
    for row, expected_row in zip(
        hessian if several else ((hessian,),), expected if several else ((expected,),), strict=True
    ):
        for block, expected_block in zip(row, expected_row, strict=True):
            assert_allclose(block, expected_block, rtol=1e-12, atol=1e-13)
    assert recording.n_recorded == 1


def test_results_are_the_caller_s():
    recording = tj.record(lambda x: x * 2.0, np.ones(3))
    value = recording.value(np.ones(3))
    value[:] = 9.0
    assert_array_equal(recording.value(np.ones(3)), np.full(3, 2.0))
    gradient = recording.vjp(np.ones(3), np.ones(3))[1]
    gradient[:] = 9.0
    assert_array_equal(recording.vjp(np.ones(3), np.ones(3))[1], np.full(3, 2.0))


def test_keyword_arguments_are_static():
    recording = tj.record(loss, np.ones(3), power=3)
    x = np.array([0.1, 0.2, 0.3])
    assert_allclose(recording.value(x), loss(x, power=3), rtol=1e-14)


# Static arguments.


@dataclass
class Settings:
    scale: float


def scaled(x, option):
    if isinstance(option, Settings):
        return np.sum(x) * option.scale
    if isinstance(option, dict):
        return np.sum(x) * option["scale"]
    if isinstance(option, str):
        return np.sum(getattr(np, option)(x))
    if isinstance(option, bool):
        return np.sum(x * x) if option else np.sum(x)
    if isinstance(option, (int, float)):
        return np.sum(x) * option
    if callable(option):
        return np.sum(option(x))
    if isinstance(option, tuple):
        return np.sum(x) * option[0] + option[1]
    if isinstance(option, list):
        return np.sum(x * np.asarray(option))
    return np.sum(x[option]) if option.dtype.kind in "ib" else np.sum(x * option)


STATIC = {
    "int": [1, 2, 3],
    "bool": [True, False],
    "int and bool": [1, True],
    "float32": [np.float32(0.5), np.float32(1.5)],
    "str": ["sin", "cos"],
    "tuple": [(1, 2.0), (2, 3.0)],
    "list": [[1, 2, 3], [3, 2, 1]],
    "dict": [{"scale": 2}, {"scale": 3}],
    "index array": [np.array([0, 1]), np.array([0, 2]), np.array([0, 1, 1])],
    "mask": [np.array([True, False, True]), np.array([True, True, True])],
    "data": [np.float32([1.0, 2.0, 3.0]), np.float32([1.0, 2.0, 3.5])],
    "shape": [np.array([1.0, 2.0, 3.0]), np.ones((2, 3)), np.ones((1, 3))],
    "function": [np.sin, np.cos],
    "lambda": [lambda x: x * 2.0, lambda x: x * 5.0],
    "object": [Settings(2.0), Settings(3.0)],
}


@pytest.mark.parametrize("kind", STATIC)
def test_static_arguments_are_compared_by_value(kind):
    options = STATIC[kind]
    x = np.array([0.5, 1.0, 2.0])
    recording = tj.record(scaled, np.ones(3), options[0])
    for _ in range(2):
        for option in options:
            assert_allclose(recording.value(x, args=(option,)), scaled(x, option), rtol=1e-14)
            assert_allclose(recording.grad(x, args=(option,)), tj.grad(scaled)(x, option), rtol=1e-14)
    assert recording.n_recorded == len(options)
    # Equal ones, made anew.
    if kind not in ("lambda",):
        for option in options:
            again = pickle.loads(pickle.dumps(option))
            assert_allclose(recording.value(x, args=(again,)), scaled(x, option), rtol=1e-14)
        assert recording.n_recorded == len(options)
    assert_allclose(recording.value(x), scaled(x, options[0]), rtol=1e-14)


def test_an_object_in_the_place_of_one_that_is_gone_is_another():
    """Even if it has the same id."""
    recording = tj.record(lambda x, c: x * c.scale, 1.0, Settings(0.0))
    assert [recording.value(1.0, args=(Settings(float(k)),)) for k in range(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]

    class Local:  # cannot be pickled
        def __init__(self, scale):
            self.scale = scale

    assert [recording.value(1.0, args=(Local(float(k)),)) for k in range(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_the_recorded_static_arguments_stay_after_many_others():
    recording = tj.record(lambda x, n: x * n, 1.0, 100)
    for n in range(40):
        assert recording.value(2.0, args=(n,)) == 2.0 * n
    assert recording.value(2.0) == 200.0
    assert recording.value(2.0, args=(0,)) == 0.0


def test_static_arrays_are_copied():
    """Changing one afterwards changes neither replays nor what is recorded when a branch changes."""
    data = np.array([1.0, 2.0])
    recording = tj.record(lambda x, d: np.sum(x * d) if x[0] > 0.0 else np.sum(x * d) * 10.0, np.ones(2), data)
    data[:] = 100.0
    assert recording.value(np.ones(2)) == 3.0
    assert recording.value(-np.ones(2)) == -30.0
    assert recording.value(np.ones(2), args=(data,)) == 200.0
    data[:] = 7.0
    assert recording.value(np.ones(2)) == 3.0
    assert recording.value(np.ones(2), args=(data,)) == 14.0
    nested = [np.array([1.0]), {"a": np.array([2.0])}]
    recording = tj.record(lambda x, d: x * d[0][0] * d[1]["a"][0], 1.0, nested)
    nested[0][0] = nested[1]["a"][0] = 9.0
    assert recording.value(-3.0) == -6.0


def test_static_arguments_cannot_be_written_to():
    """A replay would not write again."""

    def f(x, work):
        work[0] = 5.0
        return x * work[0]

    with pytest.raises(ValueError, match="read-only"):
        tj.record(f, 1.0, np.zeros(1, int))
    assert tj.record(f, 1.0, np.zeros(1)).grad(1.0) == 5.0  # a parameter: what is written stands on the tape


def test_static_arguments_between_the_differentiated_ones():
    recording = tj.record(lambda a, n, b, k: a**n * b * k, 2.0, 2, 3.0, 5, argnums=(2, 0))
    assert recording.value_and_grad((4.0, 3.0)) == (9.0 * 4.0 * 5, (45.0, 2 * 3.0 * 4.0 * 5))
    assert recording.value_and_grad((4.0, 3.0), args=(3, 1)) == (27.0 * 4.0, (27.0, 3 * 9.0 * 4.0))
    with pytest.raises(ShapeError, match="args has 1 entries, but the function has 2 arguments besides"):
        recording.value((4.0, 3.0), args=(3,))


# Decisions.


def test_a_changed_branch_is_recorded_again():
    recording = tj.record(branching, np.ones(2))
    assert recording.on_branch_change == "record"
    for sign in (1, -1, -1, 1, -1):
        x = sign * np.array([2.0, 3.0])
        value, gradient = recording.value_and_grad(x)
        assert value == branching(x)
        assert_array_equal(gradient, 2.0 * x if sign > 0 else [-3.0, -3.0])
    assert recording.n_recorded == 4
    # All other results too.
    for sign in (1, -1):
        x = sign * np.array([2.0, 3.0])
        assert_array_equal(recording.hessian(x), 2.0 * np.eye(2) if sign > 0 else np.zeros((2, 2)))
        assert_array_equal(recording.hvp(-x, x), 2.0 * x if sign < 0 else np.zeros(2))
        assert_array_equal(recording.jacobian(x), tj.grad(branching)(x))
        assert recording.jvp(-x, x)[1] == tj.jvp(branching)(-x, x)[1]
        assert_array_equal(recording.vjp(x, 2.0)[1], 2.0 * tj.grad(branching)(x))


def test_a_changed_branch_raises():
    recording = tj.record(branching, np.ones(2), on_branch_change="raise")
    with pytest.raises(
        BranchChangeError,
        match=r"greater\(.* was true when recorded, now false \(slot \d+; test_recording.py:\d+, in branching\)",
    ):
        recording.value_and_grad(-np.ones(2))
    assert recording.value(2.0 * np.ones(2)) == 8.0
    assert recording.n_recorded == 1


def test_a_changed_branch_warns_and_gives_the_recorded_one():
    recording = tj.record(branching, np.ones(2), on_branch_change="warn")
    with pytest.warns(BranchChangeWarning, match="was true when recorded"):
        value, gradient = recording.value_and_grad(-np.ones(2))
    assert value == 2.0
    assert_array_equal(gradient, [-2.0, -2.0])
    assert recording.n_recorded == 1


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="on_branch_change must be .*got 'ignore'"):
        tj.record(branching, np.ones(2), on_branch_change="ignore")


def while_loop(x):
    y = x[0]
    while y < 10.0:
        y = y * x[1]
    return y


DECISIONS = {
    "if": (branching, [1.0, 2.0], [-1.0, 2.0]),
    "while": (while_loop, [1.0, 2.0], [1.0, 5.0]),
    "boolean index": (lambda x: np.sum(x[x > 0.0] ** 2), [1.0, -2.0, 3.0], [1.0, 2.0, -3.0]),
    "argmax": (lambda x: x[np.argmax(x)] * 2.0 + np.argmax(x), [1.0, 3.0, 2.0], [4.0, 3.0, 2.0]),
    "sort": (lambda x: np.sum(np.sort(x) * np.arange(3.0)), [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]),
    "floor as an index": (lambda x: np.array([1.0, 5.0, 7.0])[int(np.floor(x[0]))] * x[1], [1.5, 2.0], [2.5, 2.0]),
    "int of a rounded value": (lambda x: sum(x[1] for _ in range(int(np.rint(x[0])))), [2.2, 3.0], [4.4, 3.0]),
    "searchsorted": (lambda x: np.searchsorted(np.array([0.0, 1.0, 2.0]), x[0]) * x[1], [0.5, 1.0], [1.5, 1.0]),
    "nonzero": (lambda x: np.sum(x[np.nonzero(x)] + 1.0), [0.0, 1.0], [2.0, 1.0]),
    "any": (lambda x: np.sum(x) if np.any(x > 2.0) else np.sum(x**2), [1.0, 1.5], [1.0, 2.5]),
    "bool": (lambda x: x[1] if x[0] else x[1] ** 2, [0.0, 3.0], [1.0, 3.0]),
    "equality": (lambda x: x[0] if x[0] == x[1] else x[1] ** 2, [2.0, 2.0], [2.0, 3.0]),
    "max of Python": (lambda x: max(x[0], x[1]) * 3.0, [1.0, 2.0], [3.0, 2.0]),
    "sorted": (lambda x: sorted([x[0], x[1], x[2]])[1] * 2.0, [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]),
    "inside an inner gradient": (
        lambda x: tj.grad(lambda y: y * y * x[1] if y > 1.0 else y)(x[0]),
        [2.0, 3.0],
        [0.5, 3.0],
    ),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_a_replay_across_a_decision_is_noticed(name):
    f, here, there = DECISIONS[name]
    here, there = np.array(here), np.array(there)
    recording = tj.record(f, here)
    for x in (here, there, here):
        value, gradient = recording.value_and_grad(x)
        assert_allclose(value, f(x), rtol=1e-15)
        assert_allclose(gradient, tj.grad(f)(x), rtol=1e-15)
    assert recording.n_recorded == 3
    strict = tj.record(f, here, on_branch_change="raise")
    with pytest.raises(BranchChangeError, match="when recorded, now"):
        strict.value(there)


def test_choices_between_values_are_no_decisions():
    def f(x):
        return (
            np.sum(np.where(x > 0.0, x * x, -x))
            + np.sum(np.maximum(x, 0.5))
            + np.sum(np.abs(x))
            + np.max(x) * np.min(x)
        )

    recording = tj.record(f, np.ones(3), on_branch_change="raise")
    x = np.array([1.0, -2.0, 0.25])
    assert recording.value(x) == f(x)
    assert_array_equal(recording.grad(x), tj.grad(f)(x))


def test_nan_as_the_outcome_of_a_decision():
    recording = tj.record(lambda x: x * 2.0 if x > 0.0 else x * 3.0, -1.0)
    assert np.isnan(recording.value(np.nan))
    assert recording.n_recorded == 1  # nan > 0 is false, as for -1


# Errors.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.value(np.ones(4)), r"x has shape \(4,\), but the recorded argument has shape \(3,\)"),
        (lambda r: r.value(np.ones((3, 1))), r"x has shape \(3, 1\)"),
        (lambda r: r.value(1.0), r"x has shape \(\)"),
        (lambda r: r.value(np.arange(3)), "x must be real floating-point numbers, got dtype int64"),
        (lambda r: r.value(np.ones(3) * 1j), "got dtype complex128"),
        (lambda r: r.jvp(np.ones(3), np.ones(2)), r"x_dot has shape \(2,\)"),
        (lambda r: r.vjp(np.ones(3), np.ones(2)), r"y_bar has shape \(2,\), but the output has shape \(3,\)"),
        (lambda r: r.grad(np.ones(3)), r"a gradient needs a function that returns a scalar, got one of shape \(3,\)"),
        (lambda r: r.hvp(np.ones(3), np.ones(3)), "a Hessian-vector product needs a function that returns a scalar"),
        (lambda r: r.hessian(np.ones(3)), "a Hessian needs a function that returns a scalar"),
    ],
)
def test_errors_of_replays(call, message):
    recording = tj.record(lambda x: x * 2.0, np.ones(3))
    with pytest.raises(ShapeError, match=message):
        call(recording)
    assert_array_equal(recording.value(np.ones(3)), np.full(3, 2.0))


def test_several_arguments_need_a_tuple():
    recording = tj.record(three, *ARGS, argnums=(0, 1))
    with pytest.raises(ShapeError, match="x has 1 entries, but 2 arguments are differentiated"):
        recording.value((1.0,))


def test_a_recording_inside_a_transform():
    """It stands apart from the tapes that are open; what would drop a derivative is refused."""
    with pytest.raises(TapejitError, match="tj.record inside a function that is being differentiated"):
        tj.grad(lambda x: tj.record(lambda y: y * y, x).value(2.0))(1.0)
    with pytest.raises(TapejitError):
        tj.grad(lambda x: tj.record(lambda y: y * x, 2.0).value(2.0))(1.0)
    square, scaled_by = tj.record(lambda y: y * y, 1.0), tj.record(lambda y, k: y * k, 1.0, 2.0)
    with pytest.raises(TapejitError, match="replays at plain numbers"):
        tj.grad(lambda x: square.grad(x))(1.0)
    with pytest.raises(TapejitError, match="replays at plain numbers"):
        tj.grad(lambda x: scaled_by.value(1.0, args=(x,)))(1.0)
    assert tj.grad(lambda x: x * square.value(3.0))(1.0) == 9.0


# Threads.


def in_threads(work, n_threads):
    """Run `work(k)` in threads that start together, with switches as frequent as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    barrier = threading.Barrier(n_threads)

    def start(k):
        barrier.wait()
        return work(k)

    try:
        with ThreadPoolExecutor(n_threads) as pool:
            return list(pool.map(start, range(n_threads)))
    finally:
        sys.setswitchinterval(interval)


def test_threads_record_on_tapes_of_their_own():
    def work(k):
        results = []
        for i in range(20):
            x = np.linspace(0.1, 1.0, 50 + k) + i
            with tj.Tape() as tape:
                a = tape.input(x)
                y = a[0]
                for j in range(40):
                    y = y * 0.5 + np.sin(a[j])
                f = np.sum(a * a) + y
            f.backward()
            results.append((f.value, a.grad, tj.grad(lambda x: np.sum(tj.grad(lambda z: np.sum(z**3))(x)))(x)))
        return results

    expected = [work(k) for k in range(4)]
    for got, reference in zip(in_threads(work, 4), expected, strict=True):
        for one, other in zip(got, reference, strict=True):
            for a, b in zip(one, other, strict=True):
                assert_array_equal(a, b)


def test_threads_replay_one_recording_at_once(rng):
    def f(x):
        return np.sum(np.sin(np.tile(x, 100)) * np.tile(x, 100)[::-1])

    recording = tj.record(f, np.ones(5))
    points = rng.standard_normal((4, 30, 5))
    expected = [
        [(recording.value(x), recording.grad(x), recording.hvp(x, x), recording.jvp(x, x)[1]) for x in part]
        for part in points
    ]

    def work(k):
        return [(recording.value(x), recording.grad(x), recording.hvp(x, x), recording.jvp(x, x)[1]) for x in points[k]]

    for got, reference in zip(in_threads(work, 4), expected, strict=True):
        for one, other in zip(got, reference, strict=True):
            for a, b in zip(one, other, strict=True):
                assert_array_equal(a, b)
    assert recording.n_recorded == 1


def test_threads_share_a_recording_whose_branch_changes_and_whose_static_arguments_differ(rng):
    """A thread that has just recorded must see its own values, not those of a replay by another."""

    def f(x, scale):
        return scale * np.sum(x * x) if x[0] > 0.0 else -scale * np.sum(x**3)

    recording = tj.record(f, np.ones(3), 1.0)
    points = rng.standard_normal((4, 60, 3))

    def work(k):
        wrong = 0
        for i, x in enumerate(points[k]):
            scale = float(i % 3)
            value, gradient = recording.value_and_grad(x, args=(scale,))
            reference = scale * (np.sum(x * x) if x[0] > 0.0 else -np.sum(x**3))
            exact = scale * (2.0 * x if x[0] > 0.0 else -3.0 * x * x)
            wrong += not (np.isclose(value, reference, rtol=1e-12) and np.allclose(gradient, exact, rtol=1e-12))
        return wrong

    assert in_threads(work, 4) == [0] * 4


# Pickling.


@pytest.mark.parametrize(
    ("f", "x"),
    [(loss, np.ones(4)), (branching, np.ones(2)), (lambda x: np.sum(np.exp(x)), np.ones(3)), (lambda x: x * 2.0, 3.0)],
)
def test_a_pickled_recording_replays(f, x):
    recording = tj.record(f, x)
    again = pickle.loads(pickle.dumps(recording))
    other = x * 0.5
    assert_array_equal(again.value(other), recording.value(other))
    assert_array_equal(again.grad(other), recording.grad(other))
    assert_array_equal(again.hessian(other), recording.hessian(other))
    assert str(again) == str(recording)


def test_a_pickled_recording_records_again_where_its_function_is_known():
    again = pickle.loads(pickle.dumps(tj.record(branching, np.ones(2))))
    assert again.value(-np.ones(2)) == 6.0
    assert again.n_recorded == 2


def test_a_recording_pickled_without_its_function_says_so():
    again = pickle.loads(pickle.dumps(tj.record(lambda x: x if x > 0.0 else -x, 1.0)))
    assert again.value(3.0) == 3.0
    with pytest.raises(BranchChangeError, match="pickled without its function"):
        again.value(-3.0)


def test_a_pickled_recording_keeps_its_variants():
    recording = tj.record(loss, np.ones(3), np.arange(3.0), 2)
    recording.value(np.ones(3), args=(np.arange(3.0), 3))
    again = pickle.loads(pickle.dumps(recording))
    x = np.array([0.1, 0.2, 0.3])
    assert again.value(x, args=(np.arange(3.0), 3)) == recording.value(x, args=(np.arange(3.0), 3))
    assert again.value(x) == recording.value(x)
    assert again.n_recorded == 2


def test_the_tape_of_a_recording():
    recording = tj.record(lambda x: x**3 + 2 * x**2, 3.0)
    assert recording.n_slots == recording.tape.n_slots
    assert recording.nbytes == 17 * recording.n_slots
    assert recording.tape.n_inputs == 1
    assert_array_equal(recording.tape.value[recording.tape.output_slots], [45.0])


def test_keyword_arguments_are_frozen():
    c = np.ones(3)
    recording = tj.record(lambda x, c=None: np.sum(c * x) if x[0] > 0 else np.sum(2.0 * c * x), np.ones(3), c=c)
    c[:] = 5.0
    assert recording.grad(np.ones(3)).tolist() == [1.0, 1.0, 1.0]
    assert recording.grad(-np.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert recording.grad(np.ones(3)).tolist() == [1.0, 1.0, 1.0]


def test_a_static_list_that_the_function_changes_is_new_at_every_recording():
    def f(x, factors):
        factors.append(2.0)
        return np.sum(x) * sum(factors) if x[0] > 0 else -np.sum(x) * sum(factors)

    recording = tj.record(f, np.ones(2), [1.0])
    assert recording.value(-np.ones(2)) == 6.0
    assert recording.value(np.ones(2)) == 6.0
