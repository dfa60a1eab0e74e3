"""The transforms: closed forms, shapes, argnums, nesting without perturbation confusion, and every refusal by its message."""

import math
from functools import reduce
from operator import mul

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import rosen, rosen_der, rosen_hess, rosen_hess_prod

import tapejit as tj
from tapejit.errors import PassiveConversionError, ShapeError, TapeError, TapejitError, UnsupportedError
from tapejit.recording.recorder import open_tapes


def rosenbrock(x):
    """SciPy's `rosen`, which itself turns its argument into a plain array."""
    return np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def rosenbrock_in_scalars(x):
    return sum(100.0 * (x[i + 1] - x[i] ** 2) ** 2 + (1.0 - x[i]) ** 2 for i in range(len(x) - 1))


# Closed forms.


@pytest.mark.parametrize("f", [rosenbrock, rosenbrock_in_scalars])
@pytest.mark.parametrize("n", [2, 3, 10, 300])
def test_rosenbrock(f, n, rng):
    x, v = rng.uniform(-2.0, 2.0, (2, n))
    value, gradient = tj.value_and_grad(f)(x)
    assert_allclose(value, rosen(x), rtol=1e-13)
    assert_allclose(gradient, rosen_der(x), rtol=1e-12, atol=1e-11)
    assert_allclose(tj.hvp(f)(x, v), rosen_hess_prod(x, v), rtol=1e-11, atol=1e-10)
    if n <= 10:
        assert_allclose(tj.hessian(f)(x), rosen_hess(x), rtol=1e-11, atol=1e-10)
        assert_allclose(tj.jacobian(tj.grad(f))(x), rosen_hess(x), rtol=1e-11, atol=1e-10)


def test_speelpenning_product(rng):  # B. Speelpenning, PhD thesis, Univ. of Illinois, 1980
    x = rng.uniform(0.5, 1.5, 30)
    product = x.prod()
    assert_allclose(tj.grad(lambda x: reduce(mul, x))(x), product / x, rtol=1e-14)
    assert_allclose(tj.grad(np.prod)(x), product / x, rtol=1e-14)
    hessian = product / np.outer(x, x)
    np.fill_diagonal(hessian, 0.0)
    assert_allclose(tj.hessian(lambda x: reduce(mul, x))(x), hessian, rtol=1e-13)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_quadratic_form(n, rng):
    a, x, v = rng.standard_normal((n, n)), *rng.standard_normal((2, n))
    for f in (lambda x: x @ a @ x, lambda x: np.dot(x, np.dot(a, x)), lambda x: np.sum(np.outer(x, x) * a)):
        assert_allclose(tj.grad(f)(x), (a + a.T) @ x, rtol=1e-11, atol=1e-12)
        assert_allclose(tj.hvp(f)(x, v), (a + a.T) @ v, rtol=1e-11, atol=1e-12)
        assert_allclose(tj.hessian(f)(x), a + a.T, rtol=1e-12, atol=1e-12)


def test_functions_of_matrices(rng):
    x, a = rng.standard_normal((2, 4, 4))
    assert_allclose(tj.grad(lambda x: np.trace(a @ x))(x), a.T, rtol=1e-13)
    assert_allclose(tj.grad(lambda x: np.trace(x @ x))(x), 2.0 * x.T, rtol=1e-13)
    assert_allclose(tj.grad(lambda x: np.sum(x * x))(x), 2.0 * x, rtol=1e-15)
    assert_allclose(tj.grad(lambda x: np.trace(x.T @ a @ x))(x), (a + a.T) @ x, rtol=1e-12, atol=1e-13)
    assert_allclose(tj.grad(lambda x: np.linalg.norm(x))(x), x / np.linalg.norm(x), rtol=1e-13)
    assert_allclose(tj.grad(lambda x: np.trace(x @ x @ x))(x), 3.0 * (x @ x).T, rtol=1e-12, atol=1e-13)
    u, v = rng.standard_normal((2, 4))
    assert_allclose(tj.grad(lambda x: u @ x @ v)(x), np.outer(u, v), rtol=1e-14)
    # The derivative of x @ x along e is x @ e + e @ x.
    e = rng.standard_normal((4, 4))
    assert_allclose(tj.jvp(lambda x: x @ x)(x, e)[1], x @ e + e @ x, rtol=1e-12, atol=1e-13)
    assert_allclose(np.tensordot(tj.jacobian(lambda x: x @ x)(x), e, 2), x @ e + e @ x, rtol=1e-12, atol=1e-13)


def test_log_sum_exp_and_softmax(rng):
    x = rng.standard_normal(6)
    softmax = np.exp(x) / np.exp(x).sum()
    f = lambda x: np.log(np.sum(np.exp(x)))  # noqa: E731
    assert_allclose(tj.grad(f)(x), softmax, rtol=1e-14)
    assert_allclose(tj.hessian(f)(x), np.diag(softmax) - np.outer(softmax, softmax), rtol=1e-13, atol=1e-15)


def test_sweeps_of_a_linear_map_are_its_matrix(rng):
    a = rng.standard_normal((7, 3))
    assert_array_equal(tj.jacobian(lambda x: a @ x)(np.ones(3)), a)
    value, pullback = tj.vjp(lambda x: a @ x)(np.ones(3))
    y_bar = rng.standard_normal(7)
    assert_allclose(pullback(y_bar), a.T @ y_bar, rtol=1e-13)
    assert_allclose(tj.jvp(lambda x: a @ x)(np.ones(3), np.eye(3)[1])[1], a[:, 1], rtol=1e-15)


# argnums.


def three(a, b, c):
    """A scalar, a vector and a matrix."""
    return a**2 * np.sum(b) + np.sum(b @ c) * 3.0 + a


