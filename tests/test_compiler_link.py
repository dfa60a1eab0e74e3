"""The compiler's last stage: machine code from LLVM IR, cached, shared and freed."""

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import llvmlite.binding as llvm
import numpy as np
import pytest

from tapejit.compiler import link as linking
from tapejit.compiler.link import estimate, link
from tapejit.errors import CompileError

BINARY = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double, ctypes.c_double, ctypes.c_double)

MULTIPLY_ADD = """
define double @f(double %a, double %b, double %c) {
  %m = fmul double %a, %b
  %r = fadd double %m, %c
  ret double %r
}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache of the test's own; the folder that holds object code."""
    monkeypatch.setenv("TAPEJIT_CACHE_DIR", str(tmp_path))
    return tmp_path / "tapejit" / "linked"


def adding(constant, name="f"):
    return f"define double @{name}(double %a) {{\n  %r = fadd double %a, {float(constant)!r}\n  ret double %r\n}}\n"


def call(linked, *arguments, name="f"):
    double = ctypes.c_double
    return ctypes.CFUNCTYPE(double, *[double] * len(arguments))(linked.address(name))(*arguments)


def test_address_is_callable():
    linked = link(MULTIPLY_ADD)
    assert call(linked, 2.0, 3.0, 4.0) == 10.0
    assert not linked.was_cached
    assert linked.nbytes > 0
    assert "fadd double" in linked.llvm
    assert "f:" in linked.asm


def test_products_and_sums_round_as_in_python(rng):
    linked = link(MULTIPLY_ADD)
    for a, b, c in rng.normal(size=(1000, 3)):
        assert call(linked, a, b, c) == a * b + c


def test_fast_allows_contraction(rng):
    contracted = link(MULTIPLY_ADD, fast=True)
    if "fma" not in contracted.asm and "fmadd" not in contracted.asm:
        pytest.skip("no fused instructions on this processor")
    samples = rng.normal(size=(1000, 3))
    assert any(call(contracted, a, b, c) != a * b + c for a, b, c in samples)


@pytest.mark.parametrize(
    "line",
    [
        "%r = fadd contract double %a, %a",
        "%r = fadd nnan reassoc double %a, %a",
        "%r = call fast double @llvm.sqrt.f64(double %a)",
        "%r = tail call double @llvm.fmuladd.f64(double %a, double %a, double %a)",
    ],
)
def test_flags_are_refused_unless_fast(line):
    declarations = "declare double @llvm.sqrt.f64(double)\ndeclare double @llvm.fmuladd.f64(double, double, double)\n"
    text = f"{declarations}define double @f(double %a) {{\n  {line}\n  ret double %r\n}}\n"
    with pytest.raises(CompileError, match="fast=True"):
        link(text)
    link(text, fast=True)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("vectorise", [False, True])
def test_loop_has_the_same_bits_at_every_level(level, vectorise, rng):
    text = """
define void @f(ptr noalias %x, ptr noalias %y, i64 %n) {
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %p = getelementptr double, ptr %x, i64 %i
  %q = getelementptr double, ptr %y, i64 %i
  %v = load double, ptr %p
  %w = fmul double %v, %v
  %r = fadd double %w, 0.1
  store double %r, ptr %q
  %next = add i64 %i, 1
  %done = icmp eq i64 %next, %n
  br i1 %done, label %exit, label %loop
exit:
  ret void
}
"""
    linked = link(text, level=level, vectorise=vectorise)
    x = rng.normal(size=1003)
    y = np.empty_like(x)
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(linked.address("f"))
    function(x.ctypes.data, y.ctypes.data, x.size)
    np.testing.assert_array_equal(y, x * x + 0.1)


def test_level_is_checked():
    with pytest.raises(ValueError, match="level is 0, 1, 2 or 3"):
        link(MULTIPLY_ADD, level=4)


def test_equal_names_in_two_modules_do_not_meet():
    modules = [link(adding(constant)) for constant in range(20)]
    assert [call(linked, 1.0) for linked in modules] == [1.0 + constant for constant in range(20)]


def test_same_text_and_options_share_code():
    first = link(MULTIPLY_ADD)
    assert link(MULTIPLY_ADD) is first
    assert link(MULTIPLY_ADD, level=1) is not first


