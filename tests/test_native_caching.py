"""Active versions on disk: found again in another process, never taken for the plain function, compiled anew when what they depend on changes."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import tapejit as tj
from tapejit.recording.native.drivers import _drivers
from tapejit.sweeps.kernel import cache_directory

MODEL = """
import numba
import numpy as np
import parts
import parts.inner
from parts import CONSTANT, callee

SCALE = 2.0
TABLE = np.array([1.0, 2.0])

@numba.njit
def own_callee(x):
    return SCALE * x

@numba.njit(cache=True)
def with_callee(x):
    return callee(x) * x

@numba.njit(cache=True)
def with_callee_of_callee(x):
    return own_callee(x) * x

@numba.njit(cache=True)
def with_attribute(x):
    return parts.callee(x) * parts.CONSTANT * x

@numba.njit(cache=True)
def with_submodule(x):
    return parts.inner.callee(x) * x

@numba.njit(cache=True)
def with_global(x):
    return SCALE * CONSTANT * x * x

@numba.njit(cache=True)
def with_global_array(x):
    return TABLE[1] * x * x

@numba.njit(cache=True)
def with_default(x, scale=2.0):
    return scale * x * x

def made(scale, module):
    @numba.njit(cache=True)
    def with_closure(x):
        return scale * x * x

    @numba.njit(cache=True)
    def with_module(x):
        return module.callee(x) * x

    return with_closure, with_module

with_closure, with_module = made(2.0, parts.inner)

@numba.njit(cache=True, locals={"y": numba.float64})
def with_declared_variable(x):
    y = 2.5
    return y * x * x

@numba.njit(cache=True)
def powers(x, p=1.0, q=1.0):
    return p * x * x + q * x

@numba.njit
def cube(x):
    return x * x * x

@numba.njit
def square(x):
    return x * x

@numba.njit(cache=True)
def applied(first, second, x):
    return first(second(x) + 1.0)

@numba.njit(cache=True)
def total(x):
    work = np.zeros(x.size)
    for i in range(x.size):
        work[i] = x[i] * x[i]
    return work.sum()
"""
PARTS = """
import numba

CONSTANT = 1.0

