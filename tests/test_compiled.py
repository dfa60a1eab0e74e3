"""Compiled functions: what users call, parameters, static arguments, branches, threads, pickles, batches, kernels in Numba code."""

import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import scipy.optimize
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit import compiled
from tapejit.compiler import kernel as kernels
from tapejit.errors import (
    BranchChangeError,
    BranchChangeWarning,
    CompileError,
    ShapeError,
    TapeError,
    TapejitError,
)

N = 30
RTOL = 1e-12


def rosenbrock(x):
    total = 0.0
    for i in range(len(x) - 1):
        total = total + 100.0 * (x[i + 1] - x[i] ** 2) ** 2 + (1.0 - x[i]) ** 2
    return total


def springs(x, k, rest=0.0):
    total = 0.0
    for i in range(len(x) - 1):
        total = total + 0.5 * k * (x[i + 1] - x[i] - rest) ** 2
    return total


@numba.njit
def native_springs(x, k):
    total = 0.0
    for i in range(x.size - 1):
        total += 0.5 * k * (x[i + 1] - x[i]) ** 2
    return total


def signed(x):
    """One branch decides everything."""
    total = 0.0
    for i in range(20):
        total = total + (x[i] * x[i] if x[0] > 0.0 else np.exp(x[i]))
    return total


def layers(x):
    return [np.sin(x[i]) * x[i + 1] for i in range(6)]


def check(fast, f, x, *args):
    """Value and gradient of a compiled function against the transforms of the plain one."""
    value, gradient = fast.value_and_grad(x, *args)
    expected, expected_gradient = tj.value_and_grad(f)(x, *(args[0] if args else ()))
    assert_allclose(value, expected, rtol=1e-14)
    assert_allclose(gradient, expected_gradient, rtol=RTOL, atol=RTOL * np.abs(expected_gradient).max())


@pytest.fixture
def points(rng):
    return rng.uniform(-1.0, 1.0, (5, N))


# What it gives.


def test_value_and_gradient_are_those_of_the_interpreted_replay(points):
    fast, recording = tj.compile(rosenbrock, points[0]), tj.record(rosenbrock, points[0])
    for x in points:
        value, gradient = fast.value_and_grad(x)
        expected, expected_gradient = recording.value_and_grad(x)
        assert value == expected and isinstance(value, float)
        assert_allclose(gradient, expected_gradient, rtol=RTOL, atol=RTOL * np.abs(expected_gradient).max())
        assert fast.value(x) == expected == fast(x)
        assert_array_equal(fast.grad(x), gradient)
    (variant,) = fast.stats().variants
    assert variant.n_compiled == 20 and variant.n_interpreted == 0 and not variant.why_interpreted
    assert fast.n_recorded == 1 and fast.stats().n_checked == 1


def test_the_gradient_is_the_callers_own(points):
    fast = tj.compile(rosenbrock, points[0])
    first = fast.grad(points[1])
    kept = first.copy()
    fast.grad(points[2])
    assert_array_equal(first, kept)


def test_everything_that_a_recording_takes(points):
    x, v = points[:2]
    fast, recording = tj.compile(rosenbrock, x), tj.record(rosenbrock, x)
    assert fast.value(list(x)) == recording.value(list(x))
    assert fast.value(x[::-1]) == recording.value(x[::-1])
    assert_allclose(fast.grad(x.astype(np.float32)), recording.grad(x.astype(np.float32)), rtol=RTOL)
    assert_array_equal(fast.hvp(x, v), recording.hvp(x, v))
    assert_array_equal(fast.hessian(x), recording.hessian(x))
    assert_array_equal(fast.jvp(x, v), recording.jvp(x, v))
    assert fast.vjp(x, 2.0)[0] == recording.vjp(x, 2.0)[0]
    assert_allclose(fast.vjp(x, 2.0)[1], recording.vjp(x, 2.0)[1], rtol=RTOL)
    assert_allclose(fast.jacobian(x), recording.jacobian(x), rtol=RTOL)