def test_libc_functions_and_memset_are_found():
    text = """
declare double @cbrt(double)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
define double @f(double %a) {
  %r = call double @cbrt(double %a) nobuiltin
  ret double %r
}
define void @clear(ptr %p, i64 %n) {
  call void @llvm.memset.p0.i64(ptr %p, i8 0, i64 %n, i1 false)
  ret void
}
"""
    linked = link(text)
    assert call(linked, 27.0) == pytest.approx(3.0)
    x = np.ones(100)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(linked.address("clear"))(x.ctypes.data, x.nbytes)
    assert not x.any()


USES_CALLBACK = """
declare double @tapejit_test_callback(double)
define double @f(double %a) {
  %r = call double @tapejit_test_callback(double %a)
  ret double %r
}
"""


def test_externals_are_called():
    UNARY = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)
    double, triple = UNARY(lambda x: 2 * x), UNARY(lambda x: 3 * x)
    llvm.add_symbol("tapejit_test_callback", ctypes.cast(double, ctypes.c_void_p).value)
    first = link(USES_CALLBACK, externals=["tapejit_test_callback"])
    llvm.add_symbol("tapejit_test_callback", ctypes.cast(triple, ctypes.c_void_p).value)
    second = link(USES_CALLBACK, externals=["tapejit_test_callback"])
    assert (call(first, 5.0), call(second, 5.0)) == (10.0, 15.0)
    assert second.was_cached  # the same code, bound to another address


@pytest.mark.parametrize("externals", [[], ["tapejit_test_nowhere"]])
def test_unknown_symbol_is_named(externals):
    with pytest.raises(CompileError, match="no symbol 'tapejit_test_nowhere' in this process"):
        link(USES_CALLBACK.replace("callback", "nowhere"), externals=externals)


def test_unknown_symbol_in_cached_code_is_named(folder):
    text = USES_CALLBACK.replace("callback", "forgotten")
    linking._DISK.write(
        linking._Options(False, 3, True, False).key(text),
        linking._compile(text, linking._Options(False, 3, True, False)),
    )
    assert list(folder.iterdir())
    with pytest.raises(CompileError, match="no symbol 'tapejit_test_forgotten'"):
        link(text)


@pytest.mark.parametrize("text", ["define foo", "define double @f(double %a) { ret i64 0 }"])
def test_text_that_is_not_ir(text):
    with pytest.raises(CompileError, match="does not parse"):
        link(text)


def test_invalid_ir():
    with pytest.raises(CompileError, match="not valid"):
        link(
            "define double @f(double %a) {\n  %r = fadd double %s, 1.0\n  %s = fadd double %r, 1.0\n  ret double %s\n}\n"
        )


def test_unknown_function_is_named():
    with pytest.raises(CompileError, match="no function 'g'; it defines 'f'"):
        link(MULTIPLY_ADD).address("g")


# The cache on disk


SCRIPT = f"""
import ctypes, sys
from tapejit.compiler.link import link
linked = link({MULTIPLY_ADD!r})
function = ctypes.CFUNCTYPE(*[ctypes.c_double] * 4)(linked.address("f"))
print(linked.was_cached, function(2.0, 3.0, 4.0))
if "pin" in sys.argv:
    linked.pin()
"""


def run(*arguments):
    return [sys.executable, "-c", SCRIPT, *arguments]


def test_next_process_loads():
    answers = [subprocess.run(run(pin), capture_output=True, text=True, check=True) for pin in ("", "pin")]
    assert [answer.stdout.split() for answer in answers] == [["False", "10.0"], ["True", "10.0"]]
    assert [answer.stderr for answer in answers] == ["", ""]


def test_processes_at_once():
    processes = [subprocess.Popen(run(), stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].split()[1] for process in processes] == ["10.0"] * 3


def test_freed_code_is_loaded_again(folder):
    first = link(MULTIPLY_ADD)
    del first
    again = link(MULTIPLY_ADD)
    assert again.was_cached
    assert call(again, 2.0, 3.0, 4.0) == 10.0
    assert [path.suffix for path in folder.iterdir()] == [".o"]  # no temporary files


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:40],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
    ],
)
def test_damaged_entry_is_rebuilt(folder, damage):
    link(MULTIPLY_ADD)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    linked = link(MULTIPLY_ADD)
    assert not linked.was_cached
    assert call(linked, 2.0, 3.0, 4.0) == 10.0
    assert linking._unpack(path.stem, path.read_bytes()) is not None


def test_entry_of_another_key_is_not_loaded(folder):
    link(adding(1.0))
    (path,) = folder.iterdir()
    data = path.read_bytes()
    other = linking._Options(False, 3, True, False).key(adding(2.0))
    (folder / f"{other}.o").write_bytes(data)
    assert call(link(adding(2.0)), 1.0) == 3.0


