"""The activity analysis: what becomes active in compiled code, and above all what does not.

Each case is a function with the types that its variables must have in its active version: ``active``, or a dtype for what stays plain.
"""

import math

import numpy as np
import pytest
from numba import njit, types
from numpy.testing import assert_array_equal

import tapejit as tj
from tapejit.calls import Call
from tapejit.recording.native.active import is_active
from tapejit.recording.native.versions import active_version

X = np.array([0.5, 1.5, 2.5, 3.5])
T = np.array([2.0, 3.0, 5.0, 7.0])
MATRIX = np.array([[4.0, 1.0], [1.0, 3.0]])
CASES = []


def case(*args, argnums=0, **expected):
    """A function, the arguments it is differentiated at, and the types its variables must have."""

    def register(function):
        is_slow = "linear_algebra" in function.__name__  # Numba takes long to compile it
        marks = pytest.mark.slow if is_slow else ()
        CASES.append(pytest.param(njit(function), args, argnums, expected, id=function.__name__, marks=marks))
        return function

    return register


def dtype_of(kind):
    """``active``, or the dtype of what a variable holds."""
    if is_active(kind):
        return "active"
    while hasattr(kind, "dtype"):
        kind = kind.dtype
    return str(types.unliteral(kind))


def types_of(f):
    """The dtypes of each variable in the active version of a function; more than one where its parts differ."""
    (compiled,) = active_version(f).overloads.values()
    found = {}
    for name, kind in compiled.type_annotation.typemap.items():
        base = name.removeprefix("arg.").split(".")[0]
        if not base.startswith("$") and ".plain" not in name:
            found.setdefault(base, set()).add(dtype_of(kind))
    return found


def copied(args):
    return [arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args]


@pytest.mark.parametrize(("f", "args", "argnums", "expected"), CASES)
def test_variables_have_the_types_they_need(f, args, argnums, expected):
    plain, active = copied(args), copied(args)
    value = tj.vjp(f, argnums)(*active)[0]
    assert_array_equal(value, f(*plain))
    for one, two in zip(plain, active, strict=True):
        assert_array_equal(one, two)
    found = types_of(f)
    assert {name: found[name] for name in expected} == {name: {kind} for name, kind in expected.items()}


# Work arrays, tables and integers.


@case(X, x="active", work="active", table="float64", counts="int64", flags="bool")
def only_the_work_array(x):
    work = np.zeros(4)
    table = np.linspace(0.0, 1.0, 4)
    counts = np.zeros(4, np.int64)
    flags = np.zeros(4, np.bool_)
    for i in range(4):
        work[i] = x[i] * table[i]
        counts[i] += i
        flags[i] = x[i] > 1.0
    return work[0] + work[3] + counts[2] + flags[1]


@case(X, T, t="float64", first="float64", x="active")
def argument_that_is_only_read(x, t):
    first = t[0]
    return x[0] * first + x[1] * t[1]


@case(X, T, t="float64", total="float64")
def argument_overwritten_with_plain_numbers(x, t):
    total = 0.0
    for i in range(4):
        t[i] = 2.0 * t[i]
        total += t[i]
    return x[0] * total


@case(X, T, t="active")
def argument_overwritten_with_active_numbers(x, t):
    t[1] = x[0]
    return t[0] * t[1]


@case(X, T, argnums=1, x="float64", t="active", y="float64")
def the_other_argument(x, t):
    y = x * 2.0
    return y[0] * t[0]


@case(X, np.arange(4), k="int64", order="int64", largest="int64")
def integers(x, k):
    order = np.zeros(4, np.int64)
    largest = 0
    for i in range(4):
        order[i] = k[i] + int(x[i])
        if x[i] > x[largest]:
            largest = i
    return x[largest] * order[3]


@case(X, n="int64", share="float64", pair="float64")
def scalars(x):
    n = x.size
    share = 1.0 / n
    pair = (share, 2.0)
    return x[0] * share * pair[1]


@case(X, work="active")
def active_in_a_later_iteration(x):
    work = np.ones(4)
    total = 0.0
    for i in range(3):
        total += work[i] * 2.0
        work[i + 1] = total
        total = total * x[i]
    return total


@case(X, a="active", b="active", c="float64")
def swapped(x):
    a, b, c = np.zeros(2), np.zeros(2), np.ones(2)
    for i in range(4):
        a[0] = x[i] * c[0]
        a, b = b, a
    return a[0] * b[0]


