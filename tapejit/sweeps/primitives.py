"""The op table as machine code: three C functions, generated from the rows, that work on short runs of numbers.

``value(code, n, x, y, v)``, ``partial(code, which, n, x, y, v, out)`` and ``second(code, which, n, x, y, v, out)`` apply the primitive
`code` to `n` operands at once. The sweeps call them through pointers: for a block on tiles that fit the first-level cache, where the
loops vectorise, and for a scalar slot with ``n = 1``. So the large functions are compiled once, however many sweeps there are,
and a primitive that a user adds has the same three functions of its own (see `table`).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numba.core.ccallback import CFunc

from tapejit import ops
from tapejit.expressions import Tree, compile_program, names, parse, source, substitute
from tapejit.ops import Op, partial_trees, second_partial_trees
from tapejit.sweeps.kernel import primitive_kernel
from tapejit.sweeps.special import CORES, NAMESPACE, RANGES

__all__ = ["inlined", "primitive_table"]

_VALUE = "void(int64, int64, CPointer(float64), CPointer(float64), CPointer(float64))"
_PARTIAL = "void(int64, int64, int64, CPointer(float64), CPointer(float64), CPointer(float64), CPointer(float64))"


@cache
def primitive_table(kind: str, n_user: int = 0) -> np.ndarray:
    """Addresses of the C functions of one kind: entry 0 serves the op table, entry ``1 + i`` the user's primitive `i`.

    Parameters
    ----------
    kind : {"value", "partial", "second"}
        Which function.
    n_user : int
        How many of the user's primitives to include.

    Returns
    -------
    addresses : (1 + n_user,) int64 ndarray
    """
    spans = [(0, len(ops.OPS))] + [(ops.FIRST_USER + i, ops.FIRST_USER + i + 1) for i in range(n_user)]
    return np.array([_compiled(kind, *span).address for span in spans], dtype=np.int64)


_lock = threading.Lock()
_functions: dict[tuple, CFunc] = {}  # For the life of the process, as are the addresses.


def _compiled(kind: str, start: int, stop: int) -> CFunc:
    """Compile (or load) the function that serves the opcodes ``start <= code < stop``."""
    with _lock:
        key = (kind, start, stop)
        if key not in _functions:
            rows = [(code, ops.op_coded(code)) for code in range(start, stop) if ops.op_coded(code).arity]
            make, signature = _KINDS[kind]
            _functions[key] = primitive_kernel(signature, _executed(make(rows), f"{kind}_{rows[0][1].name}"))
        return _functions[key]


def _executed(text: str, label: str) -> Callable:
    namespace = {**NAMESPACE, "__name__": __name__}
    namespace.update({f"{name}_core": function for name, function in CORES.items()})
    namespace.update({f"{name}_range": function for name, function in RANGES.items()})
    # Users' formulas are not part of the cache's fingerprint: their digest is.
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    exec(compile(text, f"{label}_{digest}.py", "exec"), namespace)  # our own text, made from checked expressions
    return namespace["primitive"]


def value_source(rows: Sequence[tuple[int, Op]]) -> str:
    """Python text of the value function: one loop a primitive."""
    branches = [(f"code == {code}", parse(op.value)) for code, op in rows if op.name != "select"]
    return _source("code, n, x, y, out", branches, result_from="")


def partial_source(rows: Sequence[tuple[int, Op]]) -> str:
    """Python text of the first partials: one loop a primitive and operand."""
    branches = [
        (f"code == {code} and which == {which}", tree)
        for code, op in rows
        if op.name != "select"
        for which, tree in enumerate(partial_trees(op.name))
    ]
    return _source("code, which, n, x, y, result, out", branches)


def second_source(rows: Sequence[tuple[int, Op]]) -> str:
    """Python text of the second partials xx, xy, yy (`which` 0, 1, 2); those that are identically zero share one loop."""
    branches = [
        (f"code == {code} and which == {which}", tree)
        for code, op in rows
        if op.name != "select"
        for which, tree in enumerate(second_partial_trees(op.name))
        if tree != 0.0
    ]
    return _source("code, which, n, x, y, result, out", branches)


def _source(parameters: str, branches: Sequence[tuple[str, Tree]], result_from: str = "result") -> str:
    lines = [f"def primitive({parameters}):"]
    for position, (condition, tree) in enumerate(branches):
        lines += [f"    {'el' if position else ''}if {condition}:"]
        lines += [f"        {line}" for line in _loops(inlined(tree), result_from)]
    lines += ["    else:", "        for i in range(n):", "            out[i] = 0.0"]
    return "\n".join(lines) + "\n"


def _loops(tree: Tree, result_from: str) -> list[str]:
    """Statements for `n` elements: one loop, or where a function has a range, one that looks, and one for either case."""
    loop, one = "for i in range(n):", _loop_body(tree, result_from)
    if not any(name in RANGES for name in names(tree)):
        return [loop, *(f"    {line}" for line in one)]
    look, fast = _loop_body(tree, result_from, "range"), _loop_body(tree, result_from, "core")
    lines = ["inside = True", loop, *(f"    {line}" for line in look), "if inside:"]
    lines += [f"    {line}" for line in (loop, *(f"    {line}" for line in fast))]
    return [*lines, "else:", *(f"    {line}" for line in (loop, *(f"    {line}" for line in one)))]


def _loop_body(tree: Tree, result_from: str, kind: str = "") -> list[str]:
    """Statements for one element; equal subexpressions are computed once, both sides of a select always.

    A select of two values that are there is a vector instruction; a branch would keep the loop scalar. With `kind` "core" the
    functions that have a range are taken to be in it; with "range" they are asked whether they are, and nothing is stored.
    """
    reads = {"x": "x[i]", "y": "y[i]", "v": f"{result_from}[i]"}

    def text(argument: float | str | int) -> str:
        if isinstance(argument, int):
            return f"t{argument}"
        return reads[argument] if argument in reads else source(argument)

    program = compile_program(tree)
    lines = []
    for i, (name, *arguments) in enumerate(program.steps):
        operands = [text(argument) for argument in arguments]
        if kind == "range" and name in RANGES:
            lines.append(f"inside &= {source((f'{name}_range', *operands))}")
        lines.append(f"t{i} = {source((f'{name}_core' if kind and name in RANGES else name, *operands))}")
    return lines if kind == "range" else [*lines, f"out[i] = {text(program.result)}"]


def inlined(tree: Tree) -> Tree:
    """`tree` with every call of a primitive that is not a function of `NAMESPACE` replaced by its value expression."""
    if not isinstance(tree, tuple):
        return tree
    name, *children = tree
    children = [inlined(child) for child in children]
    if name in NAMESPACE or name in ("add", "sub", "mul", "div", "neg", "select") or name in ops.COMPARISONS:
        return (name, *children)
    return inlined(substitute(parse(ops.op_named(name).value), dict(zip(("x", "y"), children, strict=False))))


_KINDS = {"value": (value_source, _VALUE), "partial": (partial_source, _PARTIAL), "second": (second_source, _PARTIAL)}