THREE = (2.0, np.array([1.0, 2.0]), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
PARTIALS = (4.0 * 3.0 + 1.0, 4.0 + 3.0 * np.array([6.0, 15.0]), 3.0 * np.array([[1.0] * 3, [2.0] * 3]))


@pytest.mark.parametrize(
    "argnums",
    [0, 1, 2, -1, -3, np.int64(1), (0,), (0, 1, 2), (2, 0), (1, 0), (-1, 0), [0, 2], range(3), np.array([1, 2]), ()],
)
def test_argnums_choose_and_order_the_gradients(argnums):
    value, gradient = tj.value_and_grad(three, argnums)(*THREE)
    assert value == three(*THREE)
    if np.ndim(argnums) == 0:
        gradient, argnums = (gradient,), (argnums,)
    else:
        assert isinstance(gradient, tuple)
    assert len(gradient) == len(argnums)
    for part, i in zip(gradient, argnums, strict=True):
        assert_allclose(part, PARTIALS[i], rtol=1e-15)
        assert np.shape(part) == np.shape(THREE[i])
        assert isinstance(part, float) == (np.ndim(THREE[i]) == 0)


@pytest.mark.parametrize("argnums", [(0, 2), (2, 0), (1, 0, 2)])
def test_argnums_order_directions_too(argnums, rng):
    dots = tuple(rng.standard_normal(np.shape(THREE[i])) for i in argnums)
    expected = sum(np.sum(PARTIALS[i] * dot) for i, dot in zip(argnums, dots, strict=True))
    assert_allclose(tj.jvp(three, argnums)(*THREE, dots)[1], expected, rtol=1e-13)
    _, pullback = tj.vjp(three, argnums)(*THREE)
    for part, i in zip(pullback(2.0), argnums, strict=True):
        assert_allclose(part, 2.0 * PARTIALS[i], rtol=1e-15)
    for part, i in zip(tj.jacobian(three, argnums)(*THREE), argnums, strict=True):
        assert_allclose(part, PARTIALS[i], rtol=1e-15)


def mixed(a, b, c):
    return np.sum(np.sin(a * b) * c) + a**3 * b[0] * np.sum(c * c)


MIXED = (0.7, np.array([0.3, -1.2, 0.8]), np.array([[0.5, 0.1, -0.4]]))


@pytest.mark.parametrize("argnums", [(0, 1, 2), (2, 0), (1,), (1, 2)])
def test_hessian_with_several_arguments(argnums, rng):
    blocks = tj.hessian(mixed, argnums)(*MIXED)
    for row, i in zip(blocks, argnums, strict=True):
        for block, j in zip(row, argnums, strict=True):
            assert np.shape(block) == np.shape(MIXED[i]) + np.shape(MIXED[j])
            alone = tj.jacobian(tj.grad(mixed, i), j)(*MIXED)
            assert_allclose(block, alone, rtol=1e-11, atol=1e-13)
    v = tuple(rng.standard_normal(np.shape(MIXED[i])) for i in argnums)
    product = tj.hvp(mixed, argnums)(*MIXED, v)
    for part, row, i in zip(product, blocks, argnums, strict=True):
        expected = sum(np.tensordot(block, dot, np.ndim(dot)) for block, dot in zip(row, v, strict=True))
        assert_allclose(part, expected, rtol=1e-11, atol=1e-13)
        assert np.shape(part) == np.shape(MIXED[i])


@pytest.mark.parametrize("argnums", [0, 1, (0, 1, 2), (2, 0)])
def test_hvp_and_hessian_inside_a_function_that_is_differentiated(argnums, rng):
    """d/ds of H(s x) v and of H(s x), against differences of the plain ones."""
    several = np.ndim(argnums) == 1
    wanted = argnums if several else (argnums,)
    v = tuple(rng.standard_normal(np.shape(MIXED[i])) for i in wanted)
    weights = tuple(rng.standard_normal(np.shape(MIXED[i])) for i in wanted)

    def product(s):
        parts = tj.hvp(mixed, argnums)(*(s * x for x in MIXED), v if several else v[0])
        return sum(np.sum(part * w) for part, w in zip(parts if several else (parts,), weights, strict=True))

    def trace(s):
        blocks = tj.hessian(mixed, argnums)(*(s * x for x in MIXED))
        return sum(np.sum(block * block) for row in (blocks if several else ((blocks,),)) for block in row)

    for f in (product, trace):
        h = 1e-4
        expected = (8.0 * (f(1.0 + h) - f(1.0 - h)) - f(1.0 + 2 * h) + f(1.0 - 2 * h)) / (12.0 * h)
        assert_allclose(tj.grad(f)(1.0), expected, rtol=1e-8)
        assert_allclose(tj.jvp(f)(1.0, 1.0)[1], expected, rtol=1e-8)


def test_hvp_with_an_active_direction():
    x, v = np.array([1.0, 2.0, 3.0]), np.array([1.0, -1.0, 0.5])
    hessian = tj.hessian(rosenbrock)(x)
    assert_allclose(tj.jacobian(lambda v: tj.hvp(rosenbrock)(x, v))(v), hessian, rtol=1e-12)
    assert_allclose(tj.grad(lambda s: np.sum(tj.hvp(rosenbrock)(x, s * v)))(1.0), np.sum(hessian @ v), rtol=1e-12)


def test_an_active_pullback_and_an_active_tangent():
    x, y_bar = np.array([0.5, 1.5]), np.array([2.0, -1.0])
    f = lambda x: np.sin(x) * x[::-1]  # noqa: E731
    jacobian = tj.jacobian(f)(x)
    assert_allclose(tj.jacobian(lambda y_bar: tj.vjp(f)(x)[1](y_bar))(y_bar), jacobian.T, rtol=1e-14)
    assert_allclose(tj.jacobian(lambda x_dot: tj.jvp(f)(x, x_dot)[1])(y_bar), jacobian, rtol=1e-14)


# Shapes.


@pytest.mark.parametrize(
    ("x", "shape"), [(2.0, ()), (2, ()), (np.float64(2.0), ()), (np.array(2.0), ()), ([1.0, 2.0], (2,)), ((1, 2), (2,)),
                     ([[1.0], [2.0]], (2, 1)), (np.ones((2, 3, 2)), (2, 3, 2)), (np.ones((1, 1)), (1, 1)), (np.zeros((0,)), (0,)),
                     (np.zeros((3, 0)), (3, 0)), (np.ones(3, np.float32), (3,)), (np.ones((4, 4))[::2, ::-1], (2, 4)), ([], (0,))],
)  # fmt: skip
def test_gradients_have_the_shape_of_their_argument(x, shape):
    value, gradient = tj.value_and_grad(lambda x: np.sum(x * x))(x)
    assert isinstance(value, float)
    assert np.shape(gradient) == shape
    assert_array_equal(gradient, 2.0 * np.asarray(x, dtype=float))
    assert isinstance(gradient, float if shape == () else np.ndarray)
    if shape:
        assert gradient.dtype == np.float64
    hessian = tj.hessian(lambda x: np.sum(x * x))(x)
    assert np.shape(hessian) == shape + shape
    assert_array_equal(np.reshape(hessian, (np.size(x),) * 2), 2.0 * np.eye(np.size(x)))
    assert np.shape(tj.hvp(lambda x: np.sum(x * x))(x, np.ones(shape))) == shape


@pytest.mark.parametrize("x_shape", [(), (2,), (2, 3), (1, 1), (0,)])
@pytest.mark.parametrize("y_shape", [(), (4,), (3, 2), (1,), (0,)])
def test_jacobians_have_the_shapes_of_value_and_argument(x_shape, y_shape, rng):
    weights = rng.standard_normal(y_shape + x_shape)

    def f(x):
        return (
            np.sum(weights * x, axis=tuple(range(len(y_shape), len(y_shape) + len(x_shape))))
            if x_shape
            else weights * x
        )

    x = rng.standard_normal(x_shape) if x_shape else 1.5
    jacobian = tj.jacobian(f)(x)
    assert np.shape(jacobian) == y_shape + x_shape
    assert_allclose(jacobian, weights, rtol=1e-15)
    value, tangent = tj.jvp(f)(x, np.ones(x_shape) if x_shape else 1.0)
    assert np.shape(value) == np.shape(tangent) == y_shape
    y_bar = np.ones(y_shape) if y_shape else 1.0
    assert np.shape(tj.vjp(f)(x)[1](y_bar)) == x_shape


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 50), (50, 1), (40, 3), (33, 70), (64, 8), (100, 30)])
def test_tall_and_wide_jacobians(m, n, rng):
    """Reverse passes of up to 32 rows, or tangents where there are far fewer inputs than outputs."""
    a, x = rng.standard_normal((m, n)), rng.standard_normal(n)
    expected = np.cos(a @ x)[:, None] * a
    f = lambda x: np.sin(a @ x)  # noqa: E731
    assert_allclose(tj.jacobian(f)(x), expected, rtol=1e-10, atol=1e-13)
    assert_allclose(tj.record(f, x).jacobian(x), expected, rtol=1e-10, atol=1e-13)
    in_scalars = lambda x: [np.sin(sum(a_ij * x_j for a_ij, x_j in zip(row, x, strict=True))) for row in a]  # noqa: E731
    assert_allclose(tj.jacobian(in_scalars)(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("output", "rows"),
    [
        (lambda x: [x[0], x[1]], [0, 1]),
        (lambda x: (x[0], x[1]), [0, 1]),
        (lambda x: np.array([x[0], x[1]]), [0, 1]),
        (lambda x: np.stack([x[1], x[0]]), [1, 0]),
        (lambda x: x[1:], [1, 2]),
        (lambda x: [x[0], 2.0], [0, None]),
        (lambda x: [1.0, x[1]], [None, 1]),
        (lambda x: [[x[0]], [x[2]]], [0, 2]),
        (lambda x: [x[:1], x[2:]], [0, 2]),
    ],
)
def test_outputs_as_lists_tuples_and_arrays(output, rows):
    x = np.array([5.0, 2.0, 3.0])
    expected = [np.zeros(3) if row is None else np.eye(3)[row] for row in rows]
    jacobian = tj.jacobian(output)(x)
    assert jacobian.shape == np.shape(output(x)) + (3,)
    assert_array_equal(jacobian.reshape(2, 3), expected)
    assert_array_equal(tj.jvp(output)(x, x)[0], output(x))


# What does not depend, and what is named twice.


@pytest.mark.parametrize(
    "f",
    [lambda x: 3.0, lambda x: np.float64(3.0), lambda x: 3, lambda x: x[0] * 0.0 + 3.0, lambda x: tj.value(x[0]) + 2.0],
)
def test_constant_functions_have_a_zero_gradient(f):
    x = np.array([1.0, 2.0])
    value, gradient = tj.value_and_grad(f)(x)
    assert value == 3.0
    assert_array_equal(gradient, np.zeros(2))
    assert_array_equal(tj.hessian(f)(x), np.zeros((2, 2)))
    assert tj.jvp(f)(x, x)[1] == 0.0
    assert_array_equal(tj.jacobian(tj.grad(f))(x), np.zeros((2, 2)))
    assert tj.grad(lambda s: np.sum(tj.grad(f)(s * x)))(1.0) == 0.0


def test_an_input_that_is_not_used():
    assert tj.grad(lambda x, y: x * x, (0, 1))(3.0, 4.0) == (6.0, 0.0)
    assert_array_equal(tj.grad(lambda x, y: x * x, 1)(3.0, np.ones(2)), np.zeros(2))
    assert_array_equal(tj.grad(lambda x: x[1] * 2.0)(np.ones(3)), [0.0, 2.0, 0.0])
    assert tj.grad(lambda x: tj.grad(lambda x, y: x * x, 1)(x, x))(2.0) == 0.0


def test_an_output_that_is_an_input():
    assert tj.value_and_grad(lambda x: x)(3.0) == (3.0, 1.0)
    assert_array_equal(tj.jacobian(lambda x: x)(np.ones((2, 2))), np.eye(4).reshape(2, 2, 2, 2))
    assert_array_equal(tj.jvp(lambda x: x[::-1])(np.arange(3.0), np.array([1.0, 2.0, 3.0]))[1], [3.0, 2.0, 1.0])
    assert tj.hessian(lambda x: x)(3.0) == 0.0
    assert tj.grad(lambda s: tj.grad(lambda x: x)(s) * s)(3.0) == 1.0


def test_an_output_that_is_named_twice():
    x = np.array([2.0, 3.0])
    assert_array_equal(tj.jacobian(lambda x: [x[0], x[0], x[0] * x[1], x[0]])(x), [[1, 0], [1, 0], [3, 2], [1, 0]])
    _, pullback = tj.vjp(lambda x: np.array([x[0], x[0]]))(x)
    assert_array_equal(pullback([1.0, 2.0]), [3.0, 0.0])
    nested = tj.grad(lambda s: np.sum(tj.vjp(lambda x: np.array([x[0] * x[0]] * 2))(s * x)[1](np.array([1.0, 2.0]))))
    assert_allclose(nested(1.0), 3.0 * 2.0 * 2.0, rtol=1e-15)


def test_an_argument_that_is_given_twice():
    x = np.array([1.0, 2.0])
    a_bar, b_bar = tj.grad(lambda a, b: np.sum(a * b * b), (0, 1))(x, x)
    assert_array_equal(a_bar, x * x)
    assert_array_equal(b_bar, 2.0 * x * x)
    # Inside: both stand for the same outer value.
    assert_allclose(tj.grad(lambda x: np.sum(tj.grad(lambda a, b: np.sum(a * b * b))(x, x)))(x), 2.0 * x, rtol=1e-15)


def test_keyword_arguments_are_passed_on():
    def f(x, power=2, *, scale=1.0):
        return scale * np.sum(x**power)

    x = np.array([1.0, 2.0])
    assert_array_equal(tj.grad(f)(x, power=3, scale=2.0), 6.0 * x**2)
    assert_array_equal(tj.hvp(f)(x, np.ones(2), power=3), 6.0 * x)
    assert_array_equal(tj.hessian(f)(x, scale=0.5), np.eye(2))
    assert_array_equal(tj.jacobian(f)(x, power=3), 3.0 * x**2)
    assert tj.jvp(f)(x, np.ones(2), scale=3.0)[1] == 18.0
    assert_array_equal(tj.vjp(f)(x, scale=3.0)[1](1.0), 6.0 * x)
    # An active keyword argument.
    assert tj.grad(lambda s: np.sum(tj.grad(f)(x, scale=s)))(1.0) == 6.0
    assert_allclose(tj.grad(lambda s: np.sum(tj.hvp(f)(x, np.ones(2), power=3, scale=s)))(1.0), 18.0, rtol=1e-15)
    assert_allclose(tj.grad(lambda s: np.sum(tj.hessian(f)(x, scale=s)))(1.0), 4.0, rtol=1e-15)


def test_transforms_keep_the_name_and_the_text_of_the_function():
    for transform in (tj.grad, tj.value_and_grad, tj.jvp, tj.vjp, tj.jacobian, tj.hvp, tj.hessian):
        assert transform(rosenbrock).__name__ == "rosenbrock"
        assert "rosen" in transform(rosenbrock).__doc__


def test_every_call_records_afresh():
    f = tj.value_and_grad(lambda x: x * x if x > 0.0 else -3.0 * x)
    assert [f(x) for x in (2.0, -2.0, 3.0)] == [(4.0, 4.0), (6.0, -3.0), (9.0, 6.0)]


def test_arguments_are_not_changed():
    x, data = np.array([1.0, 2.0]), np.array([3.0, 4.0])

    def f(x, data):
        y = x * data
        y *= 2.0
        y[0] = 1.0
        return np.sum(y)

    assert_array_equal(tj.grad(f)(x, data), [0.0, 8.0])
    assert_array_equal(x, [1.0, 2.0])
    assert_array_equal(data, [3.0, 4.0])


def test_results_of_two_calls_share_no_memory():
    f = tj.grad(lambda x: np.sum(x * x))
    first = f(np.ones(20_000))
    first[:] = 7.0
    assert_array_equal(f(np.ones(20_000)), np.full(20_000, 2.0))
    value, _ = tj.vjp(lambda x: x * 2.0)(np.ones(20_000))
    value[:] = 9.0
    assert_array_equal(tj.vjp(lambda x: x * 2.0)(np.ones(20_000))[0], np.full(20_000, 2.0))


def test_a_pullback_may_be_called_again_and_does_not_see_later_changes():
    x, data = np.ones(300), np.arange(300.0)
    _, pullback = tj.vjp(lambda x, data: x * data)(x, data)
    x[:], data[:] = 5.0, -1.0
    for _ in range(2):
        assert_array_equal(pullback(np.ones(300)), np.arange(300.0))
    assert_array_equal(pullback(np.zeros(300)), np.zeros(300))


def test_a_buffer_that_is_used_again_between_inner_gradients():
    """The outer tape must not read the buffer's last contents."""

    def outer(x):
        buffer, total = np.zeros(3), 0.0
        for k in range(1, 4):
            buffer[:] = k
            total = total + np.sum(tj.grad(lambda y, w: np.sum(y * y * w))(x, buffer))
        return total

    x = np.ones(3)
    assert outer(x) == 3 * 2 * (1 + 2 + 3)
    assert_array_equal(tj.grad(outer)(x), np.full(3, 12.0))


# Nesting.


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("f", "derivative"),
    [
        (np.sin, lambda x, n: math.sin(x + n * math.pi / 2)),
        (np.exp, lambda x, n: math.exp(x)),
        (lambda x: x**5, lambda x, n: math.perm(5, n) * x ** (5 - n)),
        (lambda x: 1.0 / x, lambda x, n: (-1) ** n * math.factorial(n) / x ** (n + 1)),
        (np.log, lambda x, n: (-1) ** (n - 1) * math.factorial(n - 1) / x**n),
    ],
)
def test_nested_gradients_and_tangents(f, derivative, depth):
    x = 0.8
    reverse = forward = alternating = f
    for level in range(depth):
        reverse = tj.grad(reverse)
        forward = along_one(forward)
        alternating = tj.grad(alternating) if level % 2 else along_one(alternating)
    for nested in (reverse, forward, alternating):
        assert_allclose(nested(x), derivative(x, depth), rtol=1e-11)


