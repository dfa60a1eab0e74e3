"""`tj.loop` and `tj.while_loop`: the same bits under every schedule, and the derivatives of a plain loop."""

import math
import signal
import threading
from itertools import pairwise

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit.checkpointing import Action, Schedule, binomial, two_level, uniform
from tapejit.errors import DeterminismError, ScheduleError, ShapeError, UnsupportedError
from tapejit.testing import check_grads

# Loops: a step, a first state, parameters, and a number that is made of the last state.


def scalar_step(x, rate):
    return rate * x * (1.0 - x)


def array_step(x, p):
    return x + 0.1 * (np.roll(x, 1) * p[0] - np.sin(x) * p[1])


def nested_step(state, p, scale):
    position, (velocity, count) = state["x"], state["rest"]
    force = -p * position * scale["k"] if count % 2 else -p * np.sin(position)
    velocity = velocity + 0.01 * force
    return {"x": position + 0.01 * velocity, "rest": (velocity, count + 1)}


def branching_step(x, p):
    return 0.9 * x + p if x < 1.0 else x * 0.5 - 0.1 * p


@numba.njit
def compiled_step(x, p):
    y = np.empty_like(x)
    for i in range(x.size):
        y[i] = x[i] + 0.1 * (p[0] * x[i - 1] - p[1] * math.sin(x[i]))
    return y


@numba.njit
def compiled_pair(state, p):
    x, v = state
    return x + 0.1 * v, v - 0.1 * p * np.sin(x)


def nested_start(v):
    return {"x": v, "rest": (np.ones(3), 0)}


P = np.array([0.7, 0.4])
LOOPS = {
    "scalar": (lambda p, **k: tj.loop(scalar_step, 0.3, 37, p, **k), 3.2),
    "array": (lambda p, **k: np.sum(tj.loop(array_step, np.linspace(0, 1, 5), 23, p, **k) ** 2), P),
    "array, first state": (lambda x, **k: np.sum(tj.loop(array_step, x, 23, P, **k) ** 2), np.linspace(0, 1, 5)),
    "nested": (
        lambda p, **k: np.sum(tj.loop(nested_step, nested_start(p * np.arange(3.0)), 19, p, {"k": 2.0}, **k)["x"]),
        0.8,
    ),
    "branching": (lambda p, **k: tj.loop(branching_step, 0.3, 41, p, **k), 0.3),
    "compiled": (lambda p, **k: np.sum(tj.loop(compiled_step, np.linspace(0, 1, 5), 23, p, **k) ** 2), P),
    "compiled pair": (lambda p, **k: sum(tj.loop(compiled_pair, (p, 0.2 * p), 29, p, **k)), 0.8),
}
each_loop = pytest.mark.parametrize("name", LOOPS)


def unrolled(f):
    """The same with every step on the tape: what a plain loop records."""

    def whole(*args):
        return tj.grad(lambda t: t * f(*args))(1.0)  # nested, so that nothing is checkpointed

    return whole


@each_loop
@pytest.mark.parametrize("compile", [False, True])
def test_gradients_have_the_same_bits_under_every_number_of_checkpoints(name, compile):
    f, x = LOOPS[name]
    value, gradient = tj.value_and_grad(lambda x: f(x, compile=compile))(x)
    for checkpoints in (1, 2, 3, 7, 18, 200):
        again = tj.value_and_grad(lambda x, k=checkpoints: f(x, compile=compile, checkpoints=k))(x)
        assert again[0] == value
        assert_array_equal(again[1], gradient)


