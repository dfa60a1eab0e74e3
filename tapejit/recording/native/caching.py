"""Active versions on disk, for functions whose owner asked for it with ``cache=True``.

Numba's own cache knows a function by its name and its file, so an active version would be taken for the plain one, and an edited callee
goes unnoticed. Here the name of the entry is a digest of all that the machine code depends on: the bytecode, constants, defaults and
options of every function that is called, the values of the globals and closures they read, the op table with the rows of the user, and the
versions of tapejit, Numba, llvmlite and Python. What cannot be digested is compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from numba.core import caching, types
from numba.core.dispatcher import Dispatcher

from tapejit import ops
from tapejit.sweeps.kernel import NATIVE, cache_directory, fingerprint

__all__ = ["driver_cache", "digest", "wants_cache"]

_VERSIONED = {
    "numpy",
    "numba",
    "math",
    "builtins",
    "operator",
    "scipy",
    "cmath",
}  # modules that their version identifies


def wants_cache(f: Dispatcher) -> bool:
    """Whether the function was declared with ``cache=True``."""
    return not isinstance(f._cache, caching.NullCache)


def digest(functions: Sequence[Dispatcher], driver: str) -> str | None:
    """A name for everything that the compiled code of these functions and of their driver depends on; None if that cannot be told."""
    hashed = hashlib.sha256(repr((fingerprint(NATIVE), np.__version__, driver)).encode())
    for op in ops.USER:
        hashed.update(repr((op.name, op.value, op.partials)).encode())
    try:
        seen: dict[int, int] = {}
        for f in functions:
            hashed.update(repr(_described(f, seen)).encode())
    except _Opaque:
        return None
    return hashed.hexdigest()


class _Opaque(Exception):
    """Something that cannot be compared with what another process has."""


def _described(thing: Any, seen: dict[int, int]) -> Any:
    """A thing as text that is equal in another process exactly if the thing is."""
    if isinstance(thing, (int, float, complex, str, bytes, bool, type(None), np.generic, slice, range, type(Ellipsis))):
        return (type(thing).__name__, repr(thing))
    if isinstance(thing, (tuple, list, frozenset, set)):
        items = sorted(thing, key=repr) if isinstance(thing, (frozenset, set)) else thing
        return (type(thing).__name__, *(_described(item, seen) for item in items))
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        return (
            "array",
            thing.dtype.str,
            thing.shape,
            hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest(),
        )
    if isinstance(thing, types.Type):
        return ("numba type", str(thing))
    if isinstance(thing, CodeType):
        return _described_code(thing, seen)
    if id(thing) in seen:
        return ("seen", seen[id(thing)])
    if isinstance(thing, Dispatcher):
        seen[id(thing)] = len(seen)
        options = sorted((name, repr(given)) for name, given in thing.targetoptions.items())
        declared = [] if thing._can_compile else [str(signature) for signature in thing.nopython_signatures]
        variables = sorted((name, str(kind)) for name, kind in thing.locals.items())
        return ("compiled", options, declared, variables, _described_function(thing.py_func, seen))
    if isinstance(thing, FunctionType):
        seen[id(thing)] = len(seen)
        return _described_function(thing, seen)
    if isinstance(thing, np.dtype):
        return ("dtype", thing.str)
    module = (
        thing.__name__
        if isinstance(thing, ModuleType)
        else getattr(thing, "__module__", None) or type(thing).__module__
    )
    if module.split(".")[0] in _VERSIONED:
        return (
            "known",
            module,
            getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None) or repr(type(thing)),
        )
    raise _Opaque(repr(thing))


def _described_function(f: FunctionType, seen: dict[int, int]) -> Any:
    names = _names(f.__code__)
    cells = [_described_name(cell.cell_contents, names, seen) for cell in f.__closure__ or ()]
    read = [(name, _described_name(f.__globals__[name], names, seen)) for name in sorted(names & f.__globals__.keys())]
    code = _described_code(f.__code__, seen)
    return ("function", f.__qualname__, code, _described(f.__defaults__, seen), cells, read)


def _described_name(thing: Any, names: set[str], seen: dict[int, int]) -> Any:
    """What a name stands for. Of a module, all that the function could mean by ``module.name``: bytecode names it apart from the module."""
    if not isinstance(thing, ModuleType) or thing.__name__.split(".")[0] in _VERSIONED:
        return _described(thing, seen)
    if id(thing) in seen:
        return ("seen", seen[id(thing)])
    seen[id(thing)] = len(seen)
    found = sorted(names & vars(thing).keys())
    return ("module", thing.__name__, *((name, _described_name(vars(thing)[name], names, seen)) for name in found))


def _described_code(code: CodeType, seen: dict[int, int]) -> Any:
    # Lines too: errors name them.
    lines = hashlib.sha256(repr(list(code.co_lines())).encode()).hexdigest()
    constants = [_described(constant, seen) for constant in code.co_consts]
    return (
        code.co_code.hex(),
        constants,
        code.co_names,
        code.co_varnames,
        code.co_filename,
        code.co_firstlineno,
        lines,
    )


def _names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


class _Locator(caching._CacheLocator):
    """Puts a driver into a folder named by its digest."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._py_file = py_file
        self._digest = py_func.tapejit_digest
        self._path = str(cache_directory() / "compiled" / self._digest[:2] / self._digest)

    def get_cache_path(self) -> str:
        return self._path

    def get_source_stamp(self) -> str:
        return self._digest

    def get_disambiguator(self) -> str:
        return "driver"

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator | None:
        locator = cls(py_func, py_file)
        try:
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]


class _FunctionCache(caching.FunctionCache):
    _impl_class = _CacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What is on disk; None where nothing is, or nothing that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged pickle raises anything
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep it for the next process; a damaged index is replaced, and where nothing can be written nothing is."""
        try:
            super().save_overload(sig, data)
        except Exception:
            with contextlib.suppress(Exception):
                self.flush()
                super().save_overload(sig, data)


def driver_cache(driver: FunctionType, name: str) -> caching.FunctionCache | None:
    """A disk cache for one driver; None where no folder can be written."""
    driver.tapejit_digest = name  # type: ignore[attr-defined]
    try:
        return _FunctionCache(driver)
    except RuntimeError:
        return None
