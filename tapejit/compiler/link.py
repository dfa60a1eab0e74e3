"""From LLVM IR to machine code in this process: the compiler's last stage.

`link` optimises a module for the processor it runs on, turns it into object code, keeps that on disk for the next process, and
loads it. What it returns owns the code: memory is freed with the last reference, so **whoever calls an address keeps the `Linked`
while the call lasts**, and calls `Linked.pin` before handing an address to code that may outlive it.

The target machine makes the object code and LLVM's ORC linker loads it, each module as a library of its own. So equal names in two
modules never meet, an unknown symbol is a Python exception (with MCJIT it ends the process), and loading takes 0.2 ms instead of 1.1.

Arithmetic is done as written: LLVM neither contracts nor reassociates unless instructions say it may, and such flags are refused
without `fast`. LLVM does know the C library's functions, so a call that must stay a call carries ``nobuiltin``.

What compiling costs, for loop bodies of derivatives (forward, then adjoint) on a 2.6 GHz EPYC: 50 us an instruction; where LLVM's loop
vectoriser finds something to do 100 us, plus a term that is quadratic: 0.1 s for 760 instructions, 0.7 s for 2700, 6 s for 7900. The
same bodies written with vector types in the IR ran as fast and compiled in 0.03, 0.15 and 0.6 s, so long bodies are better emitted so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from weakref import WeakValueDictionary, finalize

import llvmlite
import llvmlite.binding as llvm

from ..errors import CompileError
from ..sweeps.kernel import cache_directory

__all__ = ["CACHE_LIMIT", "Linked", "estimate", "link"]

CACHE_LIMIT = 512 << 20  # bytes on disk; the least recently used go first

_FORMAT = b"tapejit object 1\n"  # another number for another layout or another choice of passes
_LOCK = threading.RLock()  # one compilation at a time, as llvmlite has it anyway
_ALIVE: WeakValueDictionary[tuple, Linked] = WeakValueDictionary()
_PINNED: list[Linked] = []

# JITLink puts the sections of a module next to each other, so the small code model is safe: constants are operands instead of addresses
# loaded first. On Windows it does not take every object file; the older linker needs the large code model there.
_JITLINK = sys.platform != "win32"
_CODE = {"reloc": "pic", "codemodel": "small"} if _JITLINK else {"reloc": "default", "codemodel": "jitdefault"}

_LOOSE = re.compile(r"= (?:[a-z]+ )+?(fast|reassoc|contract|arcp|afn) |@(llvm\.fmuladd)\b")
_ARITHMETIC = re.compile(r"= (fadd|fsub|fmul|fdiv|fneg) (?!fast )")


class Linked:
    """Machine code in memory, made or loaded by `link`."""

    def __init__(self, ir: str, options: _Options, entry: _Entry, tracker, seconds: float, was_cached: bool):
        self._ir = ir
        self._options = options
        self._tracker = tracker
        self._exported = entry.exported
        self.nbytes = len(entry.code)
        self.seconds = seconds
        self.was_cached = was_cached

    def __repr__(self):
        origin = "loaded" if self.was_cached else "compiled"
        return f"<Linked {', '.join(self._exported)}: {self.nbytes} bytes, {origin} in {self.seconds:.3f} s>"

    def address(self, name: str) -> int:
        """Where the function `name` starts; valid while this object lives."""
        if name not in self._exported:
            raise CompileError(f"the module defines no function {name!r}; it defines {_listed(self._exported)}")
        return self._tracker[name]

    def pin(self) -> Linked:
        """Keep the code for the life of the process, for addresses that others hold."""
        with _LOCK:
            if self not in _PINNED:
                _PINNED.append(self)
        return self

    @property
    def llvm(self) -> str:
        """The optimised IR, made anew at each reading."""
        with _LOCK, _Module(self._ir, self._options) as module:
            module.optimise()
            return str(module.ref)

    @property
    def asm(self) -> str:
        """The assembly, made anew at each reading."""
        with _LOCK, _Module(self._ir, self._options) as module:
            module.optimise()
            return module.machine.emit_assembly(module.ref)


def link(
    ir: str,
    *,
    fast: bool = False,
    level: int = 3,
    vectorise: bool = True,
    pack: bool = False,
    externals: Iterable[str] = (),
) -> Linked:
    """Compile the module `ir` for this processor, or load it from the cache.

    The same text and options give the same object while one is alive. May be called from several threads.

    Parameters
    ----------
    ir : str
        LLVM IR. Addresses do not belong in it: they differ in the next process, so nothing would ever be found in the cache.
    fast : bool
        Allow contraction of every product and sum. Further flags (``reassoc``, ``arcp``, ...) are the emitter's, refused otherwise.
    level : int
        0 to 3, as compilers have it. Level 0 compiles ten times sooner and runs three times longer.
    vectorise : bool
        Whether LLVM looks for loops to vectorise.
    pack : bool
        Whether it also packs equal operations of one body into vectors. Half of all compile time, and slower where bodies have few.
    externals : iterable of str
        Symbols that the module calls and the caller has registered by ``llvmlite.binding.add_symbol``. Those of the process, such as
        the C library's, need no mention.

    Returns
    -------
    Linked
        The code, to be kept for as long as it is called.

    Raises
    ------
    CompileError
        If the IR is not valid, or a symbol is unknown.
    """
    started = time.perf_counter()
    options = _Options(fast, level, vectorise, pack)
    if not fast and (loose := _LOOSE.search(ir)):
        raise CompileError(
            f"{(loose[1] or loose[2])!r} lets LLVM change results; link with fast=True, or emit without it"
        )
    with _LOCK:
        imports = {name: _known_address(name) for name in externals}
        key = options.key(ir)
        alive = (key, tuple(sorted(imports.items())))
        if (linked := _ALIVE.get(alive)) is not None:
            return linked
        entry = _DISK.read(key)
        was_cached = entry is not None
        if entry is None:
            entry = _compile(ir, options)
        addresses = {name: imports[name] if name in imports else _known_address(name) for name in entry.needed}
        loader = _Loader.current()
        tracker = loader.load(entry, addresses)
        if not was_cached:
            _DISK.write(key, entry)
        linked = Linked(ir, options, entry, tracker, time.perf_counter() - started, was_cached)
        # At exit nothing is unloaded: other threads may still be in a call.
        finalize(linked, loader.unload, tracker).atexit = False
        _ALIVE[alive] = linked
        return linked


def estimate(n_instructions: int, *, level: int = 3, vectorise: bool = True) -> float:
    """Seconds that `link` needs for a module of this size when it is not cached, within a factor of three or so.

    LLVM cannot be interrupted, so whoever has a limit asks first. With `vectorise`, for one body that LLVM does vectorise; bodies with
    carried values, and those emitted in vector types, cost what they cost without.
    """
    if level == 0:
        return 0.002 + 6e-6 * n_instructions
    if vectorise and level > 1:
        return 0.005 + 1e-4 * n_instructions + 7e-8 * n_instructions**2
    return 0.005 + 5e-5 * n_instructions + 4e-9 * n_instructions**2


class _Options:
    """What else than its text decides what a module becomes."""

    def __init__(self, fast, level, vectorise, pack):
        if level not in (0, 1, 2, 3):
            raise ValueError(f"level is 0, 1, 2 or 3, got {level!r}")
        self.fast, self.level, self.vectorise, self.pack = bool(fast), int(level), bool(vectorise), bool(pack)

    def key(self, ir: str) -> str:
        versions = (llvmlite.__version__, llvm.llvm_version_info)
        facts = (_FORMAT, *_host(), versions, _CODE, self.fast, self.level, self.vectorise, self.pack)
        return hashlib.sha256(f"{facts}\n{ir}".encode()).hexdigest()


class _Entry:
    """Object code with what loading it takes: the names it defines and those it needs."""

    def __init__(self, exported, needed, code):
        self.exported: list[str] = exported
        self.needed: list[str] = needed
        self.code: bytes = code


class _Module:
    """Parsed IR, in a context of its own: LLVM keeps types and constants for as long as their context."""

    def __init__(self, ir, options):
        self.options = options
        self.machine = _machine(options.level)
        if options.fast:
            ir = _ARITHMETIC.sub(r"= \1 contract ", ir)
        self._context = llvm.create_context()
        try:
            self.ref = llvm.parse_assembly(ir, self._context)
        except RuntimeError as error:
            self._context.close()
            raise CompileError(f"the IR does not parse: {error}") from None
        try:
            self.ref.triple = _host()[0]
            self.ref.data_layout = str(self.machine.target_data)
            self.ref.verify()
        except RuntimeError as error:
            self.__exit__()
            raise CompileError(f"the IR is not valid: {error}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ref.close()
        self._context.close()

    def optimise(self):
        tuning = llvm.create_pipeline_tuning_options(speed_level=self.options.level)
        tuning.loop_vectorization = tuning.loop_interleaving = self.options.vectorise
        tuning.slp_vectorization = self.options.pack
        tuning.loop_unrolling = self.options.level > 1
        with tuning, llvm.create_pass_builder(self.machine, tuning) as builder:
            passes = builder.getModulePassManager()
            try:
                passes.run(self.ref, builder)
            finally:
                # llvmlite's own `close` forgets to: 90 KB for each module.
                getattr(llvm.newpassmanagers, "NewPassManager", type(passes))._dispose(passes)
                passes.detach()


@cache
def _host() -> tuple[str, str, str]:
    """Triple, processor and features."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