@numba.njit
def callee(x):
    return 2.0 * x
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache that has the kernels, and a folder of modules."""
    for kernels in cache_directory().glob("*"):
        if kernels.name != "compiled":
            (tmp_path / "cache" / "tapejit").mkdir(parents=True, exist_ok=True)
            (tmp_path / "cache" / "tapejit" / kernels.name).symlink_to(kernels.resolve())
    monkeypatch.setenv("TAPEJIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text(PARTS)
    (tmp_path / "parts" / "inner.py").write_text(PARTS)
    yield tmp_path
    forget()


def forget():
    for name in ("model", "parts", "parts.inner"):
        sys.modules.pop(name, None)


def model():
    """The modules as they are now, as a new process would read them."""
    forget()
    importlib.invalidate_caches()
    # Numba takes the source of a function from here, and Python its bytecode from a file that is younger than a second.
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        return importlib.import_module("model")
    finally:
        sys.dont_write_bytecode = before


def entries():
    return sorted((cache_directory() / "compiled").rglob("*.nbc"))


def n_loaded(f):
    """How many drivers of a function came from disk."""
    return sum(sum(driver.dispatcher.stats.cache_hits.values()) for driver in _drivers[f].values())


EDITS = {
    "callee in another module": ("with_callee", "parts/__init__.py", "2.0 * x", "3.0 * x"),
    "global of a callee": ("with_callee_of_callee", "model.py", "SCALE = 2.0", "SCALE = 3.0"),
    "callee of a callee": ("with_callee_of_callee", "model.py", "return SCALE * x", "return 3.0 * x"),
    "attribute of a module": ("with_attribute", "parts/__init__.py", "CONSTANT = 1.0", "CONSTANT = 1.5"),
    "function of a module": ("with_attribute", "parts/__init__.py", "2.0 * x", "3.0 * x"),
    "function of a submodule": ("with_submodule", "parts/inner.py", "2.0 * x", "3.0 * x"),
    "global number": ("with_global", "model.py", "SCALE = 2.0", "SCALE = 3.0"),
    "global number of another module": ("with_global", "parts/__init__.py", "CONSTANT = 1.0", "CONSTANT = 1.5"),
    "global array": ("with_global_array", "model.py", "np.array([1.0, 2.0])", "np.array([1.0, 3.0])"),
    "default argument": ("with_default", "model.py", "scale=2.0", "scale=3.0"),
    "number in a closure": ("with_closure", "model.py", "made(2.0", "made(3.0"),
    "module in a closure": ("with_module", "parts/inner.py", "2.0 * x", "3.0 * x"),
    "operation": ("with_default", "model.py", "scale * x * x", "1.5 * scale * x * x"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_was_edited_is_compiled_anew(folder, edit):
    name, path, old, new = EDITS[edit]
    first = getattr(model(), name)
    before = tj.grad(first)(1.0)
    assert n_loaded(first) == 0
    # Nothing changed: from disk.
    again = getattr(model(), name)
    assert tj.grad(again)(1.0) == before
    # Edited, and back again.
    file = folder / path
    text = file.read_text()
    assert text.count(old) == 1 or edit == "operation"
    file.write_text(text.replace(old, new))
    after = tj.grad(getattr(model(), name))(1.0)
    assert after == pytest.approx(before * 1.5)
    file.write_text(text)
    assert tj.grad(getattr(model(), name))(1.0) == before
    assert n_loaded(again) == 1


def test_keyword_arguments_are_told_apart(folder):
    f = model().powers
    assert tj.grad(f)(3.0, p=5.0) == 31.0
    assert tj.grad(f)(3.0, q=5.0) == 11.0
    assert tj.grad(f)(3.0, 5.0) == 31.0
    assert tj.grad(f)(3.0, q=2.0, p=5.0) == 32.0
    assert tj.grad(f)(3.0, p=5.0, q=2.0) == 32.0


def test_functions_as_arguments_are_told_apart(folder):
    module = model()
    assert tj.grad(module.applied, 2)(module.cube, module.square, 2.0) == 3.0 * 25.0 * 4.0
    assert tj.grad(module.applied, 2)(module.square, module.cube, 2.0) == 2.0 * 9.0 * 12.0


def test_types_of_arguments_are_told_apart(folder):
    x = np.arange(6.0)
    for _ in range(2):
        f = model().total
        for given in (x, x[::2], x[::-1]):
            assert_array_equal(tj.grad(f)(given), 2.0 * given)
        read_only = x.copy()
        read_only.flags.writeable = False
        assert_array_equal(tj.grad(f)(read_only), 2.0 * x)
    assert n_loaded(f) == 3  # two of the four have one type


def test_edited_default_does_not_count_where_the_argument_is_given(folder):
    assert tj.grad(model().with_default)(1.0, 5.0) == 10.0
    assert tj.grad(model().with_default)(1.0) == 4.0


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "missing"])
def test_damaged_entry_is_compiled_anew(folder, suffix, damage):
    assert tj.grad(model().with_default)(1.0) == 4.0
    (file,) = (cache_directory() / "compiled").rglob(f"*.{suffix}")
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "garbage": b"\x80garbage" * 9}[damage])
    assert tj.grad(model().with_default)(1.0) == 4.0
    # And it is whole again.
    last = model().with_default
    assert tj.grad(last)(1.0) == 4.0
    assert n_loaded(last) == 1


def test_folder_that_cannot_be_written(folder):
    (cache_directory() / "compiled").write_text("a file in the place of the folder")
    assert tj.grad(model().with_default)(1.0) == 4.0
    assert tj.grad(model().total)(np.ones(2)).tolist() == [2.0, 2.0]


def test_entries_that_can_be_read_but_not_written(folder):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    assert tj.grad(model().with_default)(1.0) == 4.0
    folders = [
        cache_directory() / "compiled",
        *(path for path in (cache_directory() / "compiled").rglob("*") if path.is_dir()),
    ]
    for path in folders:
        path.chmod(0o555)
    try:
        assert tj.grad(model().with_default)(1.0) == 4.0
        assert tj.grad(model().total)(np.ones(2)).tolist() == [2.0, 2.0]
    finally:
        for path in folders:
            path.chmod(0o755)


def test_functions_that_do_not_ask_for_it_leave_nothing_on_disk(folder):
    module = model()
    assert tj.grad(module.own_callee)(1.0) == 2.0
    assert not entries()
    assert tj.grad(module.with_callee_of_callee)(1.0) == 4.0
    assert len(entries()) == 1


# Two processes.

SCRIPT = """
import json
import numba
import numpy as np
import tapejit as tj
from tapejit.recording.native.drivers import _drivers