def test_several_outputs(points, rng):
    fast, recording = tj.compile(layers, points[0]), tj.record(layers, points[0])
    for x in points:
        y_bar = rng.standard_normal(6)
        assert_array_equal(fast(x), recording.value(x))
        for ours, theirs in zip(fast.vjp(x, y_bar), recording.vjp(x, y_bar), strict=True):
            assert_allclose(ours, theirs, rtol=RTOL)
        assert_allclose(fast.jacobian(x), recording.jacobian(x), rtol=RTOL)
    with pytest.raises(ShapeError, match="scalar"):
        fast.value_and_grad(points[0])
    with pytest.raises(ShapeError, match="y_bar"):
        fast.vjp(points[0], np.ones(5))


def test_several_arguments(rng):
    def f(a, k, b):
        return np.sum(k * a * np.sin(b)) + a[0] ** 3

    a, b = rng.uniform(0.5, 1.0, (2, 40))
    fast, recording = tj.compile(f, a, 2.0, b, argnums=(2, 0)), tj.record(f, a, 2.0, b, argnums=(2, 0))
    for scale in (1.0, 1.5):
        value, gradients = fast.value_and_grad((scale * b, a))
        expected, expected_gradients = recording.value_and_grad((scale * b, a))
        assert_allclose(value, expected, rtol=1e-14)  # np.sum adds up otherwise
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            assert_allclose(ours, theirs, rtol=RTOL)
    assert_allclose(fast(a, 3.0, b), recording.value((b, a), args=(3.0,)), rtol=1e-14)
    for ours, theirs in zip(fast.jacobian((b, a)), recording.jacobian((b, a)), strict=True):
        assert_allclose(ours, theirs, rtol=RTOL)


def test_a_scalar_argument():
    def f(x):
        for _ in range(50):
            x = np.sin(x) + 0.5 * x
        return x

    fast = tj.compile(f, 0.3)
    for x in (0.3, 0.4):
        value, slope = fast.value_and_grad(x)
        assert isinstance(slope, float)
        assert_allclose((value, slope), tj.value_and_grad(f)(x), rtol=RTOL)


@pytest.mark.parametrize("shape", [(3, 4), (2, 0), (1,)])
def test_shapes_are_kept(shape, rng):
    fast = tj.compile(lambda x: np.sum(x * x * x), rng.standard_normal(shape))
    x = rng.standard_normal(shape)
    assert_allclose(fast.grad(x), 3.0 * x * x, rtol=1e-14)


# Arguments.


def test_floats_are_parameters(points):
    fast = tj.compile(springs, points[0], 2.0, rest=0.25)
    for k, rest in ((2.0, 0.25), (3.0, 0.25), (-1.0, 0.5), (2.0, 0.25)):
        value, gradient = fast.value_and_grad(points[1], (k,), {"rest": rest})
        expected, expected_gradient = tj.value_and_grad(lambda x, k=k, rest=rest: springs(x, k, rest))(points[1])
        assert_allclose(value, expected, rtol=1e-14)
        assert_allclose(gradient, expected_gradient, rtol=RTOL, atol=1e-14)
    assert fast.n_recorded == 1
    # Those of `compile` where none are given, also after others.
    assert_allclose(fast.value(points[1]), springs(points[1], 2.0, 0.25), rtol=1e-14)
    # A call of the function has the function's own defaults.
    assert_allclose(fast(points[1], 2.0), springs(points[1], 2.0), rtol=1e-14)


def test_arrays_of_floats_are_parameters(points):
    def f(x, data):
        return np.sum((x - data) ** 2)

    fast = tj.compile(f, points[0], points[1])
    data = points[2].copy()
    for _ in range(3):
        data *= 1.5  # changed in place, as a caller may
        check(fast, f, points[3], (data,))
    assert fast.n_recorded == 1


