"""SciPy's optimisers with exact derivatives from a replayed tape."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tapejit.calls import Call, check_callable, hessian_matrix, is_compiled
from tapejit.compiled import Compiled
from tapejit.derivatives import hvp, jacobian
from tapejit.errors import UnsupportedError
from tapejit.recording.recorder import real_array
from tapejit.replays import Recording

__all__ = ["minimize"]

_GRADIENT = ("CG", "BFGS", "L-BFGS-B", "TNC", "SLSQP")
_PRODUCT = ("Newton-CG", "trust-ncg", "trust-krylov", "trust-constr")
_HESSIAN = ("dogleg", "trust-exact")
_METHODS = {method.lower(): method for method in (*_GRADIENT, *_PRODUCT, *_HESSIAN)}
# Trial points of a line search that may lie outside the domain one after the other before the run is given up.
_PATIENCE = 20


def minimize(
    fun: Callable | Recording | Compiled,
    x0: Any,
    args: tuple = (),
    method: str = "L-BFGS-B",
    bounds: Any = None,
    constraints: Any = (),
    tol: float | None = None,
    callback: Callable | None = None,
    options: dict | None = None,
    progress: bool = False,
    on_branch_change: str = "record",
) -> Any:
    """Minimise a scalar function with exact gradients, and exact Hessian-vector products where the method takes them.

    `fun` is recorded once and replayed; where a decision in it changes, it is recorded again. A function compiled by Numba is recorded at
    every point, natively.

    Parameters
    ----------
    fun : callable, Recording or Compiled
        ``fun(x, *args)``, plain Python or NumPy code that returns a scalar; `x` has the shape of `x0`.
    x0 : float or array_like
        Where to start; any shape.
    args : tuple
        Further arguments of `fun`, passive.
    method : str
        CG, BFGS, L-BFGS-B, TNC, SLSQP (gradients); Newton-CG, trust-ncg, trust-krylov, trust-constr (and exact H v); dogleg, trust-exact
        (and the Hessian). See `scipy.optimize.minimize`, as for the next four.
    bounds : sequence or scipy.optimize.Bounds, optional
        One pair an entry of ``x0.ravel()``.
    constraints : optional
        As in SciPy; those given by plain functions get exact Jacobians.
    tol : float, optional
        Tolerance for termination.
    callback : callable, optional
        ``callback(xk)`` or ``callback(intermediate_result)``, with `x` in the shape of `x0`; may raise StopIteration.
    options : dict, optional
        Options of the method.
    progress : bool
        Show a bar with loss and gradient norm (needs tqdm: ``pip install tapejit[progress]``).
    on_branch_change : {"record", "raise", "warn"}
        See `Recording`.

    Returns
    -------
    scipy.optimize.OptimizeResult
        With `x` and `jac` (the gradient) in the shape of `x0`, `n_recorded`, how often `fun` was recorded, and `n_not_finite`,
        how many trial points lay where loss or gradient is not finite; trust-constr adds `constr_jac`, the Jacobians of the
        constraints. If the loss or the gradient stops being finite, `success` is False, `message` says where, and `x` is the best
        point so far.

    Raises
    ------
    UnsupportedError
        If the method uses no derivatives.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> result = tj.minimize(lambda x: (x[0] - 1.0) ** 2 + (x[1] + 2.0) ** 2, [0.0, 0.0])
    >>> result.success, result.x.round(6)
    (True, array([ 1., -2.]))
    """
    import scipy.optimize

    name = _METHODS.get(str(method).lower())
    if name is None:
        raise UnsupportedError(
            f"method {method!r} uses no derivatives; choose one of {', '.join(_METHODS.values())}, or call SciPy itself"
        )
    start = real_array(x0, "x0")
    recording: Recording | Compiled | _Rerun
    if isinstance(fun, (Recording, Compiled)):
        recording = fun
    elif is_compiled(fun):
        recording = _Rerun(fun, tuple(args))
    else:
        x = _shaped(start.reshape(-1), start.shape)
        check_callable(fun)
        # Nothing but x changes, so data need no slots.
        recording = Recording(fun, (x, *args), 0, on_branch_change, {}, parameters=False)
    objective = _Objective(
        recording, start.shape, tuple(args) if isinstance(fun, (Recording, Compiled)) and args else None
    )
    with _Watch(objective, callback, progress, name) as watch:
        keywords: dict[str, Any] = {
            "jac": True,
            "bounds": bounds,
            "tol": tol,
            "callback": watch.callback,
            "options": options,
        }
        if name in _PRODUCT:
            keywords["hessp"] = objective.hessian_product
        if name in _HESSIAN:
            keywords["hess"] = objective.hessian
        if np.size(constraints) or isinstance(constraints, dict):
            keywords["constraints"] = _exact_constraints(constraints, start.shape, name in _PRODUCT)
        try:
            result = scipy.optimize.minimize(objective, start.reshape(-1), method=name, **keywords)
        except _NotFiniteError as stopped:
            result = scipy.optimize.OptimizeResult(
                success=False, status=-1, message=str(stopped), nfev=objective.n_evaluations
            )
            objective.put_best(result)
        except StopIteration:  # from the callback, with a method (TNC) for which SciPy does not catch it
            message = "`callback` raised `StopIteration`."
            result = scipy.optimize.OptimizeResult(
                success=False, status=99, message=message, nfev=objective.n_evaluations
            )
            objective.put_best(result)
    return _finished(result, objective, start.shape)


class _NotFiniteError(Exception):
    """Stops SciPy where the loss or its gradient is not finite."""


class _Rerun:
    """A compiled function, recorded afresh at every point: that costs what a replay does, and no branch can have changed."""

    def __init__(self, f: Callable, args: tuple) -> None:
        self._f, self._args = f, args
        self._at: bytes | None = None
        self._call: Call | None = None
        self.n_recorded = 0

    def _recorded(self, x: Any) -> Call:
        """The recording at `x`, where SciPy asks for the value, the gradient and Hessian products in turn."""
        at = np.asarray(x).tobytes()
        if self._call is None or at != self._at:
            self._call = None  # so that its memory serves the next
            self._call = Call(self._f, (x, *self._args), (0,), short_lived=True)
            self._call.require_scalar("a gradient")
            self._at = at
            self.n_recorded += 1
        return self._call

    def value(self, x: Any, args: tuple | None = None) -> float:
        return self._recorded(x).value()

    def value_and_grad(self, x: Any, args: tuple | None = None) -> tuple[float, Any]:
        call = self._recorded(x)
        return call.value(), call.pull_back(1.0)[0]

    def hvp(self, x: Any, v: Any, args: tuple | None = None) -> Any:
        return self._recorded(x).hessian_product([v])[0]

    def hessian(self, x: Any, args: tuple | None = None) -> Any:
        call = self._recorded(x)
        return hessian_matrix(call.tape, call.output, call.tape.value)


class _Objective:
    """Value and gradient for SciPy: flat vectors in and out, the best point kept."""

    def __init__(self, recording: Recording | Compiled | _Rerun, shape: tuple[int, ...], args: tuple | None) -> None:
        self.recording, self.shape, self.args = recording, shape, args
        self.best_x: np.ndarray | None = None
        self.best_loss = np.inf
        self.best_grad: np.ndarray | None = None
        self.n_evaluations = self.n_not_finite = 0
        self._n_bad = 0

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = self.recording.value_and_grad(_shaped(x, self.shape), self.args)
        gradient = np.asarray(gradient, dtype=float).reshape(-1)
        self.n_evaluations += 1
        if np.isfinite(loss) and np.isfinite(gradient).all():
            self._n_bad = 0
            if self.best_x is None or loss < self.best_loss:
                self.best_x, self.best_loss, self.best_grad = x.copy(), loss, gradient.copy()
            return loss, gradient
        return self._not_finite(x, loss, gradient)

    def _not_finite(self, x: np.ndarray, loss: float, gradient: np.ndarray) -> tuple[float, np.ndarray]:
        """Let a line search step back from a point outside the domain, a number of times; otherwise stop."""
        self._n_bad += 1
        self.n_not_finite += 1
        at = int(np.flatnonzero(~np.isfinite(gradient))[0]) if np.isfinite(loss) else None
        what = f"the loss is {loss}" if at is None else f"the gradient is {gradient[at]} in entry {at}"
        if self.best_x is None:
            raise _NotFiniteError(
                f"{what} at x0: start inside the domain of the function; tj.debug() finds the operation"
            )
        if self._n_bad >= _PATIENCE:
            raise _NotFiniteError(
                f"{what} at evaluation {self.n_evaluations}; x is the best point so far, with loss {self.best_loss:.6g}. Bounds keep a "
                "search inside the domain; tj.debug() finds the operation"
            )
        # A line search that starts at the best point fits a parabola to this rising slope, and takes a quarter of the step next.
        assert self.best_grad is not None
        rise = abs(float(self.best_grad @ (x - self.best_x)))
        return self.best_loss + max(rise, 1e-8 * (1.0 + abs(self.best_loss))), -self.best_grad

    def hessian_product(self, x: np.ndarray, v: np.ndarray, *_: Any) -> np.ndarray:
        v = np.asarray(v, dtype=float).reshape(-1)  # SciPy probes operators with integers
        return self._curvature(self.recording.hvp(_shaped(x, self.shape), _shaped(v, self.shape), self.args)).reshape(
            -1
        )

    def hessian(self, x: np.ndarray, *_: Any) -> np.ndarray:
        return self._curvature(self.recording.hessian(_shaped(x, self.shape), self.args)).reshape(x.size, x.size)

    def _curvature(self, second: Any) -> np.ndarray:
        numbers = np.asarray(second, dtype=float)
        if not np.isfinite(numbers).all():
            raise _NotFiniteError(
                f"a second derivative is not finite at evaluation {self.n_evaluations}; x is the best point so far, with loss {self.best_loss:.6g}. "
                "A method without second derivatives (L-BFGS-B) may go on"
            )
        return numbers

    def result_at(self, x: np.ndarray) -> Any:
        """What a callback wants to know of a point."""
        from scipy.optimize import OptimizeResult

        return OptimizeResult(x=x, fun=self.recording.value(_shaped(x, self.shape), self.args))

    def put_best(self, result: Any) -> None:
        """Give a result the best point; the start if there is none."""
        result.x = self.best_x
        result.fun, result.jac = self.best_loss, self.best_grad


class _Watch:
    """The caller's callback and the progress bar, behind the one signature that the method wants."""

    def __init__(self, objective: _Objective, callback: Callable | None, progress: bool, method: str) -> None:
        self.objective, self.user = objective, callback
        self.bar = _bar() if progress else None
        self.whole = callback is not None and "intermediate_result" in inspect.signature(callback).parameters
        self.callback: Callable | None = None
        if method == "trust-constr":
            self.callback = self._with_state
        elif self.whole:
            self.callback = self._with_result
        elif callback is not None or progress:
            self.callback = self._with_point

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def _with_point(self, xk: np.ndarray) -> Any:
        self._show()
        return self.user(_shaped(np.array(xk), self.objective.shape)) if self.user is not None else None

    def _with_result(self, intermediate_result: Any) -> Any:
        self._show()
        if isinstance(intermediate_result, np.ndarray):  # TNC and SLSQP of some versions of SciPy pass the point alone.
            intermediate_result = self.objective.result_at(intermediate_result)
        intermediate_result.x = _shaped(np.array(intermediate_result.x), self.objective.shape)
        return self.user(intermediate_result=intermediate_result)  # type: ignore[misc]

    def _with_state(self, xk: np.ndarray, state: Any) -> Any:
        if self.user is None:
            return self._with_point(xk)
        if self.whole:
            return self._with_result(state)
        self._show()
        return self.user(_shaped(np.array(xk), self.objective.shape))

    def _show(self) -> None:
        if self.bar is not None:
            self.bar.update()
            norm = np.linalg.norm(self.objective.best_grad) if self.objective.best_grad is not None else np.nan
            self.bar.set_postfix_str(f"loss {self.objective.best_loss:.6g}, gradient norm {norm:.3g}")


