"""`tj.checkpoint`: regions that are recorded again."""

import numba
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit.errors import DeterminismError, TapeError, UnsupportedError
from tapejit.testing import check_grads


def layer(x, w):
    return np.tanh(w @ x) + 0.1 * x


def network(w, layer=layer, depth=6):
    x = np.ones(3)
    for _ in range(depth):
        x = layer(x, w)
    return np.sum(x * x)


W = np.linspace(-0.5, 0.6, 9).reshape(3, 3)


def test_derivatives_are_those_without_it(rng):
    region = tj.checkpoint(layer)

    def f(w):
        return network(w, region)

    assert f(W) == network(W)
    value, gradient = tj.value_and_grad(f)(W)
    expected, wanted = tj.value_and_grad(network)(W)
    assert value == expected
    assert_allclose(gradient, wanted, rtol=1e-13)
    assert_allclose(tj.hvp(f)(W, W), tj.hvp(network)(W, W), rtol=1e-12)
    assert_allclose(tj.hessian(f)(W), tj.hessian(network)(W), rtol=1e-11, atol=1e-13)
    assert_allclose(tj.jvp(f)(W, W)[1], tj.jvp(network)(W, W)[1], rtol=1e-13)
    assert_allclose(
        tj.jacobian(lambda w: region(np.ones(3), w))(W), tj.jacobian(lambda w: layer(np.ones(3), w))(W), rtol=1e-13
    )
    assert_allclose(tj.jvp(tj.grad(f))(W, W)[1], tj.hvp(network)(W, W), rtol=1e-12)
    check_grads(f, (W,), rng=rng)


def test_tape_keeps_the_arguments_and_results_only():
    inside = 50

    def deep(x):
        for _ in range(inside):
            x = np.sin(x) + 0.1 * x
        return x

    x = np.linspace(0, 1, 1000)
    short = tj.record(lambda x: np.sum(tj.checkpoint(deep)(x)), x)
    whole = tj.record(lambda x: np.sum(deep(x)), x)
    assert short.n_slots < 2200 and whole.n_slots > 2 * inside * 1000
    assert_allclose(short.grad(x + 0.1), whole.grad(x + 0.1), rtol=1e-13)
    assert_allclose(short.value(x + 0.2), whole.value(x + 0.2), rtol=1e-13)


def test_regions_nest_and_hold_loops():
    inner = tj.checkpoint(lambda x, p: np.sin(x * p) + x)

    def middle(x, p):
        for _ in range(3):
            x = inner(x, p)
        return tj.loop(lambda x, p: 0.9 * x + np.cos(p * x), x, 5, p, checkpoints=2)

    def outer(f):
        return lambda p: np.sum(f(f(np.array([0.3, 0.4]), p), p))

    def plain(x, p):
        for _ in range(3):
            x = np.sin(x * p) + x
        for _ in range(5):
            x = 0.9 * x + np.cos(p * x)
        return x

    assert_allclose(tj.grad(outer(tj.checkpoint(middle)))(0.7), tj.grad(outer(plain))(0.7), rtol=1e-12)
    assert_allclose(tj.hessian(outer(tj.checkpoint(middle)))(0.7), tj.hessian(outer(plain))(0.7), rtol=1e-11)


def test_region_inside_the_step_of_a_loop():
    region = tj.checkpoint(layer)

    def f(w, layer):
        return np.sum(tj.loop(lambda x, w: layer(x, w), np.ones(3), 7, w, checkpoints=2))

    assert_allclose(tj.grad(lambda w: f(w, region))(W), tj.grad(lambda w: f(w, layer))(W), rtol=1e-13)


def test_arguments_and_results_are_nested():
    @tj.checkpoint
    def f(state, *, factor, names):
        return {"sum": state["x"] + factor * state["y"][0], "names": names, "product": [state["x"] * state["y"][1]]}

    def g(x, y):
        out = f({"x": x, "y": (y, 3.0)}, factor=2.0, names=("a", 1))
        assert out["names"] == ("a", 1)
        return np.sum(out["sum"] * out["product"][0])

    found = tj.grad(g, argnums=(0, 1))(np.array([1.0, 2.0]), 0.5)
    expected = tj.grad(lambda x, y: np.sum((x + 2.0 * y) * (3.0 * x)), argnums=(0, 1))(np.array([1.0, 2.0]), 0.5)
    assert_allclose(found[0], expected[0])
    assert_allclose(found[1], expected[1])
    assert f({"x": 1.0, "y": (2.0, 3.0)}, factor=2.0, names=())["sum"] == 5.0


def test_compiled_functions():
    @numba.njit
    def f(x, p):
        y = np.empty_like(x)
        for i in range(x.size):
            y[i] = np.sin(x[i]) * p + x[i - 1]
        return y

    x = np.linspace(0, 1, 5)
    found = tj.grad(lambda x: np.sum(tj.checkpoint(f)(2.0 * x, 0.3) ** 2))(x)
    assert_allclose(found, tj.grad(lambda x: np.sum(tj.native(f)(2.0 * x, 0.3) ** 2))(x), rtol=1e-13)


def test_branches_go_the_way_of_the_point():
    region = tj.checkpoint(lambda x: x * x if x > 1.0 else 3.0 * x)
    recording = tj.record(lambda x: region(x) + x, 0.5)
    for x in (0.5, 2.0, 1.0):
        assert_allclose(recording.value_and_grad(x), tj.value_and_grad(lambda x: region(x) + x)(x))


def test_what_is_refused():
    def closes_over(q):
        return tj.checkpoint(lambda x: x * q)(2.0 * q)

    with pytest.raises(UnsupportedError, match="under tj.checkpoint uses an active value that is no argument"):
        tj.grad(closes_over)(0.5)
    rng = np.random.default_rng(0)
    with pytest.raises(DeterminismError, match="under tj.checkpoint gave"):
        tj.grad(tj.checkpoint(lambda x: x * rng.normal()))(0.5)

    def writes(x):
        x[0] = 1.0
        return np.sum(x * x)

    with pytest.raises(ValueError, match="read-only"):
        tj.grad(tj.checkpoint(writes))(np.ones(3))
    import pickle

    with pytest.raises(TapeError, match="cannot be pickled"):
        pickle.dumps(tj.record(lambda x: tj.checkpoint(np.sin)(x), 0.5).tape)
    with pytest.raises(TypeError):
        tj.checkpoint(3.0)


def test_pullback_may_be_called_again():
    _, pullback = tj.vjp(lambda x: tj.checkpoint(lambda x: np.sin(x) * x)(x))(np.array([0.1, 0.2]))
    assert_array_equal(pullback(np.ones(2)), pullback(np.ones(2)))