def along_one(f):
    return lambda x: tj.jvp(f)(x, 1.0)[1]


def test_third_derivatives_of_arrays(rng):
    x, u, v, w = rng.standard_normal((4, 5))

    def f(x):
        return np.sum(np.sin(x) * x[::-1] ** 2) + np.sum(np.outer(x, x) @ np.tanh(x))

    third = tj.jvp(lambda x: tj.jvp(lambda x: tj.jvp(f)(x, u)[1])(x, v)[1])(x, w)[1]
    assert_allclose(tj.grad(lambda x: np.sum(tj.hvp(f)(x, u) * v))(x) @ w, third, rtol=1e-10)
    assert_allclose(np.sum(tj.jacobian(tj.hessian(f))(x) * np.einsum("i,j,k->ijk", u, v, w)), third, rtol=1e-10)


def test_perturbation_confusion():
    """J. M. Siskind and B. A. Pearlmutter, Perturbation confusion and referential transparency, IFL 2005."""
    inner_forward = lambda x: x * along_one(lambda y: x + y)(1.0)  # noqa: E731
    inner_reverse = lambda x: x * tj.grad(lambda y: x + y)(1.0)  # noqa: E731
    for inner in (inner_forward, inner_reverse):
        assert along_one(inner)(1.0) == 1.0
        assert tj.grad(inner)(1.0) == 1.0
    # d/dx (x * d/dy (x * y)) = d/dx x**2
    for d in (along_one, tj.grad):
        for e in (along_one, tj.grad):
            assert d(lambda x, e=e: x * e(lambda y: x * y)(2.0))(3.0) == 6.0
            assert d(lambda x, e=e: e(lambda y: x * x * y)(x))(3.0) == 6.0
            assert d(lambda x, e=e: e(lambda y: x * y * y)(x) * x)(3.0) == 6.0 * 9.0
            assert d(lambda x, e=e: e(lambda y: x)(5.0) + x)(3.0) == 1.0


