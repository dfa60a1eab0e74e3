"""Functions as Numba reads them: their intermediate representation before typing, and which Python functions are compiled at all."""

from __future__ import annotations

import inspect
import threading
import weakref
from types import FunctionType
from typing import Any

from numba import types
from numba.core import bytecode, errors, ir
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
from numba.core.compiler_machinery import PassManager
from numba.core.dispatcher import Dispatcher
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.untyped_passes import LiteralUnroll, ReconstructSSA

__all__ = ["compiled_form", "untyped_ir"]

_jitables: weakref.WeakKeyDictionary[FunctionType, Dispatcher | None] = weakref.WeakKeyDictionary()
_read: weakref.WeakKeyDictionary[Dispatcher, ir.FunctionIR | None] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def compiled_form(thing: Any) -> Any:
    """A function registered with ``numba.extending.register_jitable`` as a dispatcher; anything else as it is."""
    if type(thing) is not FunctionType:
        return thing
    with _lock:
        if thing not in _jitables:
            _jitables[thing] = CPUDispatcher(thing, targetoptions={"nopython": True}) if _is_jitable(thing) else None
        return _jitables[thing] or thing


def _is_jitable(function: FunctionType) -> bool:
    """Whether Numba compiles this function itself where it is called; an ``overload`` compiles another in its place."""
    kind = cpu_target.typing_context._lookup_global(function)
    templates = getattr(kind, "templates", ())
    # The name inside register_jitable, whose implementation of a function is the function.
    return any(getattr(getattr(t, "_overload_func", None), "__name__", "") == "ov_wrap" for t in templates)


def untyped_ir(dispatcher: Dispatcher) -> ir.FunctionIR | None:
    """A function in SSA form, before typing; None if Numba cannot read it."""
    if dispatcher not in _read:
        _read[dispatcher] = _untyped_ir(dispatcher)
    return _read[dispatcher]


def _untyped_ir(dispatcher: Dispatcher) -> ir.FunctionIR | None:
    function_id = bytecode.FunctionIdentity.from_function(dispatcher.py_func)
    n = len(inspect.signature(dispatcher.py_func).parameters)
    target = dispatcher.targetdescr
    flags = _flags(dispatcher)
    compiler = CompilerBase(target.typing_context, target.target_context, None, (types.pyobject,) * n, None, flags, {})
    state = compiler.state
    state.func_id = function_id
    state.bc = bytecode.ByteCode(func_id=function_id)
    state.lifted, state.lifted_from, state.nargs = (), None, n
    whole = DefaultPassBuilder.define_untyped_pipeline(state)
    manager = PassManager("tapejit_untyped")
    for step, label in whole.passes:
        if step is not LiteralUnroll:
            manager.add_pass(step, label)
        if step is ReconstructSSA:
            break
    manager.finalize()
    try:
        manager.run(state)
    except (errors.NumbaError, NotImplementedError):
        return None
    return state.func_ir


def _flags(dispatcher: Dispatcher) -> Any:
    flags = Flags()
    dispatcher.targetdescr.options.parse_as_flags(flags, {"nopython": True})
    flags.enable_ssa = True
    return flags