def test_parameters_of_native_code(points):
    fast = tj.compile(native_springs, points[0], 2.0)
    for k in (2.0, 5.0):
        expected = tj.value_and_grad(lambda x, k=k: springs(x, k))(points[1])
        value, gradient = fast.value_and_grad(points[1], (k,))
        assert_allclose(value, expected[0], rtol=1e-13)
        assert_allclose(gradient, expected[1], rtol=1e-11, atol=1e-13)
    assert fast.n_recorded == 1


def test_other_arguments_are_static():
    def f(x, n, kind, index):
        for _ in range(n):
            x = np.sin(x) if kind == "sin" else np.cos(x)
        return np.sum(x[index])

    x = np.linspace(0.1, 0.9, 9)
    fast = tj.compile(f, x, 3, "sin", np.array([0, 2]))
    for args in (
        (3, "sin", np.array([0, 2])),
        (4, "sin", np.array([0, 2])),
        (3, "cos", np.array([1, 2])),
        (4, "sin", np.array([0, 2])),
    ):
        for _ in range(3):
            check(fast, f, x + 0.01, args)
    assert fast.n_recorded == 3
    assert [variant.why for variant in fast.stats().variants].count("other static arguments") == 2
    assert all(variant.n_compiled for variant in fast.stats().variants)


def test_another_shape_is_another_variant(points):
    fast = tj.compile(rosenbrock, points[0])
    for _ in range(3):
        check(fast, rosenbrock, points[1])
        check(fast, rosenbrock, points[1][:7])
    assert fast.n_recorded == 2
    assert "other shapes" in str(fast.stats())


def test_an_example_is_not_changed_by_its_owner(points):
    data = points[0].copy()
    fast = tj.compile(lambda x, data: np.sum(x * data), points[1], data)
    data[:] = 0.0
    assert_allclose(fast.grad(points[2]), points[0])


@tj.compile
@numba.njit
def decorated_native(x, n):
    total = 0.0
    for i in range(n):
        total += x[i] * x[i]
    return total


@numba.njit
def writes(x, work):
    work[0] += x[0]
    x *= 2.0
    return (x * work).sum()


def test_arguments_are_not_written_to(points):
    x, work = points[0].copy(), points[1].copy()
    fast = tj.compile(writes, x, work)
    for _ in range(3):
        fast.value_and_grad(x)
        fast.value_and_grad(x, (work,))
        fast(x, work)
    assert_array_equal(x, points[0])
    assert_array_equal(work, points[1])


# As a decorator.


@tj.compile
def decorated(x, k=2.0):
    """Springs."""
    return springs(x, k)


@tj.compile(argnums=1, on_branch_change="raise")
def decorated_with_options(k, x):
    return springs(x, k)


def test_decorator(points):
    assert decorated.__name__ == "decorated" and decorated.__doc__ == "Springs."
    for x in points:
        assert_allclose(decorated(x), springs(x, 2.0), rtol=1e-14)
        assert_allclose(decorated(x, 3.0), springs(x, 3.0), rtol=1e-14)
        assert_allclose(decorated(x, k=3.0), springs(x, 3.0), rtol=1e-14)
        assert_allclose(decorated.grad(x, (3.0,)), tj.grad(springs)(x, 3.0), rtol=RTOL, atol=1e-14)
        assert_allclose(decorated_with_options.grad(x, (3.0,)), tj.grad(springs)(x, 3.0), rtol=RTOL, atol=1e-14)
    assert any(variant.n_compiled for variant in decorated.stats().variants)
    assert pickle.loads(pickle.dumps(decorated)) is decorated


def test_decorated_native_code(points):
    for n in (20, 10, 20):
        for x in points[:3]:
            assert_allclose(decorated_native.grad(x, (n,)), np.where(np.arange(N) < n, 2.0 * x, 0.0), rtol=1e-14)
    assert decorated_native.n_recorded == 2


def test_decorated_functions_may_be_differentiated_and_called_in_others(points):
    assert_allclose(tj.grad(decorated)(points[0]), tj.grad(springs)(points[0], 2.0), rtol=RTOL)
    assert_allclose(
        tj.grad(lambda x: decorated(x) ** 2)(points[0]), tj.grad(lambda x: springs(x, 2.0) ** 2)(points[0]), rtol=RTOL
    )
    with pytest.raises(TapejitError, match="lose its derivative"):
        tj.grad(lambda x: decorated.value(x))(points[0])