def test_amazing_perturbation_bug():
    """O. Manzyuk and others, Perturbation confusion in forward automatic differentiation of higher-order functions, JFP 2019."""

    def shifted(u):
        return lambda f: lambda x: f(x + u)

    for d in (along_one, tj.grad):
        # The derivative of a higher-order function is taken at a point: D(lambda u: shifted(u)(h)(y)) = D(h).
        outer = d(lambda u, d=d: d(shifted(u)(np.exp))(1.0))(0.0)
        assert_allclose(outer, math.e, rtol=1e-14)
        twice = d(lambda u, d=d: shifted(u)(d(shifted(u)(np.exp)))(1.0))(0.0)
        assert_allclose(twice, 2.0 * math.e, rtol=1e-14)


def test_closures_over_values_of_every_outer_level():
    def f(a):
        def g(b):
            def h(c):
                return a * b * c * c + a * a * np.sin(b)

            return tj.grad(h)(a * b) * b

        return tj.grad(g)(2.0 * a)

    # grad(h)(ab) b = 2 a b (a b) b = 2 a^2 b^3; its derivative by b at 2a with a fixed: but h closes over b, so all of it counts.
    # g(b) = 2 a^2 b^3, g' = 6 a^2 b^2 = 24 a^4, f' = 96 a^3.
    assert_allclose(f(1.5), 24.0 * 1.5**4, rtol=1e-13)
    assert_allclose(tj.grad(f)(1.5), 96.0 * 1.5**3, rtol=1e-13)
    assert_allclose(along_one(f)(1.5), 96.0 * 1.5**3, rtol=1e-13)


