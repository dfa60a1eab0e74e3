"""Numbers at addresses, inside compiled code: what the flat arrays of a tape are while native code appends to them.

The addresses change when the tape grows, so they are read from the tape's header at every push (`tapejit.recording.native.push`).
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["bits_of", "call_back", "call_symbol", "load", "load_symbol", "store"]

_TYPES = {
    types.uint8: ir.IntType(8),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.float64: ir.DoubleType(),
}
_INT64 = ir.IntType(64)


@intrinsic
def load(typingctx, address, index, kind):
    """The number of type `kind` at ``address[index]``; integers come as int64."""
    number = kind.instance_type
    result = types.float64 if number == types.float64 else types.int64

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _TYPES[number].as_pointer())
        loaded = builder.load(builder.gep(pointer, [args[1]]))
        if result == types.float64 or number == types.int64:
            return loaded
        return builder.zext(loaded, _INT64) if number == types.uint8 else builder.sext(loaded, _INT64)

    return result(types.int64, types.int64, kind), generate


@intrinsic
def store(typingctx, address, index, number, kind):
    """Put `number` at ``address[index]``, as type `kind`."""
    stored = kind.instance_type
    given = types.float64 if stored == types.float64 else types.int64

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _TYPES[stored].as_pointer())
        value = args[2]
        if stored not in (types.float64, types.int64):
            value = builder.trunc(value, _TYPES[stored])
        builder.store(value, builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, given, kind), generate


@intrinsic
def bits_of(typingctx, number):
    """The 64 bits of a float64."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], _INT64)

    return types.int64(types.float64), generate


@intrinsic(prefer_literal=True)
def load_symbol(typingctx, name, index):
    """The int64 at `index` of an array that Python has registered under a name (see `push.register`)."""
    label = name.literal_value

    def generate(context, builder, signature, args):
        return builder.load(builder.gep(symbol(builder.module, label, _INT64), [args[1]]))

    return types.int64(name, types.int64), generate


@intrinsic
def call_back(typingctx, function, what, which):
    """Call a Python callback ``int64 f(int64, int64)`` at an address."""

    def generate(context, builder, signature, args):
        callee = ir.FunctionType(_INT64, [_INT64, _INT64]).as_pointer()
        return builder.call(builder.inttoptr(args[0], callee), args[1:])

    return types.int64(types.int64, types.int64, types.int64), generate


def call_symbol(name, signature):
    """An intrinsic that calls a compiled function by the name under which `push.install` has registered it."""
    kinds = {types.int64: _INT64, types.float64: ir.DoubleType()}
    callee = ir.FunctionType(kinds[signature.return_type], [kinds[arg] for arg in signature.args])

    def generate(context, builder, given, args):
        return builder.call(symbol(builder.module, name, callee), args)

    arguments = ", ".join(f"a{i}" for i in range(len(signature.args)))
    namespace = {"signature": signature, "generate": generate}
    exec(f"def {name}(typingctx, {arguments}):\n    return signature, generate\n", namespace)
    return intrinsic(namespace[name])


def symbol(module: ir.Module, name: str, kind: ir.Type) -> ir.Value:
    """An outside variable or function of a module, declared once."""
    if name in module.globals:
        return module.globals[name]
    if isinstance(kind, ir.FunctionType):
        return ir.Function(module, kind, name)
    variable = ir.GlobalVariable(module, kind, name)
    variable.linkage = "external"
    return variable