def test_nothing_recorded_yet_is_said():
    fast = tj.compile(rosenbrock)
    for ask in (lambda: fast.kernel, lambda: fast.nbytes, fast.llvm, lambda: fast.tape):
        with pytest.raises(TapejitError, match="nothing was recorded yet"):
            ask()
    assert "0 variants" in str(fast)


def test_wrong_arguments_are_refused(points):
    with pytest.raises(TypeError, match="expected a function"):
        tj.compile(3.0)
    with pytest.raises(ValueError, match="on_branch_change"):
        tj.compile(rosenbrock, on_branch_change="ignore")
    with pytest.raises(ValueError, match="threads"):
        tj.compile(rosenbrock, threads=0)
    with pytest.raises(TypeError, match="by position"):
        tj.compile(argnums=1)(springs)(points[0], k=2.0)
    with pytest.raises(ShapeError, match="argnums"):
        tj.compile(springs, points[0], 2.0, argnums=2)


# Branches.


def test_both_branches_are_kept(rng):
    fast = tj.compile(signed, np.ones(20))
    for i in range(12):
        x = rng.uniform(0.1, 1.0, 20)
        check(fast, signed, x if i % 2 else -x)
    assert fast.n_recorded == 2
    stats = fast.stats()
    assert all(variant.n_compiled >= 4 for variant in stats.variants)
    assert any("was true when recorded, now false" in variant.why for variant in stats.variants)
    assert "recorded 2 times" in str(stats)


def test_a_new_branch_gives_the_result_of_its_recording():
    fast = tj.compile(signed, np.ones(20))
    x = -np.linspace(0.1, 2.0, 20)
    assert fast.value(x) == signed(x)
    assert fast.stats().variants[0].why_interpreted == "seen once so far"
    fast.value(x)
    assert not fast.stats().variants[0].why_interpreted


def test_raise_and_warn(rng):
    x = rng.uniform(0.1, 1.0, 20)
    fast = tj.compile(signed, x, on_branch_change="raise")
    with pytest.raises(BranchChangeError, match="was true when recorded"):
        fast.value_and_grad(-x)
    with pytest.raises(BranchChangeError, match="was true when recorded"):
        fast.hvp(-x, x)
    check(fast, signed, x)
    fast = tj.compile(signed, x, on_branch_change="warn")
    with pytest.warns(BranchChangeWarning):
        value = fast.value(-x)
    assert_allclose(value, np.sum(x * x))


def test_a_branch_at_every_call_does_not_compile_at_every_call(monkeypatch):
    n_compiled = 0
    real = kernels.compile_tape

    def counted(*args, **kwargs):
        nonlocal n_compiled
        n_compiled += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(compiled, "compile_tape", counted)

    def f(x):
        total = x[0] * 0.0
        for i in range(8):
            total = total + (x[i] * 2.0 if x[i] > 0.0 else x[i] * x[i])
        return total

    fast = tj.compile(f, np.ones(8))
    for number in range(40):
        x = np.array([1.0 if number >> i & 1 else -1.0 for i in range(8)])
        check(fast, f, x)
    assert n_compiled == 1
    assert fast.n_recorded == 41 and len(fast.stats().variants) == 16 and fast.stats().n_dropped == 25


def test_second_order_finds_the_branch(rng):
    fast = tj.compile(signed, np.ones(20))
    x = rng.uniform(0.1, 1.0, 20)
    for point in (x, -x, x, -x):
        assert_allclose(fast.hvp(point, x), tj.hvp(signed)(point, x), rtol=RTOL)
        assert_allclose(fast.jacobian(point), tj.jacobian(signed)(point), rtol=RTOL)
    assert fast.n_recorded == 2


# Where compiled code is not enough.