def test_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file in the place of the folder")
    monkeypatch.setenv("TAPEJIT_CACHE_DIR", str(tmp_path / "file"))
    assert call(link(MULTIPLY_ADD), 2.0, 3.0, 4.0) == 10.0


def test_read_only_folder_is_read(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    link(adding(1.0))
    monkeypatch.setattr(linking.tempfile, "mkstemp", refuse)  # instead of permissions, which do not bind root
    monkeypatch.setattr(linking.os, "utime", refuse)
    assert link(adding(1.0)).was_cached
    for _ in range(2):
        linked = link(adding(2.0))
        assert not linked.was_cached
        assert call(linked, 1.0) == 3.0
        del linked
    assert len(list(folder.iterdir())) == 1


def test_files_used_longest_ago_are_removed(folder):
    for constant in range(8):
        link(adding(constant))
    files = sorted(folder.iterdir())
    for age, path in enumerate(files):
        os.utime(path, (1e9 - age, 1e9 - age))
    size = max(path.stat().st_size for path in files)
    linking._prune(folder, 3 * size)
    assert sorted(folder.iterdir()) == files[:3]


def test_reading_counts_as_use(folder):
    link(MULTIPLY_ADD)
    (path,) = folder.iterdir()
    os.utime(path, (1e9, 1e9))
    link(MULTIPLY_ADD)
    assert path.stat().st_mtime > time.time() - 100


def test_limit_holds_while_writing(folder, monkeypatch):
    link(adding(0.5))
    (path,) = folder.iterdir()
    limit = 4 * path.stat().st_size
    monkeypatch.setattr(linking, "CACHE_LIMIT", limit)
    for constant in range(1, 12):
        link(adding(constant))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= limit


# Memory


def test_code_is_freed_with_the_last_reference():
    linked = link(MULTIPLY_ADD)
    tracker = linked._tracker
    loop = [linked]
    loop.append(loop)
    del linked
    assert not tracker.closed
    del loop
    gc.collect()
    assert tracker.closed


def test_linkers_are_replaced_and_closed():
    before = len(linking._LOADERS)
    kept = link(MULTIPLY_ADD)
    for constant in range(2 * linking._Loader.CAPACITY):
        link(adding(constant % 4))
    assert len(linking._LOADERS) <= before + 2  # that of `kept` and the current one
    assert call(kept, 2.0, 3.0, 4.0) == 10.0


def test_pinned_code_stays(monkeypatch):
    monkeypatch.setattr(linking, "_PINNED", [])
    linked = link(MULTIPLY_ADD)
    address, alive = linked.address("f"), weakref.ref(linked)
    assert linked.pin() is linked.pin()
    del linked
    gc.collect()
    assert alive() is not None
    assert BINARY(address)(2.0, 3.0, 4.0) == 10.0
    assert len(linking._PINNED) == 1


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_memory_does_not_grow():
    def mapped():
        with open("/proc/self/maps") as maps:
            return len(maps.readlines())

    lines = [f"  %v{i + 1} = fadd double %v{i}, {float(i)}" for i in range(300)]
    text = "define double @f(double %v0) {\n" + "\n".join(lines) + "\n  ret double %v300\n}\n"
    link(text)
    before = mapped()
    kept = [link(f"; {i}\n{adding(i)}", level=0) for i in range(20)]
    assert mapped() > before
    del kept
    for _ in range(200):
        assert link(text).was_cached
    assert mapped() <= before + 5


# Threads


def test_threads(rng):
    failures = []

    def work(seed):
        for i in range(20):
            constant = float((seed + i) % 7)
            if call(link(adding(constant), level=1), 1.0) != 1.0 + constant:
                failures.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# Compile time


def test_estimate_grows():
    sizes = [10, 100, 1000, 10_000]
    for options in ({"level": 0}, {"level": 1}, {"vectorise": False}, {}):
        seconds = [estimate(size, **options) for size in sizes]
        assert seconds == sorted(seconds)
    assert estimate(1000, level=0) < estimate(1000, vectorise=False) < estimate(1000)


@pytest.mark.parametrize("vectorise", [False, True])
def test_estimate_is_of_the_right_size(vectorise):
    lines = [f"  %v{i + 1} = f{('add', 'mul')[i % 2]} double %v{i}, %v{i // 2}" for i in range(2000)]
    text = "define double @f(double %v0) {\n" + "\n".join(lines) + "\n  ret double %v2000\n}\n"
    assert link(text, vectorise=vectorise).seconds < 20 * estimate(2000, vectorise=vectorise)
