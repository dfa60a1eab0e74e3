"""How kernels are compiled: `kernel` for functions called from Python or from other kernels, `primitive_kernel` for C functions.

All flags stand here, once: NumPy division (1 / 0 is inf), no ``fastmath`` (it may reorder sums and ignore NaN), ``nogil``, and
a disk cache of our own. Numba's cache looks at the file that holds a function; ours is keyed by all the sources from which
kernels are made, so an edited row of the op table or an edited callee compiles anew. Importing this compiles nothing.

The cache is a folder of the user's, ``TAPEJIT_CACHE_DIR`` or the platform's cache folder, so that every environment with the same
versions shares it. Where it cannot be written, kernels are compiled for the process alone.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

import llvmlite
import numba
from numba.core import caching
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

__all__ = ["cache_directory", "fingerprint", "kernel", "primitive_kernel"]

FLAGS = {"error_model": "numpy", "nogil": True}
_PACKAGE = Path(__file__).resolve().parent.parent
NATIVE = _PACKAGE / "recording" / "native"
COMPILER = _PACKAGE / "compiler"
CHECKPOINTING = _PACKAGE / "checkpointing"
# Kernels of these folders depend on what stands there, besides the sweeps.
_DEPENDS_ON = {NATIVE: (NATIVE,), COMPILER: (COMPILER,), CHECKPOINTING: (CHECKPOINTING, COMPILER)}


def cache_directory() -> Path:
    """Where compiled kernels are kept between processes.

    Examples
    --------
    >>> from tapejit.sweeps.kernel import cache_directory
    >>> cache_directory().name
    'tapejit'
    """
    if named := os.environ.get("TAPEJIT_CACHE_DIR"):
        return Path(named) / "tapejit"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tapejit"


@cache
def fingerprint(*folders: Path) -> str:
    """Digest of everything that a compiled kernel depends on, the processor apart (Numba's own key has that); of these folders as well."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {sys.version}".encode())
    sources = [path for folder in (_PACKAGE / "sweeps", *folders) for path in sorted(folder.glob("*.py"))]
    for path in [_PACKAGE / "expressions.py", _PACKAGE / "ops.py", *sources]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _Locator(caching._CacheLocator):
    """Puts a kernel into the folder named by `fingerprint`."""

    def __init__(self, py_func, py_file):
        self._py_file = py_file
        self._fingerprint = fingerprint(*_DEPENDS_ON.get(Path(py_file).parent, ()))
        self._path = str(cache_directory() / self._fingerprint[:16])

    def get_cache_path(self):
        return self._path

    def get_source_stamp(self):
        return self._fingerprint

    def get_disambiguator(self):
        return "kernel"

    @classmethod
    def from_function(cls, py_func, py_file):
        locator = cls(py_func, py_file)
        try:
            locator.ensure_cache_path()
        except OSError:
            locator._path = _private_directory()
        return locator


@cache
def _private_directory() -> str:
    return tempfile.mkdtemp(prefix="tapejit-")


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]


class _KernelCache(caching.FunctionCache):
    _impl_class = _CacheImpl


def kernel(function):
    """Compile for calls from Python and from other kernels, at the first call with each signature."""
    dispatcher = numba.njit(**FLAGS)(function)
    dispatcher._cache = _KernelCache(function)
    return dispatcher


def primitive_kernel(signature, function):
    """Compile now (or load) a C function; `address` of the result can be called from any kernel."""
    c_function = CFunc(function, normalize_signature(signature), locals={}, options=dict(FLAGS))
    c_function._cache = _KernelCache(function)
    c_function.compile()
    return c_function