def test_zero_adjoints_stop_infinite_partials():
    def f(x):
        total = 0.0
        for i in range(20):
            total = total + np.where(x[i] > 0.0, np.sqrt(x[i]), 0.0)
        return total

    fast = tj.compile(f, np.ones(20))
    x = np.linspace(0.0, 1.0, 20)
    with np.errstate(all="ignore"):
        check(fast, f, np.ones(20))
        expected = tj.grad(f)(x)
    assert np.isfinite(expected).all()
    with np.errstate(all="ignore"):
        assert_allclose(fast.grad(x), expected, rtol=RTOL)
    assert fast.stats().variants[0].n_interpreted == 1


def test_nan_and_inf_are_handed_on():
    def f(x):
        return np.sum(np.log(x))

    fast = tj.compile(f, np.ones(20))
    fast.grad(np.ones(20))
    x = np.ones(20)
    x[3], x[5] = -1.0, 0.0
    with np.errstate(all="ignore"):
        value, gradient = fast.value_and_grad(x)
        assert np.isnan(value) and np.isnan(fast.value(x))
        assert_array_equal(gradient, tj.record(f, np.ones(20)).grad(x))


def test_huge_angles_are_for_the_interpreter():
    def f(x):
        total = 0.0
        for i in range(20):
            total = total + np.sin(x[i])
        return total

    fast = tj.compile(f, np.ones(20))
    x = np.full(20, 1e12)
    check(fast, f, np.ones(20))
    check(fast, f, x)
    assert fast.stats().variants[0].n_interpreted == 1


def test_matrix_products_stay_calls(rng):
    a = rng.standard_normal((80, 80))

    def f(x):
        return np.sum(np.tanh(x @ a) ** 2)

    fast = tj.compile(f, a)
    check(fast, f, 0.1 * a)
    assert "product of 80 x 80 and 80 x 80 matrices" in str(fast)
    gradient = np.empty_like(a)
    value = fast.kernel(0.1 * a, gradient)
    expected, expected_gradient = fast.value_and_grad(0.1 * a)
    assert value == expected
    assert_array_equal(gradient, expected_gradient)


def test_batches_of_large_products_run_row_by_row(rng):
    a = rng.standard_normal((80, 80))

    def f(x, b):
        return np.sum(np.tanh(x @ a) * b)

    fast = tj.compile(f, a, a)
    rows = 0.1 * rng.standard_normal((9, 80, 80))
    values, gradients = fast.batch(rows)
    for row, value, gradient in zip(rows, values, gradients, strict=True):
        expected, expected_gradient = tj.value_and_grad(f)(row, a)
        assert_allclose(value, expected, rtol=1e-13)
        assert_allclose(gradient, expected_gradient, rtol=1e-11, atol=1e-12)
    assert fast.stats().variants[0].n_interpreted == 0


def test_no_time_to_compile(points):
    fast = tj.compile(rosenbrock, points[0], max_compile_seconds=1e-4)
    assert fast.stats().variants[0].why_interpreted
    check(fast, rosenbrock, points[1])
    assert fast.stats().variants[0].n_interpreted == 1
    assert fast.nbytes == 0


def test_a_function_that_changes_is_refused(rng):
    state = [1.0]

    def f(x):
        return np.sum(x * state[0])

    fast = tj.compile(f, np.ones(20))
    state[0] = 2.0
    with pytest.raises(CompileError, match="read state that changes"):
        fast.value_and_grad(np.ones(20))


def test_random_numbers_are_refused():
    rng = np.random.default_rng(0)
    fast = tj.compile(lambda x: np.sum(x * rng.standard_normal(20)), np.ones(20))
    with pytest.raises(CompileError, match="random"):
        fast.grad(np.ones(20))


def test_a_wrong_kernel_is_refused(points, monkeypatch):
    real = kernels.Kernel.run

    def wrong(*args, **kwargs):
        found = real(*args, **kwargs)
        found[1][3] *= 1.0 + 1e-6
        return found

    fast = tj.compile(rosenbrock, points[0])
    monkeypatch.setattr(kernels.Kernel, "run", wrong)
    with pytest.raises(CompileError, match="the gradient, entry 3"):
        fast.value_and_grad(points[1])


