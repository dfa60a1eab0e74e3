"""Regions of a recording that keep only their arguments, and are recorded again in the reverse sweep.

A region is a loop of one step without a state: its arguments are the parameters, its result is the output of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from tapejit.calls import check_callable, is_compiled
from tapejit.checkpointing.calls import LoopCall
from tapejit.checkpointing.runs import Numbers
from tapejit.checkpointing.steps import Step, Table, table_of
from tapejit.checkpointing.structures import Structure, active_leaf
from tapejit.errors import UnsupportedError
from tapejit.native import native
from tapejit.recording.array import actives, lift_array
from tapejit.recording.recorder import innermost, is_debugging, open_tapes

__all__ = ["checkpoint"]


def checkpoint(f: Callable) -> Callable:
    """A function whose recording keeps its arguments only, and is made again in the reverse sweep: less memory for one more evaluation.

    Where an active value is among the arguments, `f` is called with plain numbers first, and its result stands on the tape. The reverse sweep
    records `f` on a tape of its own, pulls the adjoints back through it, and throws it away. Regions nest: while an outer one is recorded
    again, the inner ones keep their arguments only.

    Parameters
    ----------
    f : callable
        Python, NumPy or compiled by Numba; returns a float, an array, or tuples, lists and dicts of them. It must depend on its arguments alone,
        among them every active value that it needs, and must not write into them.

    Returns
    -------
    callable
        Takes the arguments of `f`.

    Raises
    ------
    UnsupportedError
        From the returned function: if `f` uses an active value that is no argument of it.
    DeterminismError
        From a derivative: if `f` gives something else when it is called again.

    Notes
    -----
    Inside nested transforms (``tj.grad(tj.grad(f))``) and under `debug` the function is recorded as it is.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> layer = tj.checkpoint(lambda x, w: np.tanh(w @ x))
    >>> def network(w):
    ...     x = np.ones(2)
    ...     for _ in range(50):
    ...         x = layer(x, w)
    ...     return np.sum(x)
    >>> tj.grad(network)(np.eye(2)).shape
    (2, 2)
    """
    check_callable(f)
    function = native(f) if is_compiled(f) else f

    @wraps(f)
    def region(*args: Any, **kwargs: Any) -> Any:
        arguments = table_of((args, kwargs), "arguments")
        operands = [x for x, is_one in zip(arguments.floats, arguments.active, strict=True) if is_one]
        if not operands or len(open_tapes()) > 1 or is_debugging():
            return function(*args, **kwargs)
        tape = innermost([part for x in operands for part in actives(x)])
        step = _Region(function, arguments.without_decisions())
        nothing = np.empty((1, 0))
        call = LoopCall(step, Numbers(np.empty(0), (), np.empty(0), nothing, nothing), np.zeros(0, bool), (), 1)
        call.operands = np.concatenate([lift_array(tape, x).slots().reshape(-1).astype(np.int64) for x in operands])
        last, static, outputs = call.start(tape.value[call.operands])
        call.place(tape, last, static, outputs)
        assert step.outputs is not None
        return step.outputs.build(lambda leaf: active_leaf(tape, call.first, leaf), static)

    return region


class _Region(Step):
    """The one step that a region is."""

    def __init__(self, function: Callable, arguments: Table) -> None:
        super().__init__(
            lambda state, args, kwargs: function(*args, **kwargs), Structure((), "state"), arguments, None, True
        )

    def named(self, s: int) -> str:
        return "a function under tj.checkpoint"

    def closure(self, error: Exception | None) -> UnsupportedError:
        return UnsupportedError(
            "a function under tj.checkpoint uses an active value that is no argument of it: pass what it depends on as an argument"
            + (f" ({error})" if error else "")
        )

    def _apart(self, result: Any) -> tuple[Any, Any]:
        return (), result

    def _output_structure(self, output: Any) -> Structure:
        return Structure(output, "output")  # Integers and booleans may be returned along with floats.
