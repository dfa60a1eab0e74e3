"""Checks of derivatives, for users' own tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapejit.derivatives import hvp, jvp, value_and_grad, vjp

__all__ = ["check_grads"]


def check_grads(
    f: Callable,
    args: Any,
    *,
    order: int = 2,
    modes: Sequence[str] = ("forward", "reverse"),
    argnums: int | Sequence[int] | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    step: float | None = None,
    rng: Any = 0,
) -> None:
    """Check derivatives of `f` against finite differences along one random direction, for each mode and order.

    The cost does not grow with the number of inputs. Forward mode is compared with a fourth-order central difference, reverse mode with forward
    mode by the adjoint identity ``<y_bar, J x_dot> == <J.T y_bar, x_dot>``, and for a scalar function the Hessian-vector product with a
    difference of gradients. Only when a comparison fails is the input at fault looked for, by bisection.

    Parameters
    ----------
    f : callable
        Plain Python or NumPy code; may return a scalar, an array, or a list of either.
    args : tuple, or a single argument
        Where to check.
    order : {1, 2}
        Highest order; the second applies to scalar functions only.
    modes : sequence of {"forward", "reverse"}
        Which modes.
    argnums : int or sequence of int, optional
        Which arguments to differentiate by; by default all that are real floating-point numbers.
    rtol, atol : float
        Allowed difference, relative to the larger of the two numbers compared, and absolute.
    step : float, optional
        Step of the differences relative to the size of the arguments; 1e-3 by default.
    rng : numpy.random.Generator or int
        Draws the directions.

    Raises
    ------
    AssertionError
        If two derivatives differ; says in which mode and order, at which input, and by how much.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> tj.testing.check_grads(lambda x: np.sum(np.sin(x)), np.linspace(0.0, 1.0, 5))
    """
    args = args if isinstance(args, tuple) else (args,)
    rng = np.random.default_rng(rng)
    if argnums is None:
        wanted = tuple(i for i, x in enumerate(args) if _is_float(x))
    else:
        wanted = (argnums,) if isinstance(argnums, (int, np.integer)) else tuple(argnums)
    if not wanted:
        raise ValueError("no argument is a real floating-point number; name those to check with argnums")
    point = [np.asarray(args[i], dtype=float) for i in wanted]
    check = _Check(f, args, wanted, point, rtol, atol, 1e-3 if step is None else step)
    x_dot = [rng.standard_normal(x.shape) for x in point]
    y, y_dot = check.tangent(x_dot)
    # 1.0, not a random number, for a scalar function: a failure then shows the partials themselves.
    y_bar = rng.standard_normal(np.shape(y)) if np.shape(y) else 1.0
    if "forward" in modes:
        check.compare(
            "forward mode, order 1, against differences",
            x_dot,
            lambda v: np.vdot(y_bar, check.tangent(v)[1]),
            lambda v: np.vdot(y_bar, check.difference(check.plain, v)),
        )
    if "reverse" in modes:
        x_bar = check.adjoint(y_bar)
        check.compare(
            "reverse mode, order 1, against forward mode",
            x_dot,
            lambda v: _inner(x_bar, v),
            lambda v: np.vdot(y_bar, check.tangent(v)[1]),
            rtol=min(rtol, 1e-9),
        )
    if order >= 2 and np.shape(y) == ():
        w = [rng.standard_normal(x.shape) for x in point]
        check.compare(
            "order 2, against differences of gradients",
            x_dot,
            lambda v: _inner(check.hessian_product(v), w),
            lambda v: _inner(check.difference(check.gradient, v), w),
        )


class _Check:
    """The function at the point that is checked, and ways to differentiate it."""

    def __init__(
        self,
        f: Callable,
        args: tuple,
        wanted: tuple[int, ...],
        point: list[np.ndarray],
        rtol: float,
        atol: float,
        step: float,
    ) -> None:
        self.f, self.args, self.wanted, self.point = f, args, wanted, point
        self.rtol, self.atol, self.step = rtol, atol, step

    def arguments(self, xs: Sequence[np.ndarray]) -> list[Any]:
        arguments = list(self.args)
        for i, x in zip(self.wanted, xs, strict=True):
            arguments[i] = x if x.ndim else float(x)
        return arguments

    def plain(self, xs: Sequence[np.ndarray]) -> np.ndarray:
        return np.asarray(self.f(*self.arguments(xs)), dtype=float)

    def tangent(self, v: Sequence[np.ndarray]) -> tuple[Any, Any]:
        return jvp(self.f, self.wanted)(*self.arguments(self.point), tuple(v))

    def adjoint(self, y_bar: Any) -> list[np.ndarray]:
        return list(vjp(self.f, self.wanted)(*self.arguments(self.point))[1](y_bar))

    def gradient(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(value_and_grad(self.f, self.wanted)(*self.arguments(xs))[1])

    def hessian_product(self, v: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(hvp(self.f, self.wanted)(*self.arguments(self.point), tuple(v)))

    def difference(self, g: Callable, v: Sequence[np.ndarray]) -> Any:
        """Fourth-order central difference of `g` along `v`."""
        size = max((float(np.abs(d).max()) for d in v if d.size), default=0.0)
        scale = max((float(np.abs(x).max()) for x in self.point if x.size), default=1.0)
        h = self.step * max(min(scale, 1.0), 1e-6) / (size or 1.0)

        def at(t: float) -> Any:
            moved = g([x + t * d for x, d in zip(self.point, v, strict=True)])
            return moved if isinstance(moved, np.ndarray) else [np.asarray(part) for part in moved]

        def combine(a: Any, b: Any, c: Any, d: Any) -> Any:
            return (8.0 * (c - b) - (d - a)) / (12.0 * h)

        a, b, c, d = at(-2 * h), at(-h), at(h), at(2 * h)
        return (
            combine(a, b, c, d)
            if isinstance(a, np.ndarray)
            else [combine(*parts) for parts in zip(a, b, c, d, strict=True)]
        )

    def compare(
        self, what: str, x_dot: Sequence[np.ndarray], ours: Callable, reference: Callable, rtol: float | None = None
    ) -> None:
        rtol = self.rtol if rtol is None else rtol

        def agree(v: Sequence[np.ndarray]) -> tuple[bool, float, float]:
            a, b = float(ours(v)), float(reference(v))
            close = abs(a - b) <= self.atol + rtol * max(abs(a), abs(b))
            return close or (np.isnan(a) and np.isnan(b)), a, b

        good, a, b = agree(x_dot)
        if good:
            return
        name, a1, b1 = self._culprit(x_dot, agree)
        raise AssertionError(
            f"{what}: along a random direction tapejit gives {a:.12g}, the reference {b:.12g} (difference {abs(a - b):.3g}). "
            f"Along {name} alone: {a1:.12g} and {b1:.12g}, difference {abs(a1 - b1):.3g}"
        )

    def _culprit(self, x_dot: Sequence[np.ndarray], agree: Callable) -> tuple[str, float, float]:
        """The input whose derivative differs most, by bisection over the entries of the direction."""
        ends = np.cumsum([d.size for d in x_dot])
        flat = np.concatenate([d.reshape(-1) for d in x_dot])

        def only(low: int, high: int) -> list[np.ndarray]:
            kept = np.zeros_like(flat)
            kept[low:high] = flat[low:high]
            parts = np.split(kept, ends[:-1])
            return [part.reshape(d.shape) for part, d in zip(parts, x_dot, strict=True)]

        low, high = 0, flat.size
        while high - low > 1:
            middle = (low + high) // 2
            results = [agree(only(*span)) for span in ((low, middle), (middle, high))]
            gaps = [np.inf if np.isnan(a - b) else abs(a - b) for _, a, b in results]
            low, high = (low, middle) if gaps[0] >= gaps[1] else (middle, high)
        which = int(np.searchsorted(ends, low, side="right"))
        index = np.unravel_index(low - (ends[which] - x_dot[which].size), x_dot[which].shape)
        place = f"[{', '.join(str(int(i)) for i in index)}]" if index else ""
        _, a, b = agree(only(low, low + 1))
        return f"args[{self.wanted[which]}]{place}", a / flat[low], b / flat[low]


def _is_float(x: Any) -> bool:
    try:
        return np.asarray(x).dtype.kind == "f"
    except (TypeError, ValueError):
        return False


def _inner(a: Sequence[Any], b: Sequence[np.ndarray]) -> float:
    return float(sum(np.vdot(x, y) for x, y in zip(a, b, strict=True)))