def _bar() -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm; install it with: pip install 'tapejit[progress]'") from None
    return tqdm(desc="minimise", unit=" iterations")


def _shaped(x: np.ndarray, shape: tuple[int, ...]) -> Any:
    return x.reshape(shape) if shape else float(x[0])


def _finished(result: Any, objective: _Objective, shape: tuple[int, ...]) -> Any:
    """The result in the caller's shapes; never worse than the best point that was seen, unless constraints chose it."""
    if result.x is None:
        result.x = np.full(int(np.prod(shape, dtype=int)), np.nan)
    elif not np.isfinite(result.fun) and objective.best_x is not None:
        objective.put_best(result)
        result.success = False
        result.message = f"{result.message}; the loss was not finite there, so x is the best point before"
    result.n_recorded = objective.recording.n_recorded
    result.n_not_finite = objective.n_not_finite
    result.x = np.asarray(result.x).reshape(shape)
    if "grad" in result:  # trust-constr: its `jac` is a list with the Jacobians of the constraints
        result.constr_jac, result.jac = result.jac, result.grad
    if getattr(result, "jac", None) is not None:
        result.jac = np.asarray(result.jac).reshape(shape)
    return result


def _exact_constraints(constraints: Any, shape: tuple[int, ...], second_order: bool) -> list[Any]:
    """Constraints with exact Jacobians, and Hessians for methods that take them, where the caller gave plain functions."""
    from scipy.optimize import NonlinearConstraint

    given: Iterable[Any] = (
        [constraints]
        if isinstance(constraints, (dict, NonlinearConstraint)) or not np.iterable(constraints)
        else constraints
    )
    return [_exact_constraint(constraint, shape, second_order) for constraint in given]