@cache
def _machine(level):
    triple, cpu, features = _host()
    target = llvm.Target.from_triple(triple)
    return target.create_target_machine(cpu=cpu, features=features, opt=level, jit=True, **_CODE)


def _compile(ir: str, options: _Options) -> _Entry:
    with _Module(ir, options) as module:
        module.optimise()
        exported, needed = [], []
        for symbol in (*module.ref.functions, *module.ref.global_variables):
            if symbol.is_declaration and not symbol.name.startswith("llvm."):
                needed.append(symbol.name)
            elif not symbol.is_declaration and symbol.linkage == llvm.Linkage.external:
                exported.append(symbol.name)
        return _Entry(exported, needed, module.machine.emit_object(module.ref))


class _Loader:
    """LLVM's ORC linker. It keeps 9 KB of each module that it ever loaded, so another takes its place after some."""

    CAPACITY = 64

    def __init__(self):
        self.jit = llvm.create_lljit_compiler(_machine(2), use_jit_link=_JITLINK, suppress_errors=True)
        self.n_loaded = 0
        self.alive: set[str] = set()

    @classmethod
    def current(cls) -> _Loader:
        for loader in _LOADERS[:-1]:
            if not loader.alive:
                _LOADERS.remove(loader)
                loader.jit.close()
        if not _LOADERS or _LOADERS[-1].n_loaded >= cls.CAPACITY:
            _LOADERS.append(cls())
        return _LOADERS[-1]

    def load(self, entry: _Entry, addresses: dict[str, int]):
        """A library of its own for `entry`; the tracker that is returned owns the memory, and goes to `unload`."""
        name = f"module {self.n_loaded}"
        self.n_loaded += 1
        builder = llvm.JITLibraryBuilder().add_object_img(entry.code)
        for symbol, address in addresses.items():
            builder.import_symbol(symbol, address)
        for symbol in entry.exported:
            builder.export_symbol(symbol)
        builder.add_current_process()  # what LLVM calls on its own account: memset, memcpy, ...
        try:
            tracker = builder.link(self.jit, name)
        except RuntimeError as error:
            raise CompileError(f"LLVM cannot load the code it made: {error}") from None
        self.alive.add(name)
        return tracker

    def unload(self, tracker) -> None:
        # The garbage collector may call this anywhere, even while this thread has llvmlite's lock: waiting for ours could deadlock.
        tracker.close()
        self.alive.discard(tracker.name)