def test_closures_over_outer_arrays_and_their_elements():
    def f(x):
        inner = tj.grad(lambda y: np.sum(y * x) * x[0] + np.sum(np.sin(x[1:] * y[1:])))
        return np.sum(inner(x * 2.0))

    def plain(x):
        return np.sum(x * x[0]) + np.sum(x[1:] * np.cos(2.0 * x[1:] ** 2))

    x = np.array([0.5, 1.5, -0.7])
    assert_allclose(f(x), plain(x), rtol=1e-14)
    assert_allclose(tj.grad(f)(x), tj.grad(plain)(x), rtol=1e-13)
    assert_allclose(tj.jvp(f)(x, np.ones(3))[1], np.sum(tj.grad(plain)(x)), rtol=1e-13)


NESTED_BODIES = {
    "matmul": lambda y, w: np.sum(np.tanh(np.reshape(y, (2, 3)) @ w) ** 2),
    "matmul of active factors": lambda y, w: np.sum((np.reshape(y, (2, 3)) @ np.reshape(y, (3, 2))) * w[:2]),
    "vector product": lambda y, w: (y[:3] @ w)[0] * np.dot(y, y),
    "sum over an axis": lambda y, w: np.sum(np.sum(np.reshape(y, (2, 3)) ** 2 * w.T, axis=0) ** 2),
    "mean over an axis": lambda y, w: np.sum(np.mean(np.reshape(y, (3, 2)) * w, axis=1) ** 3),
    "where": lambda y, w: np.sum(np.where(y > 0.3, y**3, np.sin(y)) * np.reshape(w, -1)),
    "fancy": lambda y, w: np.sum(np.exp(y[[0, 0, 3, 5]]) * y[2:] ** 2) * w[0, 0],
    "broadcast": lambda y, w: np.sum(np.outer(y, y) ** 2 * y[:, None]) * w[1, 1],
    "in place": lambda y, w: _assigned(y, w),
    "norm": lambda y, w: np.linalg.norm(np.reshape(y, (3, 2)) * w) ** 3,
    "max": lambda y, w: np.max(y) ** 2 * np.min(y * w[0, 0]),
    "cumsum": lambda y, w: np.sum(np.cumsum(y) ** 2) * w[2, 0],
    "scalars": lambda y, w: np.hypot(y[0], y[1]) * w[0, 0] ** 2 + y[2] ** y[3] / w[0, 1],
    "repeated slots": lambda y, w: np.sum(np.broadcast_to(y[0], (5,)) * np.tile(y[1], 5) ** 2) * w[0, 0],
    "tiles": lambda y, w: np.sum(np.sin(np.tile(y, 60) * w[0, 0]) ** 2),
}