def _exact_constraint(constraint: Any, shape: tuple[int, ...], second_order: bool) -> Any:
    from scipy.optimize import NonlinearConstraint
    from scipy.sparse.linalg import LinearOperator

    if isinstance(constraint, dict):
        if callable(constraint.get("jac")):
            return constraint
        fun, args = constraint["fun"], tuple(constraint.get("args", ()))
        return {**constraint, "fun": _flat(fun, shape, args), "jac": _flat_jacobian(fun, shape, args), "args": ()}
    if not isinstance(constraint, NonlinearConstraint) or callable(constraint.jac):
        return constraint
    fun = constraint.fun

    def curvature(x: np.ndarray, v: np.ndarray) -> LinearOperator:
        def combined(point: Any) -> Any:
            return np.sum(np.reshape(fun(point), -1) * v)

        def product(direction: np.ndarray) -> np.ndarray:
            return np.reshape(
                hvp(combined)(_shaped(x, shape), _shaped(np.asarray(direction, dtype=float).reshape(-1), shape)), -1
            )

        return LinearOperator((x.size, x.size), matvec=product, rmatvec=product, dtype=float)

    keywords: dict[str, Any] = {"jac": _flat_jacobian(fun, shape, ()), "keep_feasible": constraint.keep_feasible}
    if second_order:
        keywords["hess"] = constraint.hess if callable(constraint.hess) else curvature
    return NonlinearConstraint(_flat(fun, shape, ()), constraint.lb, constraint.ub, **keywords)


def _flat(fun: Callable, shape: tuple[int, ...], args: tuple) -> Callable:
    return lambda x: np.asarray(fun(_shaped(x, shape), *args), dtype=float).reshape(-1)


def _flat_jacobian(fun: Callable, shape: tuple[int, ...], args: tuple) -> Callable:
    exact = jacobian(fun)
    return lambda x: np.reshape(exact(_shaped(x, shape), *args), (-1, x.size))
