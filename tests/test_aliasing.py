"""Views alias as NumPy's do, copies do not, and nothing that happens after an operation changes what it has read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy_agreement import agrees

import tapejit as tj

X = np.array([[1.5, 2.5, 0.5], [3.5, -1.5, 0.7]])

# Each of them in NumPy a view or a copy: we need not know, only behave alike.
VIEWS = {
    "x[1:]": lambda x: x[1:],
    "x[::-1]": lambda x: x[::-1],
    "x[:, 1]": lambda x: x[:, 1],
    "x[0]": lambda x: x[0],
    "x[...]": lambda x: x[...],
    "x[None]": lambda x: x[None],
    "x[[0, 1]]": lambda x: x[[0, 1]],
    "x[mask]": lambda x: x[np.array([True, False])],
    "T": lambda x: x.T,
    "reshape": lambda x: x.reshape(-1),
    "reshape copies": lambda x: x.T.reshape(-1),
    "ravel": lambda x: x.ravel(),
    "ravel copies": lambda x: x.ravel(order="F"),
    "flatten": lambda x: x.flatten(),
    "swapaxes": lambda x: np.swapaxes(x, 0, 1),
    "moveaxis": lambda x: np.moveaxis(x, 0, 1),
    "expand_dims": lambda x: np.expand_dims(x, 1),
    "squeeze": lambda x: np.squeeze(x[:1]),
    "flip": lambda x: np.flip(x, 1),
    "rot90": np.rot90,
    "split": lambda x: np.split(x, 2)[1],
    "atleast_3d": np.atleast_3d,
    "copy": np.copy,
    "x.copy": lambda x: x.copy(),
    "x.astype": lambda x: x.astype(float),
    "x.astype without copy": lambda x: x.astype(float, copy=False),
    "np.array": lambda x: np.array(x, like=x) if isinstance(x, tj.Array) else np.array(x),
    "np.asarray": lambda x: np.asarray(x, like=x) if isinstance(x, tj.Array) else np.asarray(x),
    "concatenate": lambda x: np.concatenate([x]),
    "stack": lambda x: np.stack([x]),
    "roll": lambda x: np.roll(x, 1),
    "tile": lambda x: np.tile(x, 1),
    "repeat": lambda x: np.repeat(x, 1),
    "tril": lambda x: np.tril(x, 5),
    "take": lambda x: np.take(x, [0, 1], axis=0),
    "where": lambda x: np.where(True, x, 0.0),
    "clip": lambda x: np.clip(x, None, None),
    "nan_to_num": np.nan_to_num,
    "nan_to_num in place": lambda x: np.nan_to_num(x, copy=False),
    "+x": lambda x: +x,
    "x * 1": lambda x: x * 1.0,
    "x ** 1": lambda x: x**1,
    "sum of an axis of one": lambda x: x[:, :1].sum(axis=1),
    "max of an axis of one": lambda x: x[:, :1].max(axis=1),
    "mean": lambda x: x[:, :1].mean(axis=1),
    "cumsum of one": lambda x: x[:, :1].cumsum(axis=1),
    "sum over no axes": lambda x: x.sum(axis=()),
    "sort": lambda x: np.sort(x[:, :1]),
    "real": lambda x: x.real,
    "np.real": np.real,
    "conj": lambda x: x.conj(),
    "broadcast_arrays": lambda x: np.broadcast_arrays(x, x)[0].copy(),
    "diff of order 0": lambda x: np.diff(x, n=0),
    "pad by nothing": lambda x: np.pad(x, 0),
    "iteration": lambda x: next(iter(x)),
}
each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)


@each_view
def test_writing_to_a_view_writes_to_the_array(view):
    def f(x):
        y = x * 2.0
        z = view(y)
        z[..., 0] = x[0, 0] * x[1, 1]
        return y, z

    agrees(f, X)


@each_view
def test_writing_to_the_array_shows_in_the_view(view):
    def f(x):
        y = x * 2.0
        z = view(y)
        y[0, 0] = x[0, 1] * x[1, 1]
        y[1] += 1.0
        y[:, 2] = [7.0, x[0, 0]]
        return y, z

    agrees(f, X)


@each_view
def test_the_whole_array_anew_shows_in_the_view(view):
    def f(x):
        y = x * 2.0
        z = view(y)
        y[...] = x * 3.0
        y[:] = y + 1.0
        y *= x
        return y, z

    agrees(f, X)


@each_view
def test_writing_to_an_input(view):
    def f(x):
        x = x if isinstance(x, tj.Array) else x.copy()
        z = view(x)
        z[..., 0] = 5.0
        x[1, 1] *= 2.0
        return x * x, z

    agrees(f, X)


IN_PLACE = {
    "+=": "y += other",
    "-=": "y -= other",
    "*=": "y *= other",
    "/=": "y /= other",
    "**=": "y **= 2",
    "//=": "y //= other",
    "%=": "y %= other",
}


@pytest.mark.parametrize("statement", IN_PLACE.values(), ids=IN_PLACE)
def test_an_operation_in_place_shows_in_every_view(statement):
    def f(x):
        whole = x * 1.0
        row, y = whole[0], whole[:, 1:]
        names = {"y": y, "other": x[1, 2] * 1.37}
        exec(statement, names)
        assert names["y"] is y
        return whole, row, y

    agrees(f, X, moves=1e-3, tolerance=1e-15)


def test_an_operation_in_place_with_matmul():
    def f(x):
        y = x[:, :2] * 1.0
        z = y.T
        y @= x[:, 1:]
        return y, z

    agrees(f, X, tolerance=1e-15)


OVERLAPS = {
    "forward": lambda y: y.__setitem__(slice(1, None), y[:-1]),
    "backward": lambda y: y.__setitem__(slice(None, -1), y[1:]),
    "reversed": lambda y: y.__setitem__(slice(None), y[::-1]),
    "add forward": lambda y: y[1:].__iadd__(y[:-1]),
    "add backward": lambda y: y[:-1].__iadd__(y[1:]),
    "add reversed": lambda y: y.__iadd__(y[::-1]),
    "multiply by itself": lambda y: y.__imul__(y),
    "out": lambda y: np.multiply(y[:-1], y[1:], out=y[1:]),
    "out of a sum": lambda y: np.sum(y[None], axis=0, out=y[::-1]),
    "swap": lambda y: swap(y),
    "fancy": lambda y: y.__setitem__([0, 1, 2], y[[1, 2, 0]]),
    "fancy repeated": lambda y: y.__setitem__([0, 0, 1], y[[1, 2, 0]]),
    "fancy add": lambda y: add_fancy(y),
    "add.at": lambda y: np.add.at(y, [0, 0, 1], y[1:4]),
    "add.at of views": lambda y: np.add.at(y[::2], [0, 0, 1], y[1:4]),
    "copyto": lambda y: np.copyto(y[1:], y[:-1]),
    "fill": lambda y: y.fill(y[2] * 2.0) if isinstance(y, tj.Array) else y.fill(float(y[2]) * 2.0),
}


def swap(y):
    y[0], y[1] = y[1], y[0]


def add_fancy(y):
    y[[0, 0, 2]] += y[[1, 2, 0]]


@pytest.mark.parametrize("change", OVERLAPS.values(), ids=OVERLAPS)
def test_overlapping_reads_and_writes(change):
    def f(x):
        y = x**2
        z = y[1:]
        change(y)
        before = y * x
        change(y)
        return y, z, before

    agrees(f, np.array([1.5, 2.5, 0.5, 0.8]), tolerance=4e-16)


def test_what_was_read_before_an_assignment_stays():
    def f(x):
        y = x * 1.0
        y[0] = x[1]  # a table from here on
        first = np.sin(y)
        total = np.sum(y * y)
        product = np.dot(y, x)
        scan = np.cumsum(y)
        chosen = np.where(x > 1, y, 0.0)
        y[1] = 9.0
        y[:] = y[::-1]
        y *= 0.0
        return first, total, product, scan, chosen, y

    agrees(f, np.array([1.5, 2.5, 0.5]), tolerance=1e-15)


def test_a_loop_that_writes_step_by_step():
    def f(x):
        y = np.zeros((6, 3), like=x) if isinstance(x, tj.Array) else np.zeros((6, 3))
        y[0] = x
        for i in range(5):
            y[i + 1] = y[i] + 0.1 * np.sin(y[i, ::-1])
            y[i, 0] *= 0.5
        return y

    agrees(f, np.array([1.5, 2.5, 0.5]), tolerance=1e-15)


def test_a_scalar_taken_from_an_array_is_no_view():
    def f(x):
        y = x * 1.0
        s = y[0]
        y[0] = 5.0
        return s * y[0] + s

    agrees(f, np.array([1.5, 2.5]))


def test_shares_memory():
    with tj.Tape() as tape:
        x = tape.input(np.arange(6.0))
        assert np.shares_memory(x[:4], x[3:]) and not np.shares_memory(x[:3], x[3:])
        assert np.may_share_memory(x, x[1:]) and not np.shares_memory(x, x.copy())
        assert not np.shares_memory(x, x * 1.0) and not np.shares_memory(x, np.ones(3))


# Passive arrays that change after use.


def gradients_with_data(f, x):
    """The gradient from each front door, and of a replay."""
    yield tj.grad(f)(x)
    yield tj.vjp(f)(x)[1](1.0)
    yield tj.jacobian(f)(x)
    yield tj.record(f, x).grad(x)
    yield tj.grad(lambda y: tj.grad(f)(y)[0])(x)  # of zeros and ones: see below
    with tj.Tape() as tape:
        z = tape.input(x)
        f(z).backward()
    yield z.grad


def test_data_that_change_after_use_do_not_change_the_gradient():
    x = np.array([1.0, 2.0, 3.0])

    def f(x):
        data = np.array([1.0, 10.0, 100.0])
        total = np.sum(x * data)
        data[:] = 7.0
        total = total + np.sum(data * x)
        data *= 0.0
        return total + np.dot(data, x)

    expected = [8.0, 17.0, 107.0]
    for i, x_bar in enumerate(gradients_with_data(f, x)):
        assert x_bar.tolist() == ([0.0] * 3 if i == 4 else expected)


@pytest.mark.parametrize(
    "use",
    [
        lambda x, d: x * d,
        lambda x, d: d - x,
        lambda x, d: d @ x,
        lambda x, d: x @ d,
        lambda x, d: np.dot(d.T, x),
        lambda x, d: np.where(d > 2, x, 0.0),
        lambda x, d: np.where(x > 0, d, x),
        lambda x, d: np.maximum(d, x),
        lambda x, d: x**d,
        lambda x, d: (x * d.T) + x * d[::-1] + x * d[:, ::-1],
        lambda x, d: x[np.argsort(d[0])],
        lambda x, d: np.concatenate([x[None], d]) * 2.0,
        lambda x, d: np.stack([x, d[0]]) ** 2,
        lambda x, d: np.interp(x, d[0], d[1]),
        lambda x, d: x.clip(d[0] - 9.0, d[1] + 9.0),
        lambda x, d: np.add.outer(d[0], x),
        lambda x, d: np.sum(x * d, where=d > 2),
        lambda x, d: np.average(x, weights=d[0]),
        lambda x, d: np.array([x[0] * d[0, 0], x[1] * d[1, 1]]) * 1.0 * x[:2],
        lambda x, d: assigned(x, d),
    ],
    ids=range(20),
)
@pytest.mark.parametrize("order", ["C", "F", "strided", "int", "read-only view"])
def test_data_that_change_after_use_in_any_operation(use, order):
    x = np.array([1.1, 2.2, 3.3])
    clean = np.array([[1.0, 2.0, 4.0], [5.0, 3.0, 7.0], [2.0, 6.0, 9.0]])
    expected = tj.jacobian(lambda x: use(x, clean))(x)

    def buffer():
        if order == "strided":
            data = np.zeros((6, 6))[::2, ::2]
            data[...] = clean
            return data
        if order == "int":
            return clean.astype(int)
        return np.array(clean, order="F" if order == "F" else "C")

    def spoiled(x):
        data = buffer()
        seen = data.view() if order == "read-only view" else data
        if order == "read-only view":
            seen.flags.writeable = False
        result = use(x, seen)
        data *= 0
        data -= 1
        return result

    assert_allclose(tj.jacobian(spoiled)(x), expected, rtol=1e-15)
    tape = tj.record(spoiled, x)
    assert_allclose(tape.jacobian(x), expected, rtol=1e-15)
    assert_allclose(tape.value(x), use(x, clean), rtol=1e-14)


def assigned(x, data):
    y = x * 1.0
    y[:2] = data[0, 1:] * x[0]
    y[1:] += data[1, :2]
    return y * y


def test_one_buffer_with_new_content_at_every_step():
    x = np.array([1.0, 2.0, 3.0])

    def f(x):
        buffer, total = np.zeros(3), 0.0
        for i in range(5):
            buffer[:] = i
            buffer[0] = i * i
            total = total + np.sum(buffer * x) + buffer @ x
        return total

    expected = [60.0, 20.0, 20.0]
    assert tj.grad(f)(x).tolist() == expected
    tape = tj.record(f, x)
    assert tape.grad(x + 1.0).tolist() == expected
    assert tape.value(x) == f(x)


def test_a_buffer_that_is_freed_and_given_out_again():
    x = np.array([1.0, 2.0, 3.0])

    def f(x):
        total = 0.0
        for i in range(50):
            total = total + np.sum(np.full(3, float(i)) * x)  # NumPy gives out the same memory again and again
        return total

    assert tj.grad(f)(x).tolist() == [1225.0] * 3


def test_an_argument_that_changes_after_a_recording():
    x, data = np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 100.0])
    tape = tj.record(lambda x, d: np.sum(x * d) + np.dot(x, d), x, data)
    data[:] = 0.0
    assert tape.grad(x).tolist() == [2.0, 20.0, 200.0]
    assert tape.value(x) == 642.0


def test_an_argument_that_changes_before_the_pullback():
    x, data = np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 100.0])
    value, pullback = tj.vjp(lambda x, d: np.sum(x * d) + np.dot(x, d))(x, data)
    data[:] = 0.0
    assert pullback(1.0).tolist() == [2.0, 20.0, 200.0]


def test_an_argument_that_changes_inside_the_function():
    """Every use reads the numbers as they were then, through whatever view they were changed."""
    x, data = np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 100.0])
    view = data[:]

    def f(x, d):
        total = np.sum(x * d)
        view[:] = 2.0
        return total + np.dot(x, d)

    assert tj.grad(f)(x, data).tolist() == [3.0, 12.0, 102.0]
    assert data.flags.writeable and view.flags.writeable


def test_arguments_that_view_one_array():
    data = np.ones((4, 3))
    gradient = tj.grad(lambda w, a, b: np.sum((a @ w - b) ** 2))(np.ones(2), data[:, :2], data[:, 2])
    assert gradient.tolist() == [8.0, 8.0]
    data[0] = 3.0


def test_an_argument_that_changes_before_a_later_sweep():
    kept = []
    data = np.ones(3)

    def f(x, d):
        kept.append(tj.vjp(lambda y: np.sum(d * y))(np.ones(3))[1])
        return np.sum(x * d)

    tj.grad(f)(np.ones(3), data)
    data[:] = -7.0
    assert kept[0](1.0).tolist() == [1.0, 1.0, 1.0]
    with tj.Tape() as tape:
        x = tape.input(np.ones(3))
        data.flags.writeable = False
        y = np.sum(x * data)
    data.flags.writeable = True
    data[:] = 9.0
    y.backward()
    assert x.grad.tolist() == [-7.0, -7.0, -7.0]


def test_an_argument_of_a_nested_gradient_that_changes_afterwards():
    x = np.array([1.0, 2.0, 3.0])

    def f(x):
        data = np.array([1.0, 10.0, 100.0])
        inner = tj.grad(lambda y, d: np.sum(y * y * d))(x, data)  # 2 x d
        data[:] = 0.0
        return np.sum(inner * x)

    assert tj.grad(f)(x).tolist() == [4.0, 80.0, 1200.0]


def test_the_callers_array_is_not_written_to():
    x, data = np.array([1.0, 2.0]), np.array([3.0, 4.0])

    def f(x):
        x[0] = 5.0
        x *= 2.0
        return np.sum(x**2)

    assert tj.grad(f)(x).tolist() == [0.0, 16.0]
    assert x.tolist() == [1.0, 2.0]
    # A passive argument is the caller's own array, as without tapejit.
    assert tj.grad(lambda x, d: np.sum(x * d.__iadd__(1.0)))(x, data).tolist() == [4.0, 5.0]
    assert data.tolist() == [4.0, 5.0]


def test_results_do_not_alias_the_tape():
    tape = tj.record(lambda x: x * 2.0, np.array([1.0, 2.0]))
    first = tape.value([1.0, 2.0])
    second = tape.value([5.0, 6.0])
    assert first.tolist() == [2.0, 4.0] and second.tolist() == [10.0, 12.0]
    value, pullback = tj.vjp(lambda x: x * 2.0)(np.array([1.0, 2.0]))
    value[:] = 0.0
    assert pullback(np.ones(2)).tolist() == [2.0, 2.0]
    with tj.Tape() as t:
        x = t.input(np.array([1.0, 2.0]))
        y = x * x
        numbers = y.value
        numbers[:] = 0.0
    y.backward(np.ones(2))
    assert x.grad.tolist() == [2.0, 4.0]


def test_an_index_array_that_changes_after_use():
    x = np.array([1.0, 2.0, 3.0])

    def f(x):
        index, mask = np.array([0, 0, 2]), np.array([True, False, True])
        y = x * 1.0
        taken, masked = x[index], x[mask]
        y[index] += 1.0
        np.add.at(y, index, x)
        chosen = np.where(mask, x, 0.0)
        index[:] = 1
        mask[:] = False
        return np.sum(taken * taken) + np.sum(masked) + np.sum(y * y) + np.sum(chosen**2)

    agrees(f, x, tolerance=1e-15)


# Any program of views, reads and writes: hypothesis against NumPy.

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["view", "reverse", "transpose", "copy", "fancy", "set", "add", "multiply", "read", "assign", "shift"]
        ),
        st.integers(0, 5),
        st.integers(0, 5),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=14,
)


def program(x, steps):
    """Runs a list of steps on plain or active arrays; returns the sum of what was read, and all arrays."""
    arrays, total = [x * 1.0], 0.0
    for what, i, j, k in steps:
        a, b = arrays[i % len(arrays)], arrays[j % len(arrays)]
        if what == "view":
            arrays.append(a[..., k % a.shape[-1] :])
        elif what == "reverse":
            arrays.append(a[::-1])
        elif what == "transpose":
            arrays.append(a.T)
        elif what == "copy":
            arrays.append(a.copy())
        elif what == "fancy":
            arrays.append(a[[k % a.shape[0], 0]])
        elif what == "set":
            a[k % a.shape[0]] = float(j)
        elif what == "add":
            a[..., k % a.shape[-1]] += x[0, 0]
        elif what == "multiply":
            a *= 1.0 + 0.1 * k
        elif what == "read":
            total = total + np.sum(a * a) * (k + 1)
        elif what == "assign":
            a[...] = b[0, -1]
        elif what == "shift" and a.shape[0] > 1:
            a[1:] = a[:-1]
    return [np.sum(a * (i + 1.0)) for i, a in enumerate(arrays)], total


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_any_program_of_views_and_writes(steps):
    x = np.array([[1.1, 0.7, 0.9], [0.6, 1.3, 0.8]])

    def f(x):
        sums, total = program(x, steps)
        weights = np.cos(np.arange(len(sums)))
        return sum(w * s for w, s in zip(weights, sums, strict=True)) + total

    value, x_bar = tj.value_and_grad(f)(x)
    assert_allclose(value, f(x), rtol=1e-12, atol=1e-12)
    expected = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape, complex)
        step[index] = 1e-30j
        expected[index] = np.imag(f(x + step)) / 1e-30
    assert_allclose(x_bar, expected, rtol=1e-11, atol=1e-11)


def test_the_complex_step_of_the_program_is_right():
    assert_array_equal(program(np.ones((2, 3)), [("set", 0, 2, 0)])[0], [9.0])