@each_loop
@pytest.mark.parametrize("compile", [False, True])
def test_derivatives_are_those_of_a_plain_loop(name, compile):
    f, x = LOOPS[name]

    def checkpointed(x):
        return f(x, compile=compile, checkpoints=4)

    def plain(x):
        return f(x)

    with tj.debug():  # records every step on the tape
        value, gradient = tj.value_and_grad(plain)(x)
        hessian = tj.hessian(plain)(x)
        jvp = tj.jvp(plain)(x, np.ones_like(x) if np.ndim(x) else 1.0)
    found = tj.value_and_grad(checkpointed)(x)
    assert_allclose(found[0], value, rtol=1e-13)
    assert_allclose(found[1], gradient, rtol=1e-11, atol=1e-13)
    assert_allclose(tj.hessian(checkpointed)(x), hessian, rtol=1e-9, atol=1e-11)
    assert_allclose(tj.jvp(checkpointed)(x, np.ones_like(x) if np.ndim(x) else 1.0)[1], jvp[1], rtol=1e-11)
    assert_allclose(plain(x), value, rtol=1e-13)


@each_loop
def test_check_grads_accepts_loops(name, rng):
    f, x = LOOPS[name]
    check_grads(lambda x: f(x, checkpoints=3), (x,), rng=rng)


@each_loop
def test_nested_transforms_record_the_steps(name):
    f, x = LOOPS[name]
    v = np.ones_like(x) if np.ndim(x) else 1.0
    expected = tj.hvp(lambda x: f(x, checkpoints=3))(x, v)
    assert_allclose(tj.grad(lambda x: np.sum(v * tj.grad(f)(x)))(x), expected, rtol=1e-9, atol=1e-12)
    assert_allclose(tj.jvp(tj.grad(f))(x, v)[1], expected, rtol=1e-9, atol=1e-12)


def test_schedules_of_all_kinds_give_the_same_bits(tmp_path):
    f, x = LOOPS["array"]
    expected = tj.grad(f)(x)
    steps = 23
    for schedule in (
        binomial(steps, 3),
        two_level(steps, 2, 3),
        uniform(steps),
        uniform(steps, 2),
        two_level(steps, 0, 4),
    ):
        for compile in (False, True):
            again = tj.grad(lambda x, s=schedule, c=compile: f(x, schedule=s, directory=tmp_path, compile=c))(x)
            assert_allclose(again, expected, rtol=1e-12)
            if not compile:
                assert_array_equal(again, expected)
    assert list(tmp_path.iterdir()) == []


# Inputs and outputs.


def filter_step(state, row, p):
    x, kind = row
    mean = state + p * (x - state)
    return mean, {"mean": mean, "square": mean * mean + kind}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("checkpoints", [1, 3, 50])
def test_inputs_and_outputs_are_differentiated(compile, checkpoints):
    rows = np.linspace(0.0, 1.0, 24).reshape(12, 2)

    def f(x, p):
        kinds = np.arange(12) if not compile else np.arange(12.0)
        last, out = tj.loop(
            filter_step, np.zeros(2), 12, p, inputs=(x, kinds), outputs=True, checkpoints=checkpoints, compile=compile
        )
        return np.sum(last) + np.sum(out["mean"][1:] * out["mean"][:-1]) + np.sum(np.sin(out["square"]))

    def plain(x, p):
        mean, total, before = np.zeros(2), 0.0, None
        for s in range(12):
            mean = mean + p * (x[s] - mean)
            total = total + np.sum(np.sin(mean * mean + float(s)))
            if before is not None:
                total = total + np.sum(mean * before)
            before = mean
        return total + np.sum(mean)

    assert_allclose(f(rows, 0.3), plain(rows, 0.3), rtol=1e-13)
    value, gradients = tj.value_and_grad(f, argnums=(0, 1))(rows, 0.3)
    expected, wanted = tj.value_and_grad(plain, argnums=(0, 1))(rows, 0.3)
    assert_allclose(value, expected, rtol=1e-13)
    for found, right in zip(gradients, wanted, strict=True):
        assert_allclose(found, right, rtol=1e-12, atol=1e-14)
    assert_allclose(tj.hvp(f)(rows, 0.3, rows), tj.hvp(plain)(rows, 0.3, rows), rtol=1e-10, atol=1e-12)
    assert_allclose(tj.jvp(f)(rows, 0.3, rows)[1], tj.jvp(plain)(rows, 0.3, rows)[1], rtol=1e-12)


