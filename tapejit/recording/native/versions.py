"""Active versions: for each of the user's compiled functions, a dispatcher that compiles the same Python function for active types.

Called with plain arguments only, it passes the call on to the user's own. Options that say how to compile (``fastmath``, ``error_model``,
``boundscheck``) are taken over; ``parallel`` is not, since threads would race on the tape: ``prange`` counts in order.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Any

from numba import types
from numba.core import errors, typing
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.dispatcher import Dispatcher
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NopythonRewrites
from numba.core.untyped_passes import ReconstructSSA

from tapejit.errors import UnsupportedError
from tapejit.recording.native.active import ActiveBool, ActiveFloat, is_active, is_active_array
from tapejit.recording.native.fusion import PassiveFusion
from tapejit.recording.native.rewriting import rewrite

__all__ = ["ActiveVersion", "active_version", "plain_type"]

_versions: weakref.WeakKeyDictionary[Dispatcher, ActiveVersion] = weakref.WeakKeyDictionary()
_lock = threading.RLock()
_DROPPED = ("parallel", "cache", "nopython", "forceobj", "looplift", "inline", "no_cpython_wrapper", "no_cfunc_wrapper")


@register_pass(mutates_CFG=False, analysis_only=False)
class Activate(FunctionPass):
    """`rewrite` as a pass of Numba's."""

    _name = "tapejit_activate"

    def __init__(self) -> None:
        FunctionPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        rewrite(state.func_ir, state.args, active_version)
        return True


class ActiveCompiler(CompilerBase):
    """Numba's pipeline with one pass more, after SSA and before typing, and one exchanged."""

    def define_pipelines(self) -> list:
        manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
        manager.add_pass_after(Activate, ReconstructSSA)
        manager.passes = [(PassiveFusion if step is NopythonRewrites else step, what) for step, what in manager.passes]
        manager.finalize()
        return [manager]


def active_version(dispatcher: Dispatcher) -> Dispatcher:
    """The active version of a compiled function."""
    if isinstance(dispatcher, ActiveVersion) or not isinstance(dispatcher, CPUDispatcher):
        return dispatcher
    with _lock:
        if dispatcher not in _versions:
            _versions[dispatcher] = ActiveVersion(dispatcher)
        return _versions[dispatcher]


class _Overloads(OrderedDict):
    """Compiled versions by argument types; those for plain types are the plain function's, as Numba expects of a recursive call."""

    def __init__(self, version: ActiveVersion) -> None:
        super().__init__()
        self._version = weakref.ref(version)

    def __missing__(self, args: tuple) -> Any:
        version = self._version()
        assert version is not None  # it owns this
        return version.plain.overloads[args]


class ActiveVersion(CPUDispatcher):
    """A dispatcher for active arguments.

    Parameters
    ----------
    plain : Dispatcher
        The user's own.
    """

    def __init__(self, plain: Dispatcher) -> None:
        options = {name: given for name, given in plain.targetoptions.items() if name not in _DROPPED}
        options.update(nopython=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
        super().__init__(plain.py_func, targetoptions=options, pipeline_class=ActiveCompiler)
        self._plain = weakref.ref(plain)
        self.overloads = _Overloads(self)

    # Numba pickles dispatchers with the code that refers to them.

    def _reduce_states(self) -> dict:
        return {"plain": self.plain}

    @classmethod
    def _rebuild(cls, plain: Dispatcher) -> Dispatcher:
        return active_version(plain)

    @property
    def plain(self) -> Dispatcher:
        plain = self._plain()
        assert plain is not None  # whoever calls the active version refers to the plain one
        return plain

    def get_call_template(self, args: Any, kws: Any) -> tuple:
        if not any(is_active(arg) for arg in (*args, *kws.values())):
            return self.plain.get_call_template(args, kws)
        if declared := {name: kind for name, kind in self.plain.locals.items() if kind != types.float64}:
            raise UnsupportedError(
                f"{self.py_func.__name__} declares types of variables (locals={declared}), which active values could not keep; declare float64 or "
                "leave them to Numba"
            )
        pysig, args = self._compiler.fold_argument_types(args, kws)
        if not self.plain._can_compile:
            args = _declared(self.plain, args)
        self.compile(tuple(args))
        signature = self.overloads[tuple(args)].signature
        template = typing.make_concrete_template(
            f"CallTemplate({self.py_func.__name__})", key=self.py_func.__name__, signatures=[signature]
        )
        return template, pysig, args, {}

    def get_overload(self, sig: Any) -> Any:
        args = tuple(sig)
        return super().get_overload(sig) if args in self.overloads else self.plain.get_overload(sig)


def _declared(plain: Dispatcher, args: tuple) -> list:
    """Argument types under explicit signatures: what the function was declared for, active where the arguments are."""
    wanted = tuple(plain_type(arg) for arg in args)
    signature = plain.typingctx.resolve_overload(plain.py_func.__name__, plain.nopython_signatures, wanted, {})
    if signature is None:
        declared = "; ".join(str(sig) for sig in plain.nopython_signatures)
        raise errors.TypingError(f"{plain.py_func.__name__} is declared for {declared} and was called with {wanted}")
    out = []
    for arg, plain_arg, declared_arg in zip(args, wanted, signature.args, strict=True):
        if is_active(arg):
            if plain_arg != declared_arg and not (
                isinstance(plain_arg, types.Array) and plain_arg.dtype == declared_arg.dtype
            ):
                raise UnsupportedError(
                    f"{plain.py_func.__name__} is declared for {declared_arg}, and active values are float64; declare it for float64"
                )
            out.append(arg)
        else:
            out.append(declared_arg)
    return out


def plain_type(kind: types.Type) -> types.Type:
    """The type in the plain function of what is active here."""
    if isinstance(kind, ActiveFloat):
        return types.float64
    if isinstance(kind, ActiveBool):
        return types.boolean
    if is_active_array(kind):
        return kind.copy(dtype=types.float64)
    if isinstance(kind, types.BaseTuple) and is_active(kind):
        return types.Tuple([plain_type(part) for part in kind])
    if isinstance(kind, (types.List, types.ListType)) and isinstance(kind.dtype, ActiveFloat):
        return types.List(types.float64) if isinstance(kind, types.List) else types.ListType(types.float64)
    return kind