kink = tj.primitive("kink_of_mine", "{value}", "{partial}")

@numba.njit(cache=True)
def inner(x, table):
    total = 0.0
    for i in range(x.size):
        total += x[i] * table[i]
    return total

@numba.njit(cache=True)
def outer(x, table):
    work = np.empty(x.size)
    for i in range(x.size):
        work[i] = kink(x[i]) + inner(x, table)
    return inner(table, table) * inner(work, x)

if __name__ == "__main__":
    x, table = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    plain = outer(x, table), inner(x, table)
    value, gradient = tj.value_and_grad(outer)(x, table)
    by_table = tj.grad(outer, 1)(x, table)
    drivers = _drivers[outer].values()
    print(json.dumps({{
        "plain": plain, "again": [outer(x, table), inner(x, table)], "value": value, "gradient": gradient.tolist(),
        "by_table": by_table.tolist(), "inner": tj.grad(inner)(x, table).tolist(),
        "loaded": sum(sum(driver.dispatcher.stats.cache_hits.values()) for driver in drivers),
        "loaded_plain": sum(outer.stats.cache_hits.values()),
    }}))
"""


def run(folder, value="x * x", partial="x + x"):
    script = folder / "script.py"
    script.write_text(SCRIPT.format(value=value, partial=partial))
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=folder, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def expected(kink, slope):
    """What the script must print, computed in another way."""
    x, table = np.array([1.0, 2.0]), np.array([3.0, 5.0])

    def f(x, table):
        return (table @ table) * ((kink(x) + x @ table) @ x)

    by_x = (table @ table) * (slope(x) * x + kink(x) + x @ table + table * x.sum())
    by_table = 2.0 * table * (f(x, table) / (table @ table)) + (table @ table) * x * x.sum()
    return f(x, table), by_x, by_table


def test_plain_code_and_active_versions_are_told_apart_in_two_processes(folder):
    value, by_x, by_table = expected(lambda x: x * x, lambda x: x + x)
    for number in range(2):
        found = run(folder)
        assert found["plain"] == found["again"] == [value, 13.0]
        assert found["value"] == value
        assert_array_equal(found["gradient"], by_x)
        assert_array_equal(found["by_table"], by_table)
        assert_array_equal(found["inner"], [3.0, 5.0])
        assert found["loaded_plain"] == number
    # Another formula of the user's primitive.
    _, by_x, by_table = expected(lambda x: x * x * x, lambda x: 3.0 * x * x)
    found = run(folder, "x * x * x", "3 * (x * x)")
    assert_array_equal(found["gradient"], by_x)
    assert_array_equal(found["by_table"], by_table)


def test_the_second_process_loads_what_the_first_compiled(folder):
    (pathlib.Path(folder) / "first.py").write_text(
        "import numpy as np, tapejit as tj, model\n"
        "from tapejit.recording.native.drivers import _drivers\n"
        "assert tj.grad(model.total)(np.array([1.0, 4.0])).tolist() == [2.0, 8.0]\n"
        "print(sum(sum(d.dispatcher.stats.cache_hits.values()) for d in _drivers[model.total].values()))\n"
    )
    for number in range(2):
        found = subprocess.run([sys.executable, "first.py"], capture_output=True, text=True, cwd=folder, check=False)
        assert (found.stdout, found.stderr) == (f"{number}\n", "")