def test_inputs_that_a_step_takes_as_plain_numbers():
    def f(p):
        step = lambda x, row, p: x * p + math.sqrt(row)  # noqa: E731
        return tj.loop(step, 0.1, 150, p, inputs=np.arange(150.0), checkpoints=4, compile=True)

    assert_allclose(
        tj.grad(f)(0.5),
        tj.grad(lambda p: tj.loop(lambda x, r, p: x * p + r, 0.1, 150, p, inputs=np.arange(150.0) ** 0.5))(0.5),
    )


def test_no_rows_of_inputs():
    def f(p, rows):
        last, out = tj.loop(lambda x, row, p: (x * p + row, x), 0.5 * p, 0, p, inputs=rows, outputs=True)
        assert out is None
        return last * 2.0

    for rows in (np.empty(0), np.empty((0, 3))):
        assert tj.grad(f)(0.7, rows) == 1.0
        assert f(0.7, rows) == 0.7


def test_rows_of_inputs_are_counted():
    with pytest.raises(ShapeError, match=r"inputs has shape \(3,\), but the loop has 4 steps"):
        tj.grad(lambda p: tj.loop(lambda x, row, p: x * p + row, 1.0, 4, p, inputs=np.ones(3)))(2.0)
    with pytest.raises(ShapeError, match=r"inputs\[0\] has shape \(\)"):
        tj.loop(lambda x, row: x, 1.0, 4, inputs=(1.0,))


# Sizes at the edges.


@pytest.mark.parametrize("n_steps", [0, 1, 2, 3])
@pytest.mark.parametrize("checkpoints", [1, 2, 50])
@pytest.mark.parametrize("compile", [False, True])
def test_short_loops(n_steps, checkpoints, compile):
    def f(x):
        return np.sum(tj.loop(array_step, x, n_steps, P, checkpoints=checkpoints, compile=compile) ** 3)

    def plain(x):
        for _ in range(n_steps):
            x = array_step(x, P)
        return np.sum(x**3)

    x = np.array([0.1, 0.5, -0.3])
    assert_allclose(tj.grad(f)(x), tj.grad(plain)(x), rtol=1e-12)
    assert_allclose(tj.hvp(f)(x, x), tj.hvp(plain)(x, x), rtol=1e-11)
    assert_allclose(f(x), plain(x))


def test_several_loops_on_one_tape_with_operations_between():
    def f(x):
        y = tj.loop(array_step, x * 2.0, 9, P, checkpoints=2)
        z = tj.loop(compiled_step, np.sin(y), 8, y[:2], checkpoints=3)
        return np.sum(z * y) + x[0]

    def plain(x):
        y = x * 2.0
        for _ in range(9):
            y = array_step(y, P)
        z = np.sin(y)
        for _ in range(8):
            z = tj.native(compiled_step)(z, y[:2])
        return np.sum(z * y) + x[0]

    x = np.linspace(-1, 1, 4)
    assert_allclose(tj.grad(f)(x), tj.grad(plain)(x), rtol=1e-12)
    assert_allclose(tj.hessian(f)(x), tj.hessian(plain)(x), rtol=1e-10, atol=1e-12)
    assert_allclose(tj.jacobian(lambda x: tj.loop(array_step, x, 9, P, checkpoints=2))(x).shape, (4, 4))


@pytest.mark.parametrize("compile", [False, True])
def test_jacobian_of_many_rows(compile):
    def f(x, **k):
        return tj.loop(array_step, x, 11, P, **k)

    x = np.linspace(-1, 1, 6)
    with tj.debug():
        expected = tj.jacobian(f)(x)
    assert_allclose(tj.jacobian(lambda x: f(x, checkpoints=2, compile=compile))(x), expected, rtol=1e-12, atol=1e-15)


