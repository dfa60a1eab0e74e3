"""Matrix products that stay whole in compiled kernels: values have the bits of the interpreted replay, gradients are right.

``python tests/test_compiler_products.py 1000`` tries random programs 0 to 999 and prints those that fail.
"""

import sys
import traceback

import numpy as np
import product_programs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from test_compiler_random import SMALL, check_compiled, thresholds

import tapejit as tj
from tapejit.compiler.kernel import compile_tape
from tapejit.compiler.nest import Product
from tapejit.compiler.operands import Data, Operands
from tapejit.compiler.plan import Plan
from tapejit.compiler.products import takes_adjoints
from tapejit.compiler.prune import PRODUCT, prune
from tapejit.compiler.roll import roll
from tapejit.expansion import expand
from tapejit.tape import FlatTape

CALLS = {"LARGEST_PRODUCT": 0}
A, B = np.random.default_rng(3).standard_normal((2, 6, 6))


@pytest.fixture(autouse=True)
def all_products_are_calls():
    with thresholds(CALLS):
        yield


def planned(f, *args):
    """The plan of a function, and its products."""
    return planned_tape(tj.record(f, *args).tape)


def planned_tape(tape):
    program = prune(expand(tape, FlatTape(), True, 0))
    plan = Plan(Operands(roll(program), program))
    return plan, [loop for loop in plan.root.loops() if isinstance(loop, Product)]


def check(f, x, *parameters, rng):
    """A function of an array, its value, compiled, at three points and with other parameters."""
    recording = tj.record(f, x, *parameters)
    points = [x, x + 0.1, np.sin(x + 1.0)]
    for small in SMALL:
        with thresholds(small):
            kernel = check_compiled(recording, points, rng)
            assert kernel.n_compared == len(points)
    if parameters:
        changed = [p * 0.5 + 0.1 for p in parameters]
        found = kernel.run(np.ravel(x), changed, None)
        assert_array_equal(np.reshape(found[0], -1), np.reshape(recording.value(x, changed), -1))
        scalar = tj.compile(lambda x, *rest: np.sum(np.tanh(f(x, *rest))), x, *parameters)
        for own in (parameters, changed, parameters):
            value, gradient = scalar.value_and_grad(x, tuple(own))
            expected, expected_gradient = tj.value_and_grad(lambda x, *rest: np.sum(np.tanh(f(x, *rest))))(x, *own)
            assert_allclose(value, expected, rtol=1e-13)
            assert_allclose(gradient, expected_gradient, rtol=1e-11, atol=1e-12)
    return kernel


def steps(x, matrix):
    for _ in range(40):
        x = np.tanh(matrix @ x) + 0.1
    return x


def steps_of_two(x, a, b):
    """Two products of other shapes in every step, and a number between."""
    for i in range(20):
        x = np.sin(a @ x) * (1.0 + x[0] * x[1]) + 0.01 * i
        x = np.tanh(x + b.T @ x[:4])
    return x