@case(X, a="active", b="active", c="active", d="active")
def rotated(x):
    a, b, c, d = np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2)
    for _ in range(5):
        a, b, c, d = b, c, d, a
    d[0] = x[0]
    return a[0] + 2.0 * b[0] + 3.0 * c[0] + 4.0 * d[0]


@case(X, True, chosen="active", a="active", b="active", c="float64")
def either_of_two(x, flag):
    a, b, c = np.zeros(2), np.zeros(2), np.ones(2)
    chosen = a if flag else b
    chosen[0] = x[0] * c[1]
    return a[0] + b[0]


# Views share what they show; copies do not.


@case(X, m="active", row="active", column="active", block="active", other="float64")
def views(x):
    m, other = np.zeros((3, 4)), np.ones((3, 4))
    row = m[1]
    column = m[:, 2]
    block = m.T[1:, ::2]
    block[0, 0] = x[0]
    return row[1] + column[0] + other[1, 1] * m[0, 1]


@case(X, 1, m="active", column="active")
def view_of_one_column(x, i):
    m = np.zeros((3, 4))
    column = m[i:, i]
    column[0] = x[0]
    return m[1, 1]


@case(X, 1, work="active", part="active")
def view_of_a_part(x, i):
    work = np.zeros(4)
    part = work[i : i + 2]
    part[0] = x[0]
    return work[1]


@case(X, table="float64", copy="active", scaled="active", part="active")
def copies(x):
    table = np.ones(4)
    copy, scaled = table.copy(), 2.0 * table
    part = table[1:].copy()
    copy[0], scaled[0], part[0] = x[0], x[1], x[2]
    return copy[0] * scaled[0] * part[0] * table[0]


@case(X, a="active", b="active", items="active")
def in_a_list(x):
    a, b = np.zeros(2), np.zeros(2)
    items = [a, b]
    items[1][0] = x[0]
    return a[0] + b[0]


@case(X, a="active", b="float64")
def in_a_tuple(x):
    a, b = np.zeros(2), np.ones(2)
    pair = (a, b)
    pair[0][0] = x[0]
    return a[0] * b[0]


# NumPy's functions.


@case(X, MATRIX, a="float64", inverse="float64", solution="float64", product="float64")
def linear_algebra_of_plain_data(x, a):
    inverse = np.linalg.inv(a)
    solution = np.linalg.solve(a, np.ones(2))
    product = a @ a
    return x[0] * inverse[0, 0] + x[1] * solution[1] + x[3] * product[1, 1]


@case(X, MATRIX, a="float64", lengths="float64", q="float64", s="float64")
def linear_algebra_that_is_not_differentiated(x, a):
    lengths, _ = np.linalg.eigh(a)
    q, _ = np.linalg.qr(a)
    _, s, _ = np.linalg.svd(a)
    return x[0] * lengths[0] + x[1] * q[0, 0] * s[1]


@case(X, T, t="float64", ordered="float64", order="int64", sums="float64", mean="float64")
def functions_of_plain_data(x, t):
    ordered = np.sort(t)
    order = np.argsort(t)
    sums = np.cumsum(t)
    mean = t.mean()
    return x[0] * ordered[0] + x[order[1]] * sums[2] * mean


@case(X, T, t="float64", positive="float64", chosen="float64")
def selections_of_plain_data(x, t):
    positive = t[t > 2.5]
    chosen = t[np.array([0, 2])]
    return x[0] * positive[0] + x[1] * chosen[0]


@case(X, T, t="float64", where="float64", grid="float64", place="int64")
def tables(x, t):
    grid = np.linspace(0.0, 4.0, 5)
    where = np.where(t > 3.0, t, 0.0)
    place = np.searchsorted(grid, t[0])
    return x[0] * where[2] + np.interp(x[1], grid, grid * grid) * place


@case(X, shape="int64", ones="active", like="active", full="active")
def made_like_active_arrays(x):
    shape = x.shape
    ones = np.ones(shape)
    like = np.zeros_like(x)
    full = np.full(shape, x[1])
    ones[0] = x[0]
    return ones[0] + like[0] + full[0]


# Callees.


@njit
def fill(target, number):
    for i in range(target.size):
        target[i] = number


@njit
def first_of(a, b, n):
    return a if n > 0 else b