def test_large_blocks_around_a_loop_keep_their_adjoints():
    """Blocks of more than a tile are swept together, and what only they read keeps no adjoint: a loop reads them, too."""

    def f(x, use):
        y = np.sin(x) * 2.0
        z = y * y + 1.0
        w = use(z)
        return np.sum(np.exp(-z * w) * w)

    x = np.linspace(0.0, 1.0, 2000)
    looped = tj.grad(f)(x, lambda z: tj.loop(lambda s: s * 0.9 + 0.1, z, 5, checkpoints=2))

    def by_hand(z):
        for _ in range(5):
            z = z * 0.9 + 0.1
        return z

    assert_allclose(looped, tj.grad(f)(x, by_hand), rtol=1e-12)


def test_loop_inside_the_step_of_a_loop():
    def inner(x, p):
        return x + 0.05 * np.sin(p * x)

    def outer(x, p):
        return tj.loop(inner, x, 6, p, checkpoints=2) * 0.9

    def f(p):
        return np.sum(tj.loop(outer, np.array([0.3, 0.6]), 7, p, checkpoints=2))

    def plain(p):
        x = np.array([0.3, 0.6])
        for _ in range(7):
            for _ in range(6):
                x = inner(x, p)
            x = x * 0.9
        return np.sum(x)

    for transform in (tj.grad, tj.hessian, lambda g: tj.grad(tj.grad(g))):
        assert_allclose(transform(f)(1.3), transform(plain)(1.3), rtol=1e-10)


# Other ways to sweep a tape.


def test_pullback_may_be_called_again():
    x = np.linspace(0, 1, 4)
    value, pullback = tj.vjp(lambda x: tj.loop(array_step, x, 9, P, checkpoints=2))(x)
    first = pullback(np.ones(4))
    assert_array_equal(pullback(np.ones(4)), first)
    assert_allclose(pullback(2.0 * np.ones(4)), 2.0 * first)
    assert value.shape == (4,)


def test_recordings_replay_loops():
    def f(x, p):
        return np.sum(tj.loop(branching_step_of_arrays, x, 9, p, checkpoints=2) ** 2)

    x = np.linspace(0, 1, 4)
    recording = tj.record(f, x, 0.3)
    for point, p in [(x, 0.3), (x + 0.4, 0.3), (3.0 * x, 0.9), (x, 0.2)]:
        value, gradient = tj.value_and_grad(f)(point, p)
        found = recording.value_and_grad(point, args=(p,))
        assert_allclose(found[0], value, rtol=1e-13)
        assert_allclose(found[1], gradient, rtol=1e-12)
        assert_allclose(recording.value(point, args=(p,)), value)
        assert_allclose(recording.hvp(point, x, args=(p,)), tj.hvp(f)(point, p, x), rtol=1e-11)
    assert recording.n_recorded == 1


def branching_step_of_arrays(x, p):
    return 0.9 * x + p if np.sum(x) < 3.0 else x * 0.5 - 0.1 * p


def test_compiled_functions_interpret_tapes_with_loops():
    def f(x):
        return np.sum(tj.loop(array_step, x, 9, P, checkpoints=2) ** 2)

    x = np.linspace(0, 1, 4)
    fast = tj.compile(f, x)
    assert "tj.loop" in str(fast)
    assert_allclose(fast.grad(x + 0.1), tj.grad(f)(x + 0.1), rtol=1e-12)
    values, gradients = fast.batch(np.stack([x, x + 0.1, x + 0.2] * 4))
    assert_allclose(values[1], f(x + 0.1))
    assert_allclose(gradients[2], tj.grad(f)(x + 0.2), rtol=1e-12)


def test_minimize_with_a_loop():
    def f(x):
        return np.sum((tj.loop(array_step, x, 12, P, checkpoints=3) - 0.5) ** 2)

    best = tj.minimize(f, np.zeros(4), method="BFGS")
    assert best.fun < 1e-10