CASES = {
    "matrix and vector, data": (lambda x: np.tanh(A @ x), A[0]),
    "vector and matrix, data": (lambda x: np.tanh(x @ A), A[0]),
    "parameter": (lambda x, a: np.tanh(a @ x), A[0], B),
    "active matrix": (lambda x: x @ A[1] + A[2] @ x, B),
    "two active matrices": (lambda x: x[:3] @ x[:, 1:], B),
    "the same matrix twice": (lambda x: x @ x, B),
    "with its transpose": (lambda x: x.T @ x + x @ x.T, B),
    "strided": (lambda x: x[::2, ::-1] @ x[::-1, 1::2], B),
    "gathered": (lambda x: x[[0, 0, 3, 1]] @ x[:, [5, 2, 2]], B),
    "broadcast": (lambda x: np.broadcast_to(x[0], (6, 6)) @ x, B),
    "transposed data": (lambda x: (A[:, ::2].T @ x) @ A[::-1], B),
    "scalar product": (lambda x: x[0] @ x[1] * x, B),
    "of size 1": (lambda x: (x[:1, :1] @ x[:1]) @ x[:, :1], B),
    "outer product": (lambda x: x[:, :1] @ x[:1], B),
    "input, parameter and number": (
        lambda x, p: np.array([[x[0], p[0]], [0.5, x[1]]]) @ np.array([p[1], x[0]]),
        A[0],
        A[1],
    ),
    "an unused product": (lambda x: [x @ A, x @ x][1], B),
    "an unused result": (lambda x: (x @ x)[2:3, 1:], B),
    "a product is the output": (lambda x: x @ A @ x, B),
    "elements of a product": (lambda x: (x @ A)[1, 2] * (x @ A)[5, 5] + x[0], B),
    "passive product": (lambda x, p: (p @ p) @ x + p, A[0], B),
    "steps, data": (lambda x: steps(x, A / 3.0), A[0]),
    "steps, parameter": (steps, A[0], B / 3.0),
    "steps, active matrix": (lambda a: steps(A[0], a), B / 3.0),
    "steps of two": (lambda x, a: steps_of_two(x, a, A[:4] / 9.0), A[0], B / 3.0),
    "many columns": (lambda x: np.tanh(np.tile(x, (1, 50)) @ np.ones((300, 7)) + x[:, :1]), B),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_products_equal_interpreted_ones(case, rng):
    f, *args = case
    check(f, *args, rng=rng)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_random_programs_with_products_equal_interpreted_ones(seed):
    check_random(seed)


def check_random(seed):
    (x, parameters), (other, others) = product_programs.points(seed)
    f = product_programs.function(seed)
    rng = np.random.default_rng(seed)
    recording = tj.record(f, x, parameters)
    for number in (0, 50):
        for small in SMALL:
            with thresholds(small | {"LARGEST_PRODUCT": number}):
                kernel = check_compiled(recording, [x, other, x], rng)
        assert kernel.n_compared
    own = compile_tape(recording.tape)
    for given_parameters in (others, parameters):
        found = own.run(other, [given_parameters], None)
        with thresholds(CALLS):
            assert found is not None
        assert_allclose(found[0], recording.value(other, (given_parameters,)), rtol=1e-9, atol=1e-11)


# The stages.


def test_expand_keeps_large_products_whole():
    tape = tj.record(lambda x: (x @ A) @ x[:, 0], B).tape
    for largest, n_kept in ((0, 2), (36, 1), (216, 0), (None, 0)):
        into = expand(tape, FlatTape(), True, largest)
        assert len(into.products) == n_kept
        assert not len(into.block_at)


def test_prune_drops_products_that_nothing_needs():
    program = prune(expand(tj.record(lambda x: [x @ A, x @ x, A @ x][1][0], B).tape, FlatTape(), True, 0))
    (matmul,) = program.matmuls
    assert matmul.shape == (6, 6, 6)
    assert (program.code[matmul.first : matmul.first + 36] == PRODUCT).all()
    assert_array_equal(matmul.reads[0], ~np.arange(36))


def test_products_of_one_kind_roll(rng):
    plan, (product,) = planned(steps, np.ones(20), rng.standard_normal((20, 20)) / 9.0)
    assert len(product.matmuls) == 40
    assert product.loop.n_iterations == 40
    a, x = product.site.operands
    assert not plan.is_active(a)
    assert plan.is_active(x)
    assert a.address.distance == 20 and takes_adjoints(x)
    assert not plan.scratch
    assert a.column.size == 400  # all iterations read the same


def test_products_of_other_kinds_do_not_roll_together():
    def f(x):
        for i in range(40):
            x = np.tanh((A if i % 2 else A.T) @ x)
        return x

    _, products = planned(f, A[0])
    assert len(products) == 2


def test_plain_numbers_are_not_copied():
    large = np.random.default_rng(0).standard_normal((500, 40))
    tape = tj.record(lambda x: np.tanh(large @ x), np.ones(40)).tape
    plan, (product,) = planned_tape(tape)
    (data,) = [operand for operand in product.site.operands if isinstance(operand, Data)]
    assert data.arrays[0].ctypes.data == tape.blocks()[0].operands[0].array.ctypes.data
    assert plan.size < 2000


def test_factors_that_blas_cannot_read_are_copied():
    plan, (product,) = planned(lambda x: np.tanh(x)[[0, 0, 3]] @ A, B)
    (factor,) = plan.scratch
    assert factor.address.distance == 0 and factor.n_rows == 3


# What calls leave behind, and what they are given.


def test_several_calls_leave_nothing_behind(rng):
    fast = tj.compile(lambda x: np.sum(np.tanh(x @ x.T) @ A), B)
    points = [rng.standard_normal((6, 6)) for _ in range(6)]
    gradients = [fast.grad(x) for x in points]
    for x, gradient in zip(points[::-1], gradients[::-1], strict=True):
        assert_array_equal(fast.grad(x), gradient)
    assert fast.stats().variants[0].n_interpreted == 0


def test_results_that_are_not_finite_are_for_the_interpreter():
    def f(x):
        return np.sum(np.sqrt(x) @ A)

    fast = tj.compile(f, np.abs(B))
    fast.grad(np.abs(B))
    x = np.abs(B)
    x[2, 3] = -1.0
    with np.errstate(all="ignore"):
        assert np.isnan(fast.value(x))
        assert_array_equal(fast.grad(x), tj.record(f, np.abs(B)).grad(x))
    assert_array_equal(fast.grad(np.abs(B)), tj.compile(f, np.abs(B)).grad(np.abs(B)))


def test_decisions_on_products_are_noticed():
    def f(x):
        y = x @ A
        return np.sum(y) if y[0, 0] > 0.0 else np.sum(y * y)

    fast = tj.compile(f, B)
    for x in (B, -B, 2.0 * B, -3.0 * B):
        value, gradient = fast.value_and_grad(x)
        expected, expected_gradient = tj.value_and_grad(f)(x)
        assert_allclose(value, expected, rtol=1e-13)
        assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-13)
    assert fast.n_recorded == 2


def test_jacobians_of_products(rng):
    fast = tj.compile(lambda x: np.tanh(A @ x), A[0])
    fast.vjp(A[0], np.ones(6))
    x = rng.standard_normal(6)
    expected = (1.0 - np.tanh(A @ x) ** 2)[:, None] * A
    assert_allclose(fast.jacobian(x), expected, rtol=1e-12)


def main(first, last):
    for seed in range(first, last):
        try:
            with thresholds(CALLS):
                check_random(seed)
        except Exception:
            print("seed", seed)
            print(traceback.format_exc(limit=-3))


if __name__ == "__main__":
    main(*([0] + [int(argument) for argument in sys.argv[1:]])[-2:])