@njit
def workspace(n):
    buffer = np.zeros(n)
    return buffer, np.ones(n)


@njit
def row_of(m, i):
    return m[i]


@njit
def rotate_and_store(a, b, c, d, number):
    for _ in range(7):
        a, b, c, d = b, c, d, a
    a[0] = number


@njit
def countdown(target, other, number, n):
    if n == 0:
        target[0] = number
        return 0.0
    return countdown(other, target, number, n - 1)


@case(X, work="active", plain="float64")
def callee_that_writes(x):
    work, plain = np.zeros(2), np.zeros(2)
    fill(plain, 3.0)
    fill(work, x[0])
    return work[0] * plain[0]


@case(X, a="active", b="active", c="float64", d="float64", one="active", two="float64")
def callee_that_returns_an_argument(x):
    a, b, c, d = np.zeros(2), np.zeros(2), np.ones(2), np.ones(2)
    one = first_of(a, b, 1)
    two = first_of(c, d, 0)
    one[0] = x[0]
    return a[0] + b[0] * two[0]


@case(X, m="active", row="active", other="float64")
def callee_that_returns_a_view(x):
    m, other = np.zeros((2, 2)), np.ones((2, 2))
    row = row_of(m, 1)
    row[0] = x[0]
    return m[1, 0] * row_of(other, 0)[0]


@case(X, buffer="active", plain="float64")
def callee_that_allocates(x):
    buffer, rest = workspace(3)
    plain, _ = workspace(3)
    buffer[0] = x[0] * rest[1] * plain[0]
    return buffer[0]


@case(X, a="active", b="active", c="active", d="active")
def callee_that_needs_several_rounds(x):
    a, b, c, d = np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2)
    rotate_and_store(a, b, c, d, x[0])
    return a[0] + 2.0 * b[0] + 3.0 * c[0] + 4.0 * d[0]


@case(X, a="active", b="active", c="float64", d="float64")
def recursive_callee(x):
    a, b, c, d = np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2)
    total = countdown(a, b, x[0], 3) + countdown(c, d, 2.0, 2)
    return total + a[0] + 2.0 * b[0] + c[0]


def test_versions_are_made_for_what_is_active_only():
    """One callee for active and plain arguments in turn: two active versions, and the user's own for plain arguments."""

    @njit
    def callee(a, b):
        return a[0] * b

    @njit
    def f(x, t):
        return callee(x, 2.0) + callee(x, x[1]) + callee(t, x[0]) + callee(t, 3.0)

    assert_array_equal(tj.grad(f)(X, T), [2.0 + X[1] + T[0], X[0], 0.0, 0.0])
    versions = {tuple(map(dtype_of, args)) for args in active_version(callee).overloads}
    assert versions == {("active", "float64"), ("active", "active"), ("float64", "active")}
    assert [tuple(map(dtype_of, args)) for args in callee.overloads] == [("float64", "float64")]


def test_nothing_is_recorded_for_plain_data():
    """The tape holds what depends on the inputs, whatever else the function computes."""

    @njit
    def f(x, a):
        total = 0.0
        for i in range(1000):
            total += math.sin(i * a[i % 4])
        weights = np.exp(-a)
        for i in range(4):
            weights[i] /= total
        return x[0] * weights[0]

    tape = Call(f, (X, T), (0,)).tape  # what a transform records; in tj.record, plain floats are parameters
    assert tape.n_slots <= 1 + X.size + 2  # the zero, the inputs, one weight and one product
    assert tj.grad(f)(X, T)[0] == f(np.array([1.0]), T)


def test_plain_numbers_in_active_arrays_are_not_recorded():
    @njit
    def f(x):
        work = np.zeros(100)
        for i in range(1, 100):
            work[i] = work[i - 1] * 1.01 + 0.5
        work[99] *= x[0]
        return work[99] + work[98]

    assert tj.record(f, X).tape.n_slots <= 1 + X.size + 4


def test_arguments_that_are_not_changed_are_not_copied():
    """Plain data goes to compiled code as it is: the memory itself."""

    @njit
    def f(x, t):
        return x[0] * t[0] + t.ctypes.data * 0.0

    t = T.copy()
    assert tj.grad(f)(X, t)[0] == 2.0
    (args,) = active_version(f).overloads
    assert isinstance(args[1], types.Array) and args[1].dtype == types.float64