def test_define_by_run():
    with tj.Tape() as tape:
        x = tape.input(np.array([0.1, 0.2]))
        y = np.sum(tj.loop(array_step, x, 5, P, checkpoints=2))
    y.backward()
    assert_allclose(x.grad, tj.grad(lambda x: np.sum(tj.loop(array_step, x, 5, P)))(x.value), rtol=1e-13)
    tape.forward([0.3, 0.1])
    assert_allclose(y.value, np.sum(tj.loop(array_step, np.array([0.3, 0.1]), 5, P)))


def test_several_threads_replay_one_recording():
    def f(x):
        return np.sum(tj.loop(array_step, x, 30, P, checkpoints=3) ** 2)

    x = np.linspace(0, 1, 4)
    recording = tj.record(f, x)
    points = [x + 0.01 * i for i in range(8)]
    expected = [tj.grad(f)(point) for point in points]
    found = [None] * len(points)

    def work(i):
        for _ in range(5):
            found[i] = recording.grad(points[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(points))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for gradient, right in zip(found, expected, strict=True):
        assert_allclose(gradient, right, rtol=1e-12)


# Loops that end when they have come to an end.


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("checkpoints", [1, 2, 5, 1000])
def test_while_loop(compile, checkpoints):
    def f(p):
        last = tj.while_loop(
            lambda x: np.sum(x) < 40.0,
            lambda x, p: x * 1.1 + p,
            np.ones(3),
            p,
            checkpoints=checkpoints,
            compile=compile,
        )
        return np.sum(last**2)

    def plain(p):
        x = np.ones(3)
        while tj.value(np.sum(x)) < 40.0:
            x = x * 1.1 + p
        return np.sum(x**2)

    for p in (0.1, 0.7, 90.0):
        assert_allclose(f(p), plain(p))
        assert_allclose(tj.value_and_grad(f)(p), tj.value_and_grad(plain)(p), rtol=1e-12)
        assert_allclose(tj.hessian(f)(p), tj.hessian(plain)(p), rtol=1e-10)
        assert_allclose(tj.jvp(f)(p, 1.0)[1], tj.grad(plain)(p), rtol=1e-12)
        assert_allclose(tj.grad(tj.grad(f))(p), tj.hessian(plain)(p), rtol=1e-10)


def test_while_loop_that_never_starts():
    assert tj.grad(lambda x: tj.while_loop(lambda x: x < 0.0, lambda x: 2.0 * x, x * 3.0))(1.0) == 3.0


def test_while_loop_replays_another_number_of_steps():
    def f(p):
        return tj.while_loop(lambda x: x < 10.0, lambda x, p: x * p, 1.0, p, checkpoints=2)

    recording = tj.record(f, 1.5)
    for p in (1.2, 3.0, 1.01):
        assert_allclose(recording.value_and_grad(p), tj.value_and_grad(f)(p), rtol=1e-13)


# What is refused, by name.


@pytest.mark.parametrize(
    "step, state, message",
    [
        (lambda x, p: x[:-1] * p, np.ones(3), r"state changes in step 0: .* shape \(3,\), now .* shape \(2,\)"),
        (
            lambda x, p: {"a": x["a"] * p, "b": 1},
            {"a": 1.0, "b": 1.0},
            r"state\['b'\] changes in step 0: it began as a float, now it is int 1",
        ),
        (
            lambda x, p: {"a": x["a"] * p},
            {"a": 1.0, "b": 1.0},
            r"state changes in step 0: .* keys \('a', 'b'\), now .* keys \('a',\)",
        ),
        (lambda x, p: (x[0] * p,), (1.0, 2.0), "it began as a tuple of 2, now it is a tuple of 1"),
        (lambda x, p: None, 1.0, "now it is NoneType None"),
        (lambda x, p: x * p, np.ones(2, np.float32), "state has dtype float32; tapejit computes in float64"),
        (lambda x, p: x * p, 1, "began as something that is not differentiated"),
    ],
)
@pytest.mark.parametrize("differentiated", [True, False])
def test_states_that_change_are_refused_by_name(step, state, message, differentiated):
    def f(p):
        tj.loop(step, state, 3, p)
        return p

    with pytest.raises(ShapeError, match=message):
        tj.grad(f)(2.0) if differentiated else f(2.0)


def test_state_that_changes_later_names_the_step():
    calls = []

    def step(x, p):
        calls.append(1)
        return x * p if len(calls) < 6 else x[:1]

    with pytest.raises(ShapeError, match=r"changes in step \d"):
        tj.grad(lambda p: np.sum(tj.loop(step, np.ones(2), 20, p)))(0.5)


@pytest.mark.parametrize("use", [lambda x, q: x * q, lambda x, q: np.sin(x) + 2.0 * q, lambda x, q: q])
def test_active_values_from_outside_of_the_step_are_refused(use):
    with pytest.raises(UnsupportedError, match="pass what it depends on as state, inputs or"):
        tj.grad(lambda q: tj.loop(lambda x: use(x, q), q * 1.0, 5))(0.5)


@pytest.mark.parametrize("compile", [False, True])
def test_step_that_draws_random_numbers_is_refused(compile):
    rng = np.random.default_rng(1)
    with pytest.raises(DeterminismError, match="step"):
        tj.grad(lambda p: tj.loop(lambda x, p: x * p + rng.normal(), 0.1, 200, p, checkpoints=3, compile=compile))(0.5)


def test_step_that_counts_its_calls_is_refused():
    calls = [0]

    def step(x, p):
        calls[0] += 1
        return x * p + (1e-3 * calls[0])

    with pytest.raises(DeterminismError, match="given|gave"):
        tj.grad(lambda p: tj.loop(step, 0.1, 20, p, checkpoints=3))(0.5)


def test_wrong_schedules_are_refused():
    def f(**options):
        return tj.grad(lambda p: tj.loop(scalar_step, 0.3, 10, p, **options))(3.0)

    for options, message in [
        ({"schedule": binomial(9, 3)}, "for 9 steps, but the loop has 10"),
        ({"schedule": binomial(10, 3), "checkpoints": 3}, "got checkpoints and schedule"),
        ({"schedule": two_level(10, 1, 2)}, "name a directory"),
        ({"checkpoints": 0}, "at least 1"),
    ]:
        with pytest.raises(ScheduleError, match=message):
            f(**options)


# Exceptions and signals.


class Interruption(Exception):
    pass


@pytest.mark.parametrize("fails_at", [1, 5, 20, 33, 60])
def test_exceptions_in_the_middle_leave_nothing_half_done(fails_at, tmp_path):
    calls = [0]

    def step(x, p):
        calls[0] += 1
        if calls[0] == fails_at:
            raise Interruption
        return array_step(x, p)

    def f(p):
        return np.sum(tj.loop(step, np.ones(3), 20, p, schedule=two_level(20, 2, 2), directory=tmp_path))

    with pytest.raises(Interruption):
        tj.grad(f)(P)
    assert list(tmp_path.iterdir()) == []
    assert tj.grad(lambda x: x * x)(3.0) == 6.0
    assert_allclose(tj.grad(f)(P), tj.grad(lambda p: np.sum(tj.loop(array_step, np.ones(3), 20, p)))(P), rtol=1e-12)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("compile", [False, True])
def test_ctrl_c_in_the_middle_comes_out(compile, tmp_path):
    def turn(x, p):
        return np.sin(np.roll(x, 1) + p[0] * p[1])

    n_steps = 8_000_000 if compile else 500_000
    schedule = two_level(n_steps, 30, 30)

    def f(p):
        return np.sum(tj.loop(turn, np.ones(3), n_steps, p, schedule=schedule, directory=tmp_path, compile=compile))

    tj.grad(lambda p: np.sum(tj.loop(turn, np.ones(3), 200, p, compile=compile)))(P)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for after in (0.1, 0.6):
            signal.setitimer(signal.ITIMER_REAL, after)
            with pytest.raises(KeyboardInterrupt):
                tj.grad(f)(P)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert list(tmp_path.iterdir()) == []
    assert_allclose(tj.grad(lambda p: np.sum(tj.loop(array_step, np.ones(3), 2, p)))(P).shape, (2,))


# Compiled steps.


def test_compiled_step_whose_decisions_change_is_recorded_again():
    def f(p, **k):
        return tj.loop(branching_step, 0.3, 400, p, **k)

    with tj.debug():
        expected = tj.value_and_grad(f)(0.3)
    for checkpoints in (3, 20, 400):
        found = tj.value_and_grad(lambda p, k=checkpoints: f(p, checkpoints=k, compile=True))(0.3)
        assert_allclose(found, expected, rtol=1e-12)


def test_compiled_step_that_changes_on_the_way_is_noticed():
    """It is the same at the first and at the last step."""
    calls = [0]

    def step(x, p):
        calls[0] += 1
        return x + p if calls[0] == 7 else x * p

    with pytest.raises(DeterminismError, match="or computes something else of active values"):
        tj.grad(lambda p: tj.loop(step, 0.1, 30_000, p, checkpoints=100, compile=True))(0.99)


def test_compiled_step_that_asks_for_types_is_noticed():
    def step(x, p):
        return x * p + (0.1 if isinstance(x, float) and x > 0.5 else 0.0)

    def grow(x, p):
        return step(x, p) if isinstance(x, float) else x * p

    with pytest.raises(DeterminismError):
        tj.grad(lambda p: tj.loop(grow, 0.1, 30_000, p, checkpoints=100, compile=True))(1.01)


def test_step_that_decides_on_plain_values_is_recorded_every_time():
    def step(x, p):
        return x * p if tj.value(x) > 0.5 else x + 0.3

    def plain(p):
        x = 0.9
        for _ in range(150):
            x = step(x, p)
        return x

    found = tj.value_and_grad(lambda p: tj.loop(step, 0.9, 150, p, checkpoints=5, compile=True))(0.7)
    assert_allclose(found, tj.value_and_grad(plain)(0.7), rtol=1e-13)


def test_zero_adjoint_and_infinite_partial_contribute_nothing_in_compiled_steps():
    def step(x, p):
        return np.stack([x[0] * 0.9 + p, np.sqrt(x[1] * 0.0)])

    def f(p, **k):
        return tj.loop(step, np.array([0.5, 1.0]), 150, p, **k)[0]

    assert_allclose(
        tj.grad(lambda p: f(p, compile=True, checkpoints=4))(0.2), tj.grad(lambda p: f(p, compile=False))(0.2)
    )


def test_values_that_are_not_finite_go_through_loops():
    def f(x, **k):
        return tj.loop(lambda x: x * x, x, 200, **k)

    for compile in (False, True):
        value, gradient = tj.value_and_grad(lambda x, c=compile: f(x, compile=c, checkpoints=5))(2.0)
        assert value == math.inf and not math.isfinite(gradient)
        value, gradient = tj.value_and_grad(lambda x, c=compile: f(x, compile=c, checkpoints=5))(math.nan)
        assert math.isnan(value) and math.isnan(gradient)


def test_long_loop_is_compiled_and_agrees_with_the_plain_one():
    x = np.linspace(0.0, 1.0, 40)

    def f(p, **k):
        return np.sum(tj.loop(array_step, x, 1500, p, **k) ** 2)

    found = [tj.value_and_grad(lambda p, k=k: f(p, checkpoints=k))(P) for k in (10, 100, 1500)]
    for (value, gradient), (again, other) in pairwise(found):
        assert value == again
        assert_array_equal(gradient, other)
    check_value, check_gradient = tj.value_and_grad(lambda p: f(p, compile=False, checkpoints=100))(P)
    assert_allclose(found[0][0], check_value, rtol=1e-10)
    assert_allclose(found[0][1], check_gradient, rtol=1e-9)


# Random loops.


@settings(max_examples=40)
@given(data=st.data(), n_steps=st.integers(0, 30), n=st.integers(1, 4), compile=st.booleans())
def test_random_loops_equal_the_plain_ones(data, n_steps, n, compile):
    kinds = data.draw(st.lists(st.sampled_from(["sin", "mul", "roll", "div", "where", "sum"]), min_size=1, max_size=5))
    checkpoints = data.draw(st.integers(1, 40))

    def step(x, p):
        for kind in kinds:
            if kind == "sin":
                x = np.sin(x) + p[0]
            elif kind == "mul":
                x = x * p + 0.1
            elif kind == "roll":
                x = 0.5 * (np.roll(x, 1) + x)
            elif kind == "div":
                x = x / (2.0 + x * x)
            elif kind == "where":
                x = np.where(x > 0.2, x * p[-1], x - 0.1)
            else:
                x = x - np.sum(x) * 0.2
        return x

    def f(p):
        return np.sum(tj.loop(step, 0.5 * p, n_steps, p, checkpoints=checkpoints, compile=compile) ** 2)

    def plain(p):
        x = 0.5 * p
        for _ in range(n_steps):
            x = step(x, p)
        return np.sum(x**2)

    p = np.linspace(0.3, 0.9, n)
    assert_allclose(f(p), plain(p), rtol=1e-13)
    assert_allclose(tj.grad(f)(p), tj.grad(plain)(p), rtol=1e-9, atol=1e-11)
    assert_allclose(tj.hvp(f)(p, p), tj.hvp(plain)(p, p), rtol=1e-8, atol=1e-10)


def test_custom_schedule_is_carried_out():
    actions = [Action("store", 0, slot=0), Action("advance", 0, to=1), Action("reverse", 1)]
    actions += [Action("restore", 0, slot=0), Action("reverse", 0), Action("free", 0, slot=0)]
    mine = Schedule(2, 1, actions)
    for _ in range(2):
        for compile in (False, True):
            found = tj.grad(lambda p, c=compile: tj.loop(scalar_step, 0.3, 2, p, schedule=mine, compile=c))(3.0)
            assert_allclose(found, tj.grad(lambda p: scalar_step(scalar_step(0.3, p), p))(3.0), rtol=1e-13)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("n_steps", [3, 300])
def test_random_outputs_of_a_deterministic_state_are_refused(compile, n_steps):
    rng = np.random.default_rng(0)

    def total(x):
        return np.sum(tj.loop(lambda s: (0.99 * s, s * rng.uniform()), x, n_steps, outputs=True, compile=compile)[1])

    for transform in (tj.grad, lambda f: lambda x: tj.hvp(f)(x, 1.0)):
        with pytest.raises(DeterminismError):
            transform(total)(1.0)


def test_stop_test_on_an_active_value_from_outside_is_refused():
    def power(p):
        return tj.while_loop(lambda s: s < p[1], lambda s, a: s * a, 1.0, p[0])

    def held(p):
        return tj.while_loop(lambda s: s[0] < s[1], lambda s, a: (s[0] * a, s[1]), (1.0, p[1]), p[0])[0]

    p, other = np.array([1.3, 5.0]), np.array([1.3, 50.0])
    for transform in (tj.grad, tj.hessian, lambda f: tj.record(f, p).value):
        with pytest.raises(UnsupportedError, match="stop test of tj.while_loop uses an active value"):
            transform(power)(p)
    assert_allclose(tj.record(held, p).value(other), 1.3**15, rtol=1e-14)


def test_a_run_that_is_left_over_serves_the_same_bits_alone():
    with tj.Tape() as tape:
        tj.loop(lambda s: s * 2.0, tape.input(0.0), 3)
    (call,) = tape.calls
    assert np.signbit(call._take_run(np.array([-0.0])).numbers.start).all()
    call.start(np.array([np.nan]))
    left = call._forwarded[1]
    assert call._take_run(np.array([np.nan])) is left