_LOADERS: list[_Loader] = []


def _known_address(name: str) -> int:
    address = llvm.address_of_symbol(name)
    if address is None:
        raise CompileError(f"no symbol {name!r} in this process; register its address with llvmlite.binding.add_symbol")
    return address


class _Disk:
    """Object code between processes: files named by key, each with a digest of what follows it."""

    def __init__(self):
        self._written: dict[Path, int] = {}  # by this process, since it last looked at what the folder holds

    def read(self, key: str) -> _Entry | None:
        """The entry of `key`, if it is there and whole."""
        path = _folder() / f"{key}.o"
        try:
            entry = _unpack(key, path.read_bytes())
        except OSError:
            return None
        with suppress(OSError):
            os.utime(path)
        return entry

    def write(self, key: str, entry: _Entry) -> None:
        """Keep `entry`; where nothing can be written, it serves this process alone."""
        folder, data = _folder(), _pack(key, entry)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=key[:16], suffix=".tmp", dir=folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.replace(temporary, folder / f"{key}.o")
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError:
            return
        written = self._written.get(folder, CACHE_LIMIT) + len(data)
        if written > CACHE_LIMIT // 16:
            _prune(folder, CACHE_LIMIT)
            written = 0
        self._written[folder] = written


_DISK = _Disk()


def _folder() -> Path:
    return cache_directory() / "linked"


def _pack(key: str, entry: _Entry) -> bytes:
    names = json.dumps({"exported": entry.exported, "needed": entry.needed}).encode()
    body = len(names).to_bytes(8, "little") + names + entry.code
    return _FORMAT + hashlib.sha256(key.encode() + body).digest() + body


def _unpack(key: str, data: bytes) -> _Entry | None:
    start = len(_FORMAT) + 32
    body = data[start:]
    if data[:start] != _FORMAT + hashlib.sha256(key.encode() + body).digest():
        return None
    end = 8 + int.from_bytes(body[:8], "little")
    return _Entry(**json.loads(body[8:end]), code=body[end:])


def _prune(folder: Path, limit: int) -> None:
    """Remove the files used longest ago until `folder` holds at most `limit` bytes."""
    files = []
    with suppress(OSError):
        for item in os.scandir(folder):
            with suppress(OSError):  # another process may prune too
                facts = item.stat()
                files.append((facts.st_mtime, facts.st_size, item.path))
    held = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if held <= limit:
            return
        with suppress(OSError):
            os.unlink(path)
        held -= size


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