def test_fast_may_round_otherwise(points):
    fast = tj.compile(rosenbrock, points[0], fast=True)
    value, gradient = fast.value_and_grad(points[1])
    expected, expected_gradient = tj.value_and_grad(rosenbrock)(points[1])
    assert_allclose(value, expected, rtol=1e-13)
    assert_allclose(gradient, expected_gradient, rtol=1e-11, atol=1e-10)


def test_users_primitives_compile(points):
    halved = tj.primitive("halved_for_compiled", "x / (2 + abs(x))", "2 / square(2 + abs(x))")

    def f(x):
        return np.sum(halved(x) * x)

    fast = tj.compile(f, points[0])
    check(fast, f, points[1])
    assert fast.stats().variants[0].n_compiled == 1


# Threads.


def test_threads_share_a_compiled_function(points):
    fast = tj.compile(springs, points[0], 2.0)
    expected = [[fast.value_and_grad(x, (float(k),)) for x in points] for k in range(4)]
    wrong = []
    barrier = threading.Barrier(4)

    def run(k):
        barrier.wait()
        for _ in range(100):
            for x, (value, gradient) in zip(points, expected[k], strict=True):
                ours = fast.value_and_grad(x, (float(k),))
                if ours[0] != value or not np.array_equal(ours[1], gradient):
                    wrong.append(k)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert not wrong


def test_threads_may_meet_new_branches_at_once(rng):
    fast = tj.compile(signed, np.ones(20))
    x = rng.uniform(0.1, 1.0, (40, 20)) * np.where(np.arange(40) % 2, 1.0, -1.0)[:, None]
    expected = [tj.value_and_grad(signed)(row) for row in x]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fast.value_and_grad, x))
    for ours, theirs in zip(found, expected, strict=True):
        assert_allclose(ours[0], theirs[0], rtol=1e-14)
        assert_allclose(ours[1], theirs[1], rtol=RTOL)


# Batches.


@pytest.mark.parametrize("threads", [1, 3])
def test_batch(points, threads):
    fast = tj.compile(rosenbrock, points[0], threads=threads)
    for _ in range(2):  # The first one checks, the second one runs in compiled code.
        values, gradients = fast.batch(points)
        for x, value, gradient in zip(points, values, gradients, strict=True):
            assert (value, gradient.tolist()) == (fast.value(x), fast.grad(x).tolist())
    assert fast.batch(points[:0])[0].shape == (0,)


def test_batch_with_parameters_and_branches(rng):
    def f(x, k):
        return k * signed(x)

    fast = tj.compile(f, np.ones(20), 1.0)
    x = rng.uniform(0.1, 1.0, (8, 20)) * np.where(np.arange(8) % 3, 1.0, -1.0)[:, None]
    for _ in range(2):
        values, gradients = fast.batch(x, args=[(float(k),) for k in range(8)])
        for k in range(8):
            assert_allclose(values[k], f(x[k], k), rtol=1e-14)
            assert_allclose(gradients[k], tj.grad(f)(x[k], float(k)), rtol=RTOL, atol=1e-14)


def test_batch_records_and_compiles_by_itself(points):
    fast = tj.compile(rosenbrock)
    values, gradients = fast.batch(points)
    assert_allclose(values, [rosenbrock(x) for x in points], rtol=1e-14)
    assert_allclose(gradients, [tj.grad(rosenbrock)(x) for x in points], rtol=RTOL, atol=1e-11)
    assert fast.n_recorded == 1 and fast.stats().variants[0].n_compiled == 3


def test_batch_of_several_arguments(rng):
    def f(a, b):
        return np.sum(a * np.sin(b))

    a, b = rng.standard_normal((2, 6, 20))
    fast = tj.compile(f, a[0], b[0], argnums=(1, 0))
    fast.value_and_grad((b[0], a[0]))
    values, (b_bars, a_bars) = fast.batch((b, a))
    assert_allclose(a_bars, np.sin(b), rtol=1e-14)
    assert_allclose(b_bars, a * np.cos(b), rtol=1e-13)
    assert_allclose(values, np.sum(a * np.sin(b), axis=1), rtol=1e-12)
    with pytest.raises(ShapeError, match="one length"):
        fast.batch((b, a[:2]))


