"""How NumPy functions and array methods get implementations for active arguments, ahead of Numba's own.

Numba's implementations accept any array and fail, or forget about NaN, on active ones. Templates of the target "cpu" are tried before
those of no target, which Numba's are: an `implements` function sees every call first, and gives None where nothing is active.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import types
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr
from numba.extending import lower_builtin, overload

from tapejit.errors import UnsupportedError
from tapejit.recording.native.active import ActiveBool, ActiveFloat, is_active, is_active_array

__all__ = ["METHODS", "Call", "implements", "plain_type"]

# What an array method does on active arrays: a NumPy function, or one of ours.
METHODS: dict[str, Callable] = {}


def implements(*functions: Callable, method: str = "", prefer_literal: bool = False) -> Callable:
    """Decorate a function from argument types to an implementation, or None: that of NumPy functions and of an array method."""

    def register(choose: Callable) -> Callable:
        for function in functions:
            overload(function, target="cpu", prefer_literal=prefer_literal)(choose)
        if method:
            METHODS[method] = functions[0]
            _method(method, functions[0], prefer_literal)
        return choose

    return register


def plain_type(kind):
    """The type that stands in the plain function where this one stands in the active version."""
    if isinstance(kind, types.Optional):
        kind = kind.type
    if isinstance(kind, ActiveFloat):
        return types.float64
    if isinstance(kind, ActiveBool):
        return types.boolean
    if isinstance(kind, types.BaseTuple) and is_active(kind):
        return types.Tuple([plain_type(item) for item in kind])
    if isinstance(kind, (types.Array, types.List, types.ListType)) and is_active(kind):
        return (
            kind.copy(dtype=plain_type(kind.dtype))
            if isinstance(kind, types.Array)
            else type(kind)(plain_type(kind.dtype))
        )
    return kind


@infer_getattr
class _ActiveMethods(AttributeTemplate):
    key = types.Array
    metadata = {"target": "cpu"}

    def generic_resolve(self, array, name):
        if not is_active_array(array):
            return None
        if name in _OF_MEMORY:
            raise UnsupportedError(
                f".{name} of an active array shows its memory, which differs from that of a plain one; use slices, reshape or astype"
            )
        return types.BoundFunction(_TEMPLATES[name], array) if name in METHODS else None


_OF_MEMORY = {"view", "ctypes", "tobytes", "strides", "itemsize", "nbytes"}


_TEMPLATES: dict[str, type] = {}


class Call:
    """A call of a function as typing has found it, for lowering: asked again there, defaults would count as arguments."""

    def __init__(self, context, function: Callable, args, kws=None) -> None:
        self._callee = context.resolve_value_type(function)
        self.signature = self._callee.get_call_type(context, tuple(args), kws or {})
        self.args, self.result = self.signature.args, self.signature.return_type

    def lower(self, context, builder, values):
        return context.get_function(self._callee, self.signature)(builder, values)


def _method(name: str, function: Callable, literal: bool) -> None:
    """Let ``x.name(...)`` on an active array be ``function(x, ...)``."""
    code = f"tapejit.method.{name}"
    calls = {}

    class Template(AbstractTemplate):
        key = code
        prefer_literal = literal

        def generic(self, args, kws):
            call = Call(self.context, function, (self.this, *args), kws)
            calls[call.args] = call
            return call.signature.as_method()

    def generate(context, builder, signature, args):
        return calls[signature.args].lower(context, builder, args)

    Template.__name__ = f"active_{name}"
    _TEMPLATES[name] = Template
    lower_builtin(code, types.VarArg(types.Any))(generate)