def _assigned(y, w):
    z = np.zeros((2, 6), like=y)
    z[0] = y * y
    z[1, ::2] = np.sin(z[0, 1::2]) * w[0, 0]
    z[:, 1] *= y[3]
    return np.sum(z * z)


@pytest.mark.parametrize("name", NESTED_BODIES)
def test_an_inner_gradient_depends_on_what_it_closes_over(name, rng):
    """With outer values in both arguments: against the outer derivative of the same gradient by differences."""
    body = NESTED_BODIES[name]
    y0, w0 = rng.uniform(0.4, 1.2, 6), rng.uniform(0.4, 1.2, (3, 2))
    weights = rng.standard_normal(6)

    def f(t):
        inner = tj.grad(lambda y: body(y, w0 * t))
        return np.sum(inner(y0 * (1.0 + np.sin(t) * weights * 0.1)) * weights)

    h = 1e-4
    expected = (8.0 * (f(0.8 + h) - f(0.8 - h)) - f(0.8 + 2 * h) + f(0.8 - 2 * h)) / (12.0 * h)
    assert_allclose(tj.grad(f)(0.8), expected, rtol=1e-8, atol=1e-9)
    assert_allclose(along_one(f)(0.8), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", NESTED_BODIES)
def test_an_inner_tangent_and_jacobian_depend_on_what_they_close_over(name, rng):
    body = NESTED_BODIES[name]
    y0, w0 = rng.uniform(0.4, 1.2, 6), rng.uniform(0.4, 1.2, (3, 2))
    v = rng.standard_normal(6)

    def f(t):
        return (
            tj.jvp(lambda y: body(y, w0 * t))(y0 * t, v * t)[1]
            + np.sum(tj.jacobian(lambda y: [body(y, w0 * t), y[0] * t])(y0)) * t
        )

    h = 1e-4
    expected = (8.0 * (f(0.8 + h) - f(0.8 - h)) - f(0.8 + 2 * h) + f(0.8 - 2 * h)) / (12.0 * h)
    assert_allclose(tj.grad(f)(0.8), expected, rtol=1e-8, atol=1e-9)
    assert_allclose(along_one(f)(0.8), expected, rtol=1e-8, atol=1e-9)


def test_the_gradient_of_an_inner_minimisation():
    """Meta-gradient: w after K gradient steps of rate a on (w - t)**2 is t + (w0 - t)(1 - 2 a)**K."""
    n_steps, w0 = 20, 4.0

    def tuned(rate, target):
        w = w0
        for _ in range(n_steps):
            w = w - rate * tj.grad(lambda w: (w - target) ** 2)(w)
        return w

    rate, target = 0.05, 1.5
    shrunk = (1.0 - 2.0 * rate) ** n_steps
    value, gradient = tj.value_and_grad(tuned, (0, 1))(rate, target)
    assert_allclose(value, target + (w0 - target) * shrunk, rtol=1e-14)
    assert_allclose(
        gradient, [(w0 - target) * -2.0 * n_steps * (1.0 - 2.0 * rate) ** (n_steps - 1), 1.0 - shrunk], rtol=1e-12
    )


def test_the_gradient_of_an_inner_minimisation_of_arrays(rng):
    a = rng.standard_normal((8, 3))
    y = rng.standard_normal(8)

    def validation(penalty):
        w = np.zeros(3)
        for _ in range(10):
            w = w - 0.02 * tj.grad(lambda w: np.sum((a @ w - y) ** 2) + penalty * np.sum(w * w))(w)
        return np.sum((a[:4] @ w - 1.0) ** 2)

    h = 1e-4
    expected = (
        8.0 * (validation(0.3 + h) - validation(0.3 - h)) - validation(0.3 + 2 * h) + validation(0.3 - 2 * h)
    ) / (12.0 * h)
    assert_allclose(tj.grad(validation)(0.3), expected, rtol=1e-9)


def test_newton_steps_through_hessians():
    """A Newton step on x**2 / 2 - b x lands on b, whatever x: its derivative by b is 1, by x 0."""

    def step(x, b):
        f = lambda x: x * x / 2.0 - b * x  # noqa: E731
        return x - tj.grad(f)(x) / tj.hessian(f)(x)

    assert_allclose(tj.grad(step, (0, 1))(3.0, 1.2), (0.0, 1.0), atol=1e-15)


def test_branches_of_inner_functions():
    def f(x):
        return tj.grad(lambda y: y * y * x if y > 1.0 else y * x**3)(x)

    assert tj.grad(f)(2.0) == 8.0  # 2 x^2
    assert_allclose(tj.grad(f)(0.5), 3 * 0.25, rtol=1e-15)


def test_values_of_an_inner_transform_are_active():
    def f(x):
        value, gradient = tj.value_and_grad(lambda y: y**3 * x)(x)
        return value * 2.0 + gradient  # 2 x^4 + 3 x^3

    assert_allclose(tj.grad(f)(2.0), 8 * 8.0 + 9 * 4.0, rtol=1e-15)

    def g(x):
        value, tangent = tj.jvp(lambda y: y**3 * x)(x, x)
        return value + tangent  # x^4 + 3 x^4

    assert_allclose(tj.grad(g)(2.0), 16 * 8.0, rtol=1e-15)


def test_an_inner_transform_of_plain_numbers_inside_gives_plain_numbers():
    seen = []

    def f(x):
        seen.append(tj.grad(lambda y: y * y)(3.0))
        return x * seen[-1]

    assert tj.grad(f)(2.0) == 6.0
    assert seen == [6.0] and type(seen[0]) is float


# Refusals.

x1 = np.ones(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tj.grad(3.0), TypeError, r"expected a function to differentiate, got float; write tj.grad\(f\)\(x\)"),
        (lambda: tj.record(None, 1.0), TypeError, "expected a function to differentiate, got NoneType"),
        (lambda: tj.grad(np.sum, 1)(x1), ShapeError, "argnums=1, but the function was called with 1 arguments"),
        (lambda: tj.grad(np.sum, -2)(x1), ShapeError, "argnums=-2, but the function was called with 1 arguments"),
        (lambda: tj.grad(np.sum)(), ShapeError, "argnums=0, but the function was called with 0 arguments"),
        (lambda: tj.grad(lambda a, b: a, (0, 0))(1.0, 2.0), ShapeError, r"argnums=\(0, 0\) names an argument twice"),
        (lambda: tj.grad(lambda a, b: a, (0, -2))(1.0, 2.0), ShapeError, "names an argument twice"),
        (lambda: tj.grad(np.sum, None)(x1), TypeError, "argnums must be an int or a sequence of ints, got None"),
        (lambda: tj.grad(np.sum, "0")(x1), TypeError, "argnums must be an int or a sequence of ints, got '0'"),
        (lambda: tj.grad(np.sum, 1.0)(x1), TypeError, "argnums must be an int or a sequence of ints"),
        (lambda: tj.grad(np.sin)(x1), ShapeError, r"a gradient needs a function that returns a scalar, got one of shape \(2,\); use tj.jacobian"),
        (lambda: tj.grad(lambda x: [x])(1.0), ShapeError, r"returns a scalar, got one of shape \(1,\)"),
        (lambda: tj.value_and_grad(lambda x: np.sum(x, keepdims=True))(x1), ShapeError, r"got one of shape \(1,\)"),
        (lambda: tj.hvp(np.sin)(x1, x1), ShapeError, "a Hessian-vector product needs a function that returns a scalar"),
        (lambda: tj.hessian(np.sin)(x1), ShapeError, "a Hessian needs a function that returns a scalar"),
        (lambda: tj.vjp(np.sin)(x1)[1](np.ones(3)), ShapeError, r"y_bar has shape \(3,\), but the output has shape \(2,\); pass one"),
        (lambda: tj.vjp(np.sin)(x1)[1](1.0), ShapeError, r"y_bar has shape \(\), but the output has shape \(2,\)"),
        (lambda: tj.jvp(np.sin)(x1, 1.0), ShapeError, r"x_dot has shape \(\), but the argument has shape \(2,\)"),
        (lambda: tj.jvp(np.sin)(x1, np.ones((2, 1))), ShapeError, r"x_dot has shape \(2, 1\)"),
        (lambda: tj.hvp(np.sum)(x1, np.ones(3)), ShapeError, r"has shape \(3,\), but the argument has shape \(2,\)"),
        (lambda: tj.jvp(lambda a, b: a, (0, 1))(1.0, 2.0, (1.0,)), ShapeError, "x_dot has 1 entries, but 2 arguments are differentiated"),
        (lambda: tj.hvp(lambda a, b: a, (0, 1))(1.0, 2.0, (1.0,)), ShapeError, "v has 1 entries, but 2 arguments"),
        (lambda: tj.jvp(np.sin)(x1), TypeError, "pass those of the function and, last, the direction x_dot"),
        (lambda: tj.hvp(np.sum)(x1), TypeError, "pass those of the function and, last, the direction v"),
        (lambda: tj.jvp(np.sin)(), TypeError, "last, the direction x_dot"),
        (lambda: tj.grad(np.sum)(np.arange(3)), ShapeError, r"real floating-point numbers, got dtype int64; pass x.astype\(float\)"),
        (lambda: tj.grad(np.sum)(np.array([True])), ShapeError, r"got dtype bool; pass x.astype\(float\)"),
        (lambda: tj.grad(np.sum)(np.ones(2) * 1j), ShapeError, "got dtype complex128.*real and imaginary parts"),
        (lambda: tj.grad(np.sum)(1j), ShapeError, "got dtype complex128"),
        (lambda: tj.grad(np.sum)(np.ones(2, np.longdouble)), ShapeError, "got dtype float128|longdouble|got dtype"),
        (lambda: tj.grad(np.sum)(np.ma.masked_array(np.ones(2), [0, 1])), ShapeError, r"is a MaskedArray.*pass np.asarray\(x\)"),
        (lambda: tj.grad(np.sum)("abc"), ShapeError, "must be real floating-point numbers"),
        (lambda: tj.grad(np.sum)(None), ShapeError, "must be real floating-point numbers, got dtype object"),
        (lambda: tj.grad(np.sum)({"a": 1.0}), ShapeError, "must be real floating-point numbers, got dtype object"),
        (lambda: tj.grad(np.sum)([[1.0], [1.0, 2.0]]), ValueError, "inhomogeneous"),
        (lambda: tj.grad(lambda x: None)(1.0), ShapeError, "the function returned None; did it forget to return"),
        (lambda: tj.grad(lambda x: {"a": x})(1.0), ShapeError, "the function returned a dict; return a number, an array"),
        (lambda: tj.grad(lambda x: {x.value})(1.0), ShapeError, "the function returned set"),
        (lambda: tj.grad(lambda x: object())(1.0), ShapeError, "the function returned object; return a number or an array"),
        (lambda: tj.grad(lambda x: "a")(1.0), UnsupportedError, "active values are real"),
        (lambda: tj.grad(lambda x: 1j)(1.0), UnsupportedError, "active values are real"),
        (lambda: tj.jacobian(lambda x: [x, [x, x]])(1.0), ShapeError, r"parts of different shapes \(\(\), \(2,\)\)"),
        (lambda: tj.grad(lambda x: float(x))(1.0), PassiveConversionError, r"turned into a plain float.*test_derivatives.py:\d+"),
        (lambda: tj.grad(lambda x: math.exp(x))(1.0), PassiveConversionError, r"write np.sin\(x\) instead of math.sin\(x\)"),
        (lambda: tj.grad(lambda x: np.sum(np.zeros(2) + np.asarray(x, dtype=float)))(x1), PassiveConversionError, "drop its derivative"),
        (lambda: tj.grad(lambda x: np.fft.fft(x)[0])(x1), UnsupportedError, "fft.*is not supported"),
        (lambda: tj.grad(lambda s: np.sum(tj.vjp(np.sin)(x1)[1](s)))(1.0), ShapeError, r"y_bar has shape \(\), but the output has shape \(2,\)"),
        (lambda: tj.grad(lambda s: np.sum(tj.jvp(np.sin)(x1, s)[1]))(1.0), ShapeError, r"x_dot has shape \(\), but the argument"),
        (lambda: tj.grad(lambda x: tj.record(np.sum, x).value(x1))(x1), TapejitError, "tj.record inside a function.*tj.value_and_grad"),
        (lambda: tj.grad(lambda x: tj.record(np.sum, x1).value(x))(x1), TapejitError, "replays at plain numbers.*tj.value"),
    ],
)  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def escaped_from_a_transform():
    kept = []
    tj.grad(lambda x: kept.append(x) or x * 1.0)(2.0)
    return kept[0]