# In Numba code.


def test_kernel_in_numba_code(points):
    fast = tj.compile(springs, points[0], 2.0)
    kernel = fast.kernel

    @numba.njit
    def descend(x, rate, steps):
        gradient = np.empty_like(x)
        value = 0.0
        for _ in range(steps):
            value = kernel(x, gradient)
            x = x - rate * gradient
        return value, gradient

    value, gradient = descend(points[1], 0.1, 3)
    x = points[1]
    for _ in range(3):
        expected, expected_gradient = tj.value_and_grad(springs)(x, 2.0)
        x = x - 0.1 * expected_gradient
    assert_allclose(value, expected, rtol=1e-13)
    assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-14)
    del fast
    assert_allclose(descend(points[1], 0.1, 3)[0], expected, rtol=1e-13)
    with pytest.raises(ValueError, match="as many entries"):
        kernel(np.ones(3), np.ones(3))


def test_kernel_says_nan_where_the_branch_changes():
    kernel = tj.compile(signed, np.ones(20)).kernel
    gradient = np.zeros(20)
    assert kernel(np.full(20, 2.0), gradient) == 80.0
    assert_array_equal(gradient, np.full(20, 4.0))
    assert math.isnan(kernel(np.full(20, -2.0), gradient))
    assert np.isnan(gradient).all()


def test_kernel_of_a_scalar_in_a_root_finder():
    kernel = tj.compile(lambda x: x * x * x - 2.0, 1.0).kernel

    @numba.njit
    def newton(x):
        slope = np.zeros(1)
        for _ in range(20):
            value = kernel(x, slope)
            x -= value / slope[0]
        return x

    assert_allclose(newton(1.0), 2.0 ** (1 / 3), rtol=1e-15)


# Pickles, recordings and tapes.


def test_pickles(points):
    fast = tj.compile(springs, points[0], 2.0)
    expected = fast.value_and_grad(points[1], (3.0,))
    again = pickle.loads(pickle.dumps(fast))
    assert not again.stats().variants[0].why_interpreted
    value, gradient = again.value_and_grad(points[1], (3.0,))
    assert value == expected[0]
    assert_array_equal(gradient, expected[1])
    assert_array_equal(again.grad(points[1]), fast.grad(points[1]))


def test_pickles_without_the_function(rng):
    fast = tj.compile(lambda x: signed(x), np.ones(20))
    again = pickle.loads(pickle.dumps(fast))
    x = rng.uniform(0.1, 1.0, 20)
    assert again.value(x) == fast.value(x)
    with pytest.raises(BranchChangeError, match="without its function"):
        again.value(-x)


def test_a_recording_compiles(points):
    recording = tj.record(springs, points[0], 2.0)
    fast = recording.compile()
    check(fast, springs, points[1], (3.0,))
    assert fast.value(points[1]) == recording.value(points[1])
    fast = tj.record(signed, np.ones(20)).compile()
    check(fast, signed, np.ones(20))
    check(fast, signed, -np.ones(20))


def test_a_tape_compiles(points):
    with tj.Tape() as tape:
        x, k = tape.input(points[0]), tape.parameter(2.0)
        y = springs(x, k)
    with pytest.raises(TapeError, match="no outputs"):
        tape.compile()
    tape.output_slots = np.array([y.slot])
    fast = tape.compile()
    assert not fast.why_interpreted and fast.nbytes and "loop" in str(fast)
    assert_allclose(fast.grad(points[1]), tj.grad(springs)(points[1], 2.0), rtol=RTOL, atol=1e-14)
    assert fast.value(points[1]).shape == (1,)
    again = pickle.loads(pickle.dumps(fast))
    assert again.value_and_grad(points[1])[0] == fast.value_and_grad(points[1])[0]


