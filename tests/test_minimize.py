"""`tj.minimize`: every method, bounds and constraints, callbacks, shapes, points where the loss is not finite, refusals."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint, rosen

import tapejit as tj
from tapejit.errors import BranchChangeError, ShapeError, TapejitError, UnsupportedError

METHODS = [
    "CG",
    "BFGS",
    "L-BFGS-B",
    "TNC",
    "SLSQP",
    "Newton-CG",
    "trust-ncg",
    "trust-krylov",
    "trust-constr",
    "dogleg",
    "trust-exact",
]
SECOND_ORDER = METHODS[5:]
START = np.array([-1.2, 1.0])


def rosenbrock(x):
    return np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def options(method):
    """Enough iterations, and tolerances that all methods reach."""
    if method == "trust-constr":
        return {"gtol": 1e-8, "xtol": 1e-12, "maxiter": 2000}
    if method == "TNC":
        return {"maxfun": 5000, "gtol": 1e-10}
    if method == "L-BFGS-B":
        return {"ftol": 1e-15, "gtol": 1e-8}
    return {"SLSQP": {"ftol": 1e-14, "maxiter": 500}, "Newton-CG": {"xtol": 1e-10}}.get(method, {"gtol": 1e-8})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [START, np.array([0.0, 0.5, -0.5, 1.5])], ids=["2", "4"])
def test_every_method_minimises_rosenbrock(method, start):
    if method == "dogleg":
        start = np.full(start.size, 1.2)  # it needs a positive definite Hessian on the way
    result = tj.minimize(rosenbrock, start, method=method, options=options(method))
    assert result.success, result.message
    assert_allclose(result.x, np.ones(start.size), atol=1e-3 if method == "TNC" else 1e-5)
    assert_allclose(result.fun, rosen(result.x), rtol=1e-12, atol=1e-25)
    assert result.x.shape == result.jac.shape == start.shape
    assert result.n_recorded == 1
    assert result.n_not_finite == 0


@pytest.mark.parametrize("method", ["l-bfgs-b", "NEWTON-cg", "bfgs"])
def test_method_names_are_read_as_scipy_reads_them(method):
    assert_allclose(tj.minimize(rosenbrock, START, method=method).x, [1.0, 1.0], atol=1e-4)


def test_exact_second_derivatives_are_used():
    """A quadratic form takes one Newton step."""
    a = np.array([[3.0, 1.0], [1.0, 2.0]])
    result = tj.minimize(lambda x: 0.5 * x @ a @ x - np.sum(x), np.array([10.0, -7.0]), method="trust-exact")
    assert_allclose(result.x, np.linalg.solve(a, np.ones(2)), rtol=1e-12)
    assert_allclose(result.hess, a, rtol=1e-15)
    result = tj.minimize(lambda x: 0.5 * x @ a @ x - np.sum(x), np.array([10.0, -7.0]), method="Newton-CG")
    assert_allclose(result.x, np.linalg.solve(a, np.ones(2)), rtol=1e-12)
    assert result.nhev > 0


@pytest.mark.parametrize("method", METHODS)
def test_fewer_evaluations_than_with_differences(method):
    calls = []

    def counted(x):
        calls.append(1)
        return rosenbrock(x)

    start = np.full(2, 1.2) if method == "dogleg" else START
    result = tj.minimize(counted, start, method=method, options=options(method))
    assert result.success
    assert len(calls) == result.n_recorded == 1


# Arguments, shapes.


@pytest.mark.parametrize("method", ["L-BFGS-B", "Newton-CG", "trust-constr", "trust-exact", "BFGS"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2), (1, 3, 1)])
def test_any_shape_of_x0(method, shape):
    target = np.arange(1.0, 1.0 + np.prod(shape, dtype=int)).reshape(shape)
    seen = []

    def f(x):
        seen.append(np.shape(x))
        return np.sum((x - target) ** 2) + 3.0

    start = np.zeros(shape) if shape else 0.0
    result = tj.minimize(f, start, method=method, options={"xtol": 1e-12} if method == "trust-constr" else None)
    assert set(seen) == {shape}
    assert result.x.shape == result.jac.shape == shape
    assert_allclose(result.x, target, atol=1e-6)
    assert_allclose(result.fun, 3.0, atol=1e-10)


@pytest.mark.parametrize("x0", [2, 2.0, [2], (2.0, 1), [[1.0, 2.0]], np.float32(2.0), np.array(2.0)])
def test_x0_is_converted(x0):
    result = tj.minimize(lambda x: np.sum((x - 1.0) ** 2), x0)
    assert result.success
    assert_allclose(result.x, np.ones(np.shape(x0)), atol=1e-6)


def test_x0_is_not_changed():
    x0 = START.copy()
    tj.minimize(rosenbrock, x0)
    assert_array_equal(x0, START)


def test_further_arguments():
    data = np.array([3.0, 4.0])
    result = tj.minimize(lambda x, d, scale: scale * np.sum((x - d) ** 2), np.zeros(2), args=(data, 2.0))
    assert_allclose(result.x, data, atol=1e-6)
    result = tj.minimize(lambda x, d: np.sum((x - d) ** 2), np.zeros(2), args=(data,), method="Newton-CG")
    assert_allclose(result.x, data, atol=1e-6)


def test_a_recording_is_replayed():
    recording = tj.record(lambda x, d: np.sum((x - d) ** 2), np.zeros(2), np.array([1.0, 2.0]))
    result = tj.minimize(recording, np.array([5.0, 5.0]))
    assert_allclose(result.x, [1.0, 2.0], atol=1e-6)
    assert recording.n_recorded == result.n_recorded == 1
    other = np.array([-1.0, 3.0])
    for method in ("L-BFGS-B", "Newton-CG", "trust-exact"):
        assert_allclose(tj.minimize(recording, np.zeros(2), args=(other,), method=method).x, other, atol=1e-6)
    assert recording.n_recorded == 1  # `args` are parameters
    assert_allclose(tj.minimize(recording, np.zeros(2)).x, [1.0, 2.0], atol=1e-6)
    with pytest.raises(ShapeError, match="recorded argument"):
        tj.minimize(recording, np.zeros(3))


def test_options_and_tolerance_reach_scipy():
    assert tj.minimize(rosenbrock, START, options={"maxiter": 3}).nit == 3
    assert not tj.minimize(rosenbrock, START, method="BFGS", options={"maxiter": 3}).success
    coarse, fine = (tj.minimize(rosenbrock, START, method="BFGS", tol=tol) for tol in (1e-1, 1e-10))
    assert coarse.nit < fine.nit
    with pytest.warns(Warning, match="Unknown solver options: nonsense"):
        tj.minimize(rosenbrock, START, options={"nonsense": 3})


# Bounds and constraints.


@pytest.mark.parametrize("method", ["L-BFGS-B", "TNC", "SLSQP", "trust-constr"])
@pytest.mark.parametrize("bounds", [[(-2.0, 0.5), (-1.0, 2.0)], Bounds([-2.0, -1.0], [0.5, 2.0])])
def test_bounds(method, bounds):
    result = tj.minimize(rosenbrock, [0.0, 0.0], method=method, bounds=bounds, options=options(method))
    assert_allclose(result.x, [0.5, 0.25], atol=1e-4)
    assert result.x[0] <= 0.5


def test_bounds_of_a_matrix():
    result = tj.minimize(
        lambda x: np.sum((x - 3.0) ** 2), np.zeros((2, 2)), bounds=[(None, 1.0), (None, 2.0), (None, None), (4.0, None)]
    )
    assert_allclose(result.x, [[1.0, 2.0], [3.0, 4.0]], atol=1e-7)


def circle(x):
    return x[0] ** 2 + x[1] ** 2


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
@pytest.mark.parametrize(
    "constraint",
    [
        {"type": "eq", "fun": lambda x: circle(x) - 2.0},
        {"type": "eq", "fun": lambda x, r: circle(x) - r, "args": (2.0,)},
        NonlinearConstraint(circle, 2.0, 2.0),
        [NonlinearConstraint(lambda x: [circle(x), np.sin(x[0] - x[1])], [2.0, 0.0], [2.0, 0.0])],
    ],
)
def test_nonlinear_constraints_with_exact_jacobians(method, constraint):
    """The largest sum on a circle of radius sqrt 2."""
    result = tj.minimize(
        lambda x: -np.sum(x), np.array([0.5, 0.2]), method=method, constraints=constraint, options=options(method)
    )
    assert_allclose(result.x, [1.0, 1.0], atol=1e-5)


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
def test_inequalities_and_linear_constraints(method):
    inequality = {"type": "ineq", "fun": lambda x: 1.0 - circle(x)}
    linear = LinearConstraint([[1.0, -1.0]], [0.0], [0.0])
    result = tj.minimize(
        lambda x: -x[0] - 2.0 * x[1],
        np.array([0.1, 0.1]),
        method=method,
        constraints=[inequality, linear],
        options=options(method),
    )
    assert_allclose(result.x, np.full(2, np.sqrt(0.5)), atol=1e-3)


def test_constraints_are_differentiated_exactly():
    """Never by differences: the constraint is evaluated on active values, and its Jacobian is exact to rounding."""
    seen = []

    def constraint(x):
        seen.append(isinstance(x, tj.Array))
        return [np.exp(x[0]) * x[1]]

    result = tj.minimize(
        circle, np.array([0.5, 0.5]), method="trust-constr", constraints=NonlinearConstraint(constraint, 1.0, 1.0)
    )
    assert any(seen)
    x = result.x
    assert_allclose(np.reshape(result.constr_jac[0], -1), [np.exp(x[0]) * x[1], np.exp(x[0])], rtol=1e-12)
    assert_allclose(result.jac, 2.0 * x, rtol=1e-12)


def test_constraints_on_a_matrix_see_its_shape():
    seen = set()

    def constraint(x):
        seen.add(np.shape(x))
        return np.sum(x, axis=0) - 1.0

    result = tj.minimize(
        lambda x: np.sum(x * x), np.ones((2, 2)), method="SLSQP", constraints={"type": "eq", "fun": constraint}
    )
    assert seen == {(2, 2)}
    assert_allclose(result.x, np.full((2, 2), 0.5), atol=1e-8)


def test_a_jacobian_of_the_caller_s_own_is_used():
    calls = []

    def jac(x):
        calls.append(1)
        return 2.0 * x

    tj.minimize(
        lambda x: -np.sum(x),
        [0.5, 0.2],
        method="SLSQP",
        constraints={"type": "eq", "fun": lambda x: circle(x) - 2.0, "jac": jac},
    )
    assert calls


# Callbacks.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("style", ["point", "result"])
def test_callbacks_of_both_styles(method, style):
    points = []
    if style == "point":

        def callback(xk):
            points.append(xk)
    else:

        def callback(intermediate_result):
            points.append(intermediate_result.x)
            assert np.isfinite(intermediate_result.fun)

    start = np.full((1, 2), 1.2)
    result = tj.minimize(
        lambda x: rosenbrock(np.reshape(x, -1)), start, method=method, callback=callback, options=options(method)
    )
    assert points and all(point.shape == (1, 2) for point in points)
    assert_allclose(points[-1], result.x, atol=1e-3)
    assert len({point.tobytes() for point in points}) > 1, "all points are one array"


@pytest.mark.parametrize("method", [method for method in METHODS if method != "dogleg"])
def test_stop_iteration_stops(method):
    seen = []

    def callback(xk):
        seen.append(xk)
        if len(seen) == 2:
            raise StopIteration

    result = tj.minimize(rosenbrock, START, method=method, callback=callback)
    assert len(seen) == 2
    assert not result.success or result.nit <= 3
    assert np.isfinite(result.fun)


def test_errors_of_a_callback_reach_the_caller():
    def callback(xk):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tj.minimize(rosenbrock, START, callback=callback)


@pytest.mark.parametrize("method", METHODS)
def test_progress_shows_loss_and_gradient_norm(method, capsys):
    pytest.importorskip("tqdm")
    start = np.full(2, 1.2) if method == "dogleg" else START
    result = tj.minimize(rosenbrock, start, method=method, progress=True, options=options(method))
    assert result.success
    shown = capsys.readouterr().err
    assert "loss" in shown and "gradient norm" in shown and "iterations" in shown


def test_progress_with_a_callback(capsys):
    pytest.importorskip("tqdm")
    points = []
    tj.minimize(rosenbrock, START, progress=True, callback=lambda xk: points.append(xk))
    assert points and "loss" in capsys.readouterr().err


# Points where the loss is not finite.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("f", "what"),
    [
        (lambda x: np.sum(np.log(x - 5.0)), "the loss is nan at x0"),
        (lambda x: np.sum(1.0 / (x - x)), "the loss is inf at x0"),
        (lambda x: np.sum(np.sqrt(x - 1.0)), "the gradient is inf in entry 0 at x0"),
    ],
)
def test_a_start_outside_the_domain_says_so(method, f, what):
    with np.errstate(all="ignore"):
        result = tj.minimize(f, np.array([1.0, 2.0]), method=method)
    assert not result.success
    assert what in result.message and "start inside the domain" in result.message and "tj.debug()" in result.message
    assert result.x.shape == (2,)
    assert result.n_not_finite >= 1


@pytest.mark.parametrize(
    "method", ["CG", "BFGS", "L-BFGS-B", "TNC", "Newton-CG", "trust-ncg", "trust-krylov", "trust-exact"]
)
def test_a_line_search_steps_back_from_outside_the_domain(method):
    """-log has a barrier at 0: long steps lead outside."""

    def f(x):
        return np.sum(x * 50.0 - np.log(x))

    with np.errstate(all="ignore"):
        result = tj.minimize(f, np.array([3.0, 0.5]), method=method)
    assert np.isfinite(result.fun) and np.isfinite(result.x).all()
    assert (result.x > 0.0).all()
    assert result.fun <= f(np.array([3.0, 0.5]))
    if method in ("L-BFGS-B", "BFGS", "CG"):
        assert_allclose(result.x, 0.02, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_best_point_is_kept_when_all_else_is_not_finite(method):
    """A loss that falls towards an edge beyond which it is NaN, and has no minimum before it."""

    def f(x):
        return -x[0] + 0.0 * np.sqrt(1.0 - x[0]) + 1e-3 * x[1] ** 2

    start = np.array([0.5, 0.1])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = tj.minimize(f, start, method=method, options={"maxiter": 50})
    assert np.isfinite(result.x).all() and np.isfinite(result.fun)
    assert result.x[0] <= 1.0
    assert result.fun <= f(start)
    assert_allclose(f(result.x), result.fun, rtol=1e-12)


def test_a_second_derivative_that_is_not_finite_stops_with_a_message():
    def f(x):
        return np.sum(x**1.5)

    with np.errstate(all="ignore"):
        result = tj.minimize(f, np.array([0.0, 1.0]), method="trust-exact")
    assert not result.success
    assert "a second derivative is not finite" in result.message and "L-BFGS-B" in result.message
    assert_array_equal(result.x, [0.0, 1.0])


def test_n_not_finite_counts_the_trial_points():
    seen = []

    def f(x):
        return x * 50.0 - np.log(x)

    recording = tj.record(f, 3.0)
    plain = recording.value_and_grad

    def counted(x, args=None):
        value, gradient = plain(x, args)
        seen.append(not np.isfinite(value))
        return value, gradient

    recording.value_and_grad = counted
    with np.errstate(all="ignore"):
        result = tj.minimize(recording, 3.0)
    assert result.n_not_finite == sum(seen) > 0


# Decisions in the loss.


def test_a_loss_with_branches_is_recorded_again_where_they_change():
    def huber(x):
        total = 0.0
        for r in (x[0] - 3.0, x[1] + 1.0, x[0] * x[1]):
            total = total + (0.5 * r * r if abs(r) < 1.0 else abs(r) - 0.5)
        return total

    result = tj.minimize(huber, np.array([10.0, 10.0]))
    assert result.n_recorded > 1
    reference = tj.minimize(huber, result.x)
    assert_allclose(result.fun, reference.fun, rtol=1e-6)
    assert np.linalg.norm(tj.grad(huber)(result.x)) < 1e-3
    with pytest.raises(BranchChangeError):
        tj.minimize(huber, np.array([10.0, 10.0]), on_branch_change="raise")


@pytest.mark.parametrize("method", SECOND_ORDER)
def test_branches_in_methods_with_second_derivatives(method):
    def f(x):
        return np.sum((x - 2.0) ** 2) if x[0] < 1.0 else np.sum((x - 2.0) ** 4 + (x - 2.0) ** 2)

    result = tj.minimize(f, np.array([-3.0, 0.0]), method=method, options=options(method))
    assert_allclose(result.x, [2.0, 2.0], atol=1e-4)
    assert result.n_recorded > 1


# Refusals.


@pytest.mark.parametrize("method", ["Nelder-Mead", "Powell", "COBYLA", "COBYQA", "nonsense", None])
def test_methods_without_derivatives_are_refused(method):
    with pytest.raises(
        UnsupportedError, match="uses no derivatives; choose one of CG, BFGS, L-BFGS-B.*or call SciPy itself"
    ):
        tj.minimize(rosenbrock, START, method=method)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: tj.minimize(rosenbrock, np.ones(2) * 1j),
            ShapeError,
            "x0 must be real floating-point numbers, got dtype complex128",
        ),
        (
            lambda: tj.minimize(rosenbrock, np.arange(2)),
            ShapeError,
            "x0 must be real floating-point numbers, got dtype int64",
        ),
        (
            lambda: tj.minimize(lambda x: x * 2.0, START),
            ShapeError,
            "a gradient needs a function that returns a scalar",
        ),
        (lambda: tj.minimize(lambda x: None, START), ShapeError, "the function returned None"),
        (lambda: tj.minimize(3.0, START), TypeError, "expected a function to differentiate"),
        (lambda: tj.minimize(lambda x: float(x[0]), START), TapejitError, "turned into a plain float"),
        (lambda: tj.minimize(rosenbrock, START, on_branch_change="x"), ValueError, "on_branch_change must be"),
        (lambda: tj.grad(lambda s: tj.minimize(rosenbrock, START * s).fun)(1.0), TapejitError, ""),
        (lambda: tj.grad(lambda s: tj.minimize(lambda x: rosenbrock(x) * s, START).fun)(1.0), TapejitError, ""),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message or None):
        call()
