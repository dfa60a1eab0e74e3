"""Expressions over the operands `x`, `y` and the result `v` of a primitive, and what can be made of them.

A row of the op table gives its value and its partials as text such as ``"1 / (1 + x)"``. This module turns the text into a
small tree and gives the tree its interpretations:

- `source`: Python text for the Numba kernels;
- `differentiate`: the symbolic derivative, from which second partials come;
- `Program`: straight-line code over primitives, which is what "evaluate a partial on slots" runs (nested transforms).

The vocabulary is small and fixed: numbers, the constants below, ``+ - * /`` and unary minus, comparisons, the lazy
``select(condition, a, b)``, and calls of primitives by name. A tree is a float (a number), a string (an operand), or a
tuple ``(primitive, *children)``; trees are hashable and compare by structure.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "CONSTANTS",
    "OPERANDS",
    "Program",
    "Tree",
    "compile_program",
    "differentiate",
    "parse",
    "simplified",
    "source",
]

Tree: TypeAlias = float | str | tuple

OPERANDS = ("x", "y", "v")

CONSTANTS = {
    "pi": math.pi,
    "LN2": math.log(2.0),
    "LN10": math.log(10.0),
    "LOG2E": 1.0 / math.log(2.0),
    "TWO_OVER_SQRT_PI": 2.0 / math.sqrt(math.pi),
    "SQRT_HALF": math.sqrt(0.5),
    "ONE_OVER_SQRT_2PI": 1.0 / math.sqrt(2.0 * math.pi),
    "DEGREE": math.pi / 180.0,
    "inf": math.inf,
    "nan": math.nan,
}

_BINARY = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
_COMPARE = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
    "equal": "==",
    "not_equal": "!=",
}


def parse(text: str) -> Tree:
    """The tree of an expression.

    Raises
    ------
    ValueError
        If the text is not an expression in the vocabulary; says which part is not.
    """
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not an expression: {text!r} ({error.msg})") from None
    return _tree(body, text)


def _tree(node: ast.expr, text: str) -> Tree:
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name) if name in OPERANDS:
            return name
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _BINARY:
            return simplified(_BINARY[type(op)], _tree(left, text), _tree(right, text))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return simplified("neg", _tree(operand, text))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return (_COMPARE[type(op)], _tree(left, text), _tree(right, text))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return simplified(name, *(_tree(argument, text) for argument in arguments))
    raise ValueError(
        f"{ast.unparse(node)!r} in {text!r} is not in the vocabulary of expressions: operands x, y, v; numbers; "
        f"{', '.join(CONSTANTS)}; + - * /; one comparison; select(c, a, b); primitives by name"
    )


def simplified(name: str, *args: Tree) -> Tree:
    """``(name, *args)`` with the arithmetic of 0, 1 and plain numbers done.

    ``0 * t`` becomes 0 whatever `t`: a partial that is identically zero contributes nothing.
    """
    match name, args:
        case "add", (0.0, t) | (t, 0.0):
            return t
        case "sub", (t, 0.0):
            return t
        case "sub", (0.0, t):
            return simplified("neg", t)
        case "mul", (0.0, _) | (_, 0.0):
            return 0.0
        case "mul", (1.0, t) | (t, 1.0):
            return t
        case "mul", (-1.0, t) | (t, -1.0):
            return simplified("neg", t)
        case "mul", (("neg", s), t) | (t, ("neg", s)):
            return simplified("neg", simplified("mul", s, t))
        case "div", (0.0, _):
            return 0.0
        case "div", (t, 1.0):
            return t
        case "neg", (float() as number,):
            return -number
        case "neg", (("neg", t),):
            return t
        case (("add" | "sub" | "mul"), (float() as a, float() as b)):
            return {"add": a + b, "sub": a - b, "mul": a * b}[name]
        case "select", (_, a, b) if a == b:
            return a
    return (name, *args)


def differentiate(tree: Tree, operand: str, partials: Callable[[str], tuple[Tree, ...]], v_dot: Tree) -> Tree:
    """Derivative of `tree` with respect to `operand`, where the result `v` has the derivative `v_dot`.

    `partials` gives the partials of a primitive, by its name, as trees over its own `x`, `y`, `v`.
    """
    if tree == operand:
        return 1.0
    if tree == "v":
        return v_dot
    if not isinstance(tree, tuple):
        return tree if tree != tree else 0.0  # NaN marks "outside the domain", and stays so
    name, *children = tree
    dots = [differentiate(child, operand, partials, v_dot) for child in children]
    if name == "select":
        return simplified("select", children[0], dots[1], dots[2])
    total: Tree = 0.0
    own = dict(zip(("x", "y"), children, strict=False), v=tree)
    for partial, dot in zip(partials(name), dots, strict=True):
        if dot != 0.0:
            total = simplified("add", total, simplified("mul", substitute(partial, own), dot))
    return total


def substitute(tree: Tree, replacements: dict[str, Tree]) -> Tree:
    """`tree` with its operands replaced by other trees."""
    if isinstance(tree, str):
        return replacements[tree]
    if isinstance(tree, tuple):
        return simplified(tree[0], *(substitute(child, replacements) for child in tree[1:]))
    return tree


def source(tree: Tree) -> str:
    """Python text that evaluates `tree`; primitives are called by name, `select` is a conditional expression."""
    if isinstance(tree, str):
        return tree
    if isinstance(tree, float):
        return repr(tree) if math.isfinite(tree) else {"inf": "inf", "-inf": "(-inf)"}.get(repr(tree), "nan")
    name, *children = tree
    texts = [source(child) for child in children]
    if name in _INFIX:
        return f"({texts[0]} {_INFIX[name]} {texts[1]})"
    if name == "neg":
        return f"(-{texts[0]})"
    if name == "select":
        return f"({texts[1]} if {texts[0]} else {texts[2]})"
    return f"{name}({', '.join(texts)})"


def names(tree: Tree) -> Iterator[str]:
    """The primitives that `tree` calls and the operands that it reads."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, tuple):
        yield tree[0]
        for child in tree[1:]:
            yield from names(child)


@dataclass(frozen=True)
class Program:
    """Straight-line code: ``steps[i] = (primitive, *arguments)``; an argument is a float, an operand, or an earlier step.

    `result` is an argument too: a partial that is plainly ``y`` or ``1.0`` has no steps.
    """

    steps: tuple[tuple, ...]
    result: float | str | int


def compile_program(tree: Tree) -> Program:
    """The program of a tree; equal subtrees are computed once."""
    steps: list[tuple] = []
    known: dict[str, int] = {}

    def visit(node: Tree) -> float | str | int:
        if not isinstance(node, tuple):
            return node
        step = (node[0], *(visit(child) for child in node[1:]))
        key = repr(step)  # not the step: 0.0 equals -0.0, and step 0
        if key not in known:
            known[key] = len(steps)
            steps.append(step)
        return known[key]

    result = visit(tree)
    return Program(tuple(steps), result)