def test_a_tape_with_a_branch_raises():
    recording = tj.record(signed, np.ones(20))
    fast = recording.tape.compile()
    with pytest.raises(BranchChangeError):
        fast.value(-np.ones(20))
    with pytest.raises(ShapeError, match="one output"):
        tj.record(layers, np.ones(7)).tape.compile().grad(np.ones(7))


# What it says.


def test_printing(points):
    fast = tj.compile(rosenbrock, points[0])
    text = str(fast)
    assert f"loop, {N - 1} times" in text and "bytes for value and gradient" in text
    assert "define" in fast.llvm() and "forward" in fast.llvm() and "reverse" in fast.asm()
    assert 0 < fast.nbytes < 100_000
    assert fast.tape.n_inputs == N
    assert repr(fast) == "<Compiled rosenbrock: 1 variant>"


def test_machine_code_is_freed_with_the_last_reference(points):
    import gc
    import weakref

    fast = tj.compile(rosenbrock, points[0] * 0.123)
    alive = weakref.ref(fast._variants[0].kernel.linked)
    fast.grad(points[1])
    del fast
    gc.collect()
    assert alive() is None


def test_minimize_runs_compiled_code():
    start = np.full(10, -1.0)
    fast = tj.compile(rosenbrock, start)
    result = tj.minimize(fast, start)
    assert_allclose(result.x, np.ones(10), rtol=1e-4)
    assert fast.stats().variants[0].n_compiled >= result.nfev - 1
    assert result.n_recorded == 1
    fitted = tj.minimize(tj.compile(springs, start, 1.0, rest=0.1), start, args=(2.0,), method="trust-krylov")
    assert_allclose(np.diff(fitted.x), 0.1, rtol=1e-5)


def test_scipy_takes_it_as_it_is():
    start = np.full(10, -1.0)
    fast = tj.compile(rosenbrock, start)
    result = scipy.optimize.minimize(fast.value_and_grad, start, jac=True)
    assert_allclose(result.x, np.ones(10), rtol=1e-4)


def test_debug_finds_the_operation_in_a_recording():
    fast = tj.compile(lambda x: np.sum(np.sqrt(x)), np.ones(4))
    with tj.debug(), pytest.raises(TapejitError, match="sqrt"):
        fast.grad(np.array([1.0, -1.0, 1.0, 1.0]))


def test_an_error_of_the_compiler_leaves_the_interpreter(monkeypatch):
    import tapejit.compiler.kernel as stages

    def broken(found, **options):
        raise IndexError("of the compiler's own")

    monkeypatch.setattr(stages, "Plan", broken)
    x = np.linspace(0.5, 1.5, 20)
    with pytest.warns(RuntimeWarning, match="please report"):
        fast = tj.compile(rosenbrock, x)
    assert "of the compiler's own" in str(fast)
    assert_array_equal(fast.grad(x), tj.record(rosenbrock, x).grad(x))


def test_a_timeout_while_compiling_comes_out_as_itself(monkeypatch):
    import signal

    import tapejit.compiler.kernel as stages

    class Timeout(Exception):
        pass

    def handler(number, frame):
        raise Timeout

    def interrupted(found, **options):
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        monkeypatch.setattr(stages, "Plan", interrupted)
        with pytest.raises(Timeout):
            tj.compile(rosenbrock, np.linspace(0.5, 1.5, 20))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_decision_on_a_sum_of_an_array_is_kept():
    """An outcome of 1.0 looks like a truth value, and the additions of a sum are marked as such."""
    recording = tj.record(lambda x: np.sum(x) * x[0], np.array([0.25, 0.25, 0.5]))
    tape = recording.tape
    sums = [block.first for block in tape.blocks() if block.name == "sum"]
    tape.guards.append(sums, [1.0], "here")
    compiled = tape.compile()
    assert_array_equal(compiled.value([0.5, 0.25, 0.25]), [0.5])
    with pytest.raises(BranchChangeError):
        compiled.value([0.5, 0.5, 0.5])