def escaped_array():
    kept = []
    tj.grad(lambda x: kept.append(x) or np.sum(x))(np.ones(3))
    return kept[0]


@pytest.mark.parametrize(
    "use",
    [
        lambda x, y: x * y,
        lambda x, y: y + x,
        lambda x, y: x,
        lambda x, y: np.sum(np.array([x, y])),
        lambda x, y: y if x > 0.0 else -y,
        lambda x, y: tj.grad(lambda z: z * x)(y),
        lambda x, y: tj.grad(lambda z: z * z)(x) * y,
        lambda x, y: tj.jvp(lambda z: z * z)(y, x)[1],
        lambda x, y: np.sum(np.stack([y * y, x])),
    ],
)
def test_values_that_have_left_their_function_are_refused(use):
    """Also where nothing but the escaped value is used: its derivative by this function's argument would be silently zero."""
    x = escaped_from_a_transform()
    with pytest.raises(TapeError, match="tj.value|not being recorded"):
        tj.grad(lambda y: use(x, y))(3.0)


@pytest.mark.parametrize(
    "use",
    [
        lambda a, y: np.sum(a * y),
        lambda a, y: a[0] * y,
        lambda a, y: np.sum(a),
        lambda a, y: np.sum(np.concatenate([a, a])) * y,
        lambda a, y: (a @ a) * y,
    ],
)
def test_arrays_that_have_left_their_function_are_refused(use):
    a = escaped_array()
    with pytest.raises(TapeError, match="tj.value|not being recorded"):
        tj.grad(lambda y: use(a, y))(3.0)


def test_a_value_of_an_inner_function_that_escapes_to_the_outer_one_is_refused():
    def f(x):
        kept = []
        tj.grad(lambda y: kept.append(y * x) or y * x)(x)
        return kept[0] * x

    with pytest.raises(TapeError, match="tj.value|not being recorded"):
        tj.grad(f)(2.0)


def test_an_inner_value_stored_into_an_outer_array_is_refused():
    def f(x):
        store = np.zeros(2, like=x)

        def inner(y):
            store[0] = y * x[0]
            return y * y

        return tj.grad(inner)(x[0]) + np.sum(store)

    with pytest.raises(TapeError, match="value of an inner tape is stored into an array of an outer one"):
        tj.grad(f)(np.ones(2))


def test_two_transforms_of_one_function_do_not_disturb_each_other():
    f = tj.grad(lambda x: np.sum(np.sin(x) * x))
    x = np.linspace(0.0, 1.0, 7)
    before = f(x)
    with pytest.raises(ShapeError):
        tj.grad(lambda x: None)(1.0)
    with pytest.raises(ZeroDivisionError):
        tj.grad(lambda x: 1 / 0)(1.0)
    assert_array_equal(f(x), before)
    assert not open_tapes()
