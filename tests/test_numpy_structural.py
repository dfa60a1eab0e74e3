"""Functions that move elements about and record nothing: indexing, shapes, joining, allocation. Values are exactly NumPy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from numpy_agreement import agrees, same_kind

import tapejit as tj

X = np.arange(1.0, 25.0).reshape(2, 3, 4) ** 1.1

SHAPES = {
    "reshape": lambda x: np.reshape(x, (4, 6)),
    "reshape -1": lambda x: np.reshape(x, -1),
    "reshape F": lambda x: np.reshape(x, (4, 6), order="F"),
    "reshape A": lambda x: np.reshape(x.T, (4, 6), order="A"),
    "reshape of a transpose": lambda x: np.reshape(x.T, (6, 4)),
    "x.reshape": lambda x: x.reshape(4, -1),
    "x.reshape tuple": lambda x: x.reshape((3, 8)),
    "x.reshape order": lambda x: x.reshape(3, 8, order="F"),
    "ravel": np.ravel,
    "ravel F": lambda x: np.ravel(x, order="F"),
    "ravel K": lambda x: np.ravel(x.T, order="K"),
    "x.ravel": lambda x: x.ravel(),
    "x.flatten": lambda x: x.flatten(),
    "x.flatten F": lambda x: x.flatten("F"),
    "transpose": np.transpose,
    "transpose axes": lambda x: np.transpose(x, (1, 2, 0)),
    "x.transpose axes": lambda x: x.transpose(2, 0, 1),
    "x.transpose tuple": lambda x: x.transpose((2, 0, 1)),
    "x.T": lambda x: x.T,
    "matrix_transpose": lambda x: np.matrix_transpose(x),
    "swapaxes": lambda x: np.swapaxes(x, 0, -1),
    "x.swapaxes": lambda x: x.swapaxes(0, 1),
    "moveaxis": lambda x: np.moveaxis(x, 0, -1),
    "moveaxis lists": lambda x: np.moveaxis(x, [0, 1], [-1, 0]),
    "rollaxis": lambda x: np.rollaxis(x, 2),
    "expand_dims": lambda x: np.expand_dims(x, 1),
    "expand_dims tuple": lambda x: np.expand_dims(x, (0, 2)),
    "squeeze": lambda x: np.squeeze(x[:1]),
    "squeeze axis": lambda x: np.squeeze(x[:1], axis=0),
    "x.squeeze": lambda x: x[:, :1].squeeze(1),
    "broadcast_to": lambda x: np.broadcast_to(x, (2, 2, 3, 4)),
    "broadcast_to scalar": lambda x: np.broadcast_to(x[0, 0, 0], (2, 3)),
    "broadcast_arrays": lambda x: np.broadcast_arrays(x[0, :, :1], x[1, :1]),
    "meshgrid": lambda x: np.meshgrid(x[0, 0], x[0, :, 0]),
    "meshgrid ij": lambda x: np.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"),
    "meshgrid sparse": lambda x: np.meshgrid(x[0, 0], np.array([1.0, 2.0]), sparse=True),
    "atleast_1d": lambda x: np.atleast_1d(x[0, 0, 0]),
    "atleast_2d": lambda x: np.atleast_2d(x[0, 0]),
    "atleast_3d": lambda x: np.atleast_3d(x[0]),
    "atleast several": lambda x: np.atleast_2d(x[0, 0], x[0, 0, 0], x),
    "concatenate": lambda x: np.concatenate([x, x[:, ::-1]]),
    "concatenate axis": lambda x: np.concatenate((x, x * 2.0), axis=1),
    "concatenate flat": lambda x: np.concatenate((x, x[0]), axis=None),
    "concatenate passive": lambda x: np.concatenate([np.ones((1, 3, 4)), x, np.zeros((1, 3, 4), dtype=int)]),
    "concatenate an array": lambda x: np.concatenate(x),
    "concatenate lists": lambda x: np.concatenate([x[0, 0], [1.0, 2.0], [x[1, 0, 0]]]),
    "concatenate empty": lambda x: np.concatenate([x[:0], x]),
    "stack": lambda x: np.stack([x, x + 1.0]),
    "stack axis": lambda x: np.stack([x, x], axis=-1),
    "stack scalars": lambda x: np.stack([x[0, 0, 0], x[1, 1, 1], 2.5]),
    "vstack": lambda x: np.vstack([x[0, 0], x[1]]),
    "hstack": lambda x: np.hstack([x[0], x[1, :, :1]]),
    "hstack scalars": lambda x: np.hstack([x[0, 0, 0], 1.0, x[0, 0]]),
    "dstack": lambda x: np.dstack([x[0], x[1]]),
    "column_stack": lambda x: np.column_stack([x[0, 0], x[0, 1], [1, 2, 3, 4]]),
    "block": lambda x: np.block([[x[0], np.ones((3, 1))], [x[1, :1], np.zeros((1, 1))]]),
    "split": lambda x: np.split(x, 2),
    "split at": lambda x: np.split(x, [1, 3], axis=2),
    "array_split": lambda x: np.array_split(x, 3, axis=2),
    "hsplit": lambda x: np.hsplit(x, 3),
    "vsplit": lambda x: np.vsplit(x, 2),
    "dsplit": lambda x: np.dsplit(x, 2),
    "tile": lambda x: np.tile(x, (2, 1, 1)),
    "tile number": lambda x: np.tile(x[0, 0], 3),
    "repeat": lambda x: np.repeat(x, 2),
    "repeat axis": lambda x: np.repeat(x, [1, 0, 2], axis=1),
    "x.repeat": lambda x: x.repeat(2, axis=0),
    "roll": lambda x: np.roll(x, 5),
    "roll axis": lambda x: np.roll(x, (1, -1), axis=(0, 2)),
    "flip": np.flip,
    "flip axis": lambda x: np.flip(x, 1),
    "flip axes": lambda x: np.flip(x, (0, 2)),
    "fliplr": np.fliplr,
    "flipud": np.flipud,
    "rot90": lambda x: np.rot90(x, 3, axes=(1, 2)),
    "diag of a vector": lambda x: np.diag(x[0, 0]),
    "diag of a vector, off": lambda x: np.diag(x[0, 0], -1),
    "diag of a matrix": lambda x: np.diag(x[0]),
    "diag of a matrix, off": lambda x: np.diag(x[0], 1),
    "diagflat": lambda x: np.diagflat(x[0], 1),
    "diagonal": lambda x: np.diagonal(x),
    "diagonal axes": lambda x: np.diagonal(x, 1, 1, 2),
    "x.diagonal": lambda x: x[0].diagonal(),
    "trace": lambda x: np.trace(x[0]),
    "x.trace": lambda x: x.trace(1, 1, 2),
    "tril": lambda x: np.tril(x),
    "tril k": lambda x: np.tril(x, 1),
    "triu": lambda x: np.triu(x, -1),
    "take": lambda x: np.take(x, [0, 5, 5]),
    "take axis": lambda x: np.take(x, [[0, 2], [1, 1]], axis=1),
    "take scalar": lambda x: np.take(x, 3),
    "take wrap": lambda x: np.take(x, [-1, 30], mode="wrap"),
    "x.take": lambda x: x.take([3, 1], axis=-1),
    "take_along_axis": lambda x: np.take_along_axis(x, np.array([[[1, 0, 3]]]), axis=2),
    "compress": lambda x: np.compress([True, False, True], x, axis=1),
    "compress flat": lambda x: np.compress([True, False, True], x),
    "extract": lambda x: np.extract(np.arange(24).reshape(2, 3, 4) % 3 == 0, x),
    "delete": lambda x: np.delete(x, 1, axis=1),
    "delete list": lambda x: np.delete(x, [0, 3]),
    "insert": lambda x: np.insert(x, 1, 5.0, axis=1),
    "insert active": lambda x: np.insert(x[0, 0], [0, 2], x[1, 1, :2]),
    "insert into passive": lambda x: np.insert(np.array([1.0, 2.0]), 1, x[0, 0, 0]),
    "append": lambda x: np.append(x, [1.0, 2.0]),
    "append axis": lambda x: np.append(np.ones((1, 3, 4)), x, axis=0),
    "resize": lambda x: np.resize(x, (5, 6)),
    "pad": lambda x: np.pad(x[0], 1),
    "pad values": lambda x: np.pad(x[0], ((1, 0), (2, 1)), constant_values=((1.0, 2.0), (3.0, np.nan))),
    "pad edge": lambda x: np.pad(x[0], 2, mode="edge"),
    "pad reflect": lambda x: np.pad(x[0], 2, mode="reflect"),
    "pad wrap": lambda x: np.pad(x[0], (1, 2), mode="wrap"),
    "copy": np.copy,
    "x.copy": lambda x: x.T.copy(),
    "x.astype": lambda x: x.astype(float),
    "x.astype name": lambda x: x.astype("float64", copy=False),
    "x.item": lambda x: np.stack([x.item(3), x.item((1, 1, 1)), x.item(0, 0, 0), x[:1, :1, :1].item()]),
    "x.tolist": lambda x: np.stack(x[0].tolist()[1]),
    "x.flat": lambda x: sum(v * w for v, w in zip(x.flat, range(24), strict=True)),
    "iteration": lambda x: sum(row[0, 0] * row for row in x),
    "zeros_like": lambda x: np.zeros_like(x) + x,
    "ones_like": lambda x: np.ones_like(x) * x,
    "empty_like": lambda x: np.empty_like(x) * 0.0 + x,
    "full_like": lambda x: np.full_like(x, 3.0) * x,
    "full_like shape": lambda x: np.full_like(x, 3.0, shape=(2, 1)) * x[0, :2],
    "zeros_like int": lambda x: np.zeros_like(x, dtype=int),
    "full_like bool": lambda x: np.full_like(x, 1.0, dtype=bool),
    "unstack": lambda x: np.unstack(x) if hasattr(np, "unstack") else np.split(x, 2),
    "ix_": lambda x: x[np.ix_([0, 1], [2, 0], [1, 1, 3])],
    "linspace": lambda x: np.linspace(x[0, 0, 0], x[1, 1, 1], 7),
    "linspace open": lambda x: np.linspace(x[0], 2.0, 3, endpoint=False, axis=1),
    "linspace step": lambda x: np.linspace(0.0, x[0, 0], 4, retstep=True),
    "linspace one": lambda x: np.linspace(x[0, 0, 0], 2.0, 1),
}


@pytest.mark.parametrize("f", SHAPES.values(), ids=SHAPES)
def test_structural_function(f):
    sums = ("trace", "linspace", "x.trace")
    agrees(
        f,
        X,
        tolerance=4e-16 if any(f is SHAPES[name] for name in SHAPES if name.startswith(sums)) else 0.0,
        differentiable=f is not SHAPES["pad values"],
    )


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in SHAPES
        if name.split()[0]
        in ("reshape", "ravel", "transpose", "tile", "repeat", "roll", "flip", "concatenate", "stack", "x.T", "pad")
    ],
)
@pytest.mark.parametrize("shape", [(2, 3, 0), (0, 3, 4)], ids=str)
def test_structural_function_of_nothing(name, shape):
    x = np.zeros(shape)
    try:
        SHAPES[name](x)
    except (ValueError, IndexError) as error:  # NumPy has no answer: neither have we.
        with pytest.raises(type(error)):
            tj.record(SHAPES[name], x)
    else:
        agrees(SHAPES[name], x)


KEYS = {
    "int": 1,
    "negative int": -1,
    "np.int64": np.int64(1),
    "ints": (1, 2, 3),
    "slice": slice(None, 1),
    "step": (slice(None), slice(None, None, 2)),
    "negative step": (slice(None, None, -1), slice(None), slice(3, 0, -2)),
    "beyond": slice(1, 100),
    "empty slice": slice(2, 1),
    "newaxis": (None, 1, None),
    "ellipsis": (..., 1),
    "only ellipsis": ...,
    "empty tuple": (),
    "fancy": [0, 1, 0],
    "fancy array": np.array([[0, 1], [1, 0]]),
    "fancy negative": ([0, -1], [-1, 0]),
    "fancy and slice": (slice(None), [0, 2], slice(None, None, 2)),
    "fancy apart": ([0, 1], slice(None), [0, 3]),
    "fancy and int": (0, [0, 2]),
    "fancy and newaxis": (None, [0, 1], None, [0, 2]),
    "fancy broadcast": (np.array([[0], [1]]), np.array([0, 2])),
    "fancy empty": np.zeros(0, int),
    "0-d array": np.array(1),
    "uint8": np.array([0, 1], dtype=np.uint8),
    "mask": X > 5.0,
    "mask of an axis": (slice(None), np.array([True, False, True])),
    "mask and fancy": (np.array([True, True]), [0, 2]),
    "mask list": [True, False],
    "mask 2-d": np.array([[True, False, True], [False, False, True]]),
    "mask none": np.zeros((2, 3, 4), bool),
    "True": True,
    "False": False,
    "ix": np.ix_([1, 0], [2, 0]),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_index(key):
    agrees(lambda x: x[key], X)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_index_of_a_transposed_reversed_view(key):
    y = np.arange(1.0, 25.0).reshape(4, 3, 2)
    agrees(lambda y: y.T[::-1][key], y)


def at_place(x, key, new):
    y = x * 2.0
    y[key] = new
    return y


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_assignment(key):
    agrees(lambda x: at_place(x, key, 3.0), X)
    agrees(lambda x: at_place(x, key, x[0, 0, 0]), X)
    agrees(lambda x: at_place(x, key, x[key] * x[1, 1, 1]), X)
    agrees(lambda x: at_place(x, key, np.arange(X[key].size).reshape(X[key].shape)), X)


def add_in_place(x, key, new):
    y = x * 2.0
    y[key] += new
    y[key] *= 3.0
    y[key] -= 1
    y[key] /= new
    y[key] **= 2
    return y


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_augmented_assignment(key):
    agrees(lambda x: add_in_place(x, key, x[0, 0, 0]), X, tolerance=1e-15)


@pytest.mark.parametrize(
    "key",
    [key for key in KEYS.values() if not isinstance(key, bool)],
    ids=[name for name in KEYS if name not in ("True", "False")],
)
@pytest.mark.parametrize("ufunc", [np.add, np.subtract])
def test_ufunc_at(key, ufunc):
    def f(x):
        y = x * 2.0
        ufunc.at(y, key, x[0, 0, 0])
        ufunc.at(y.T, (..., 0), 2.0)
        return y

    agrees(f, X, tolerance=1e-15)


def test_ufunc_at_repeated_places():
    def f(x, z):
        y = np.zeros_like(x)
        np.add.at(y, [0, 2, 0, 0, 1], x[[0, 1, 2, 2, 1]] * z)
        np.add.at(y, ([0, 0],), [1, 2.5])
        np.subtract.at(y[::-1], [0, 0], x[0])
        np.add.at(y, 1, z)
        return y

    agrees(f, [1.5, 2.5, 4.5], 0.7, tolerance=1e-15)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (0, 3)], ids=str)
def test_small_arrays(shape):
    x = np.full(shape, 1.5)
    with tj.Tape() as tape:
        active = tape.input(np.array([1.5, 2.5]))[:1].reshape(shape) if x.size else tape.input(x)
        for key in ((), ..., None, (None, ...), (..., None)):
            same_kind(active[key], x[key])
        for name in "ravel copy flatten transpose squeeze".split():
            same_kind(getattr(active, name)(), getattr(x, name)())
        for name in "shape ndim size dtype".split():
            assert getattr(active, name) == getattr(x, name)
        same_kind(active * 2.0, x * 2.0)
        same_kind(np.sum(active), np.sum(x))
        assert active.tolist() == x.tolist()
        if x.size:
            same_kind(active.item(), x.item())
        if shape:
            assert len(active) == len(x)
        else:
            with pytest.raises(TypeError, match="unsized"):
                len(active)


def test_assignment_to_a_0d_array():
    def f(x):
        y = np.zeros((), like=x) if isinstance(x, tj.Array) else np.zeros(())
        y[...] = x[0] * 2.0
        y += x[1]
        y[()] = y * x[2]
        return np.sum(y) + y

    agrees(f, [1.5, 2.5, 3.5])


def test_errors_of_indexing_are_numpys():
    with tj.Tape() as tape:
        x = tape.input(np.ones((2, 3)))
        for key in (2, (0, 3), (0, 0, 0), "a", 1.0, [0, 2], np.zeros(3, bool)):
            with pytest.raises(IndexError):
                x[key]
        with pytest.raises(IndexError, match="index 3 is out of bounds for axis 0 with size 3"):
            x[0][3]
        for key, new in ((0, np.ones(2)), (slice(None), np.ones((3, 2))), ([0, 1], np.ones((4, 3)))):
            with pytest.raises(ValueError, match="broadcast"):
                x[key] = new
        with pytest.raises(ValueError, match="cannot reshape"):
            x.reshape(4)
        with pytest.raises(ValueError, match="non-broadcastable output"):
            x += np.ones((2, 2, 3))


# Arrays made of scalars.

BUILT = {
    "np.array": lambda x: np.array([x[0], x[1] ** 2]) * 1.0,
    "np.array used with an active array": lambda x: np.array([x[0], x[1] ** 2, 1.0]) * x,
    "np.array nested": lambda x: np.array([[x[0], 1.0], [x[1], x[2]]]) @ np.array([1.0, 2.0]),
    "np.array of arrays": lambda x: np.array([x, 2.0 * x]) * x[0],
    "object array by hand": lambda x: object_array(x) * x,
    "list": lambda x: [x[0], x[1] ** 2],
    "np.stack": lambda x: np.stack([x[0], x[1] ** 2]),
    "np.hstack": lambda x: np.hstack([x[0], x[1:], 2.0]),
    "np.sin of np.array": lambda x: np.sin(np.array([x[0], x[1]])) * 1.0,
    "np.exp of nested np.array": lambda x: np.exp(np.array([[x[0], x[1]]])) @ x[:2],
    "np.hypot of np.array": lambda x: np.hypot(np.array([x[0], x[1]]), 2.0) * 1.0,
    "np.power of np.array": lambda x: np.array([x[0], x[1]]) ** 2 * 1.0,
    "np.sqrt of np.asarray": lambda x: np.sqrt(np.asarray(x)) * x,
    "np.sum of np.array": lambda x: np.sum(np.array([x[0] * x[1], x[2], 3.0])),
    "np.dot of np.array": lambda x: np.dot(np.array([x[0], x[1]]), np.array([2.0, 3.0])),
    "assignment of a list": lambda x: at_place(x, slice(0, 2), [x[1], 5.0]),
    "assignment of an object array": lambda x: at_place(x, slice(0, 2), np.array([x[1], x[0]])),
    "np.array like": lambda x: np.array([x[0], 1.0, x[1]], **like(x)) * x,
    "np.asarray like": lambda x: np.asarray(x, **like(x)) * 2.0,
    "np.full like": lambda x: np.full((2, 3), x[0], **like(x)) * x if like(x) else np.full((2, 3), x[0]) * x,
    "np.vectorize": lambda x: np.vectorize(lambda v: v * v)(x) * 1.0,
    "min and max of Python": lambda x: min(x) + max(x),
    "sum of Python": lambda x: sum(x),
    "sorted": lambda x: np.stack(sorted(x, reverse=True)),
}


def like(x):
    return {"like": x} if isinstance(x, tj.Array) else {}


def object_array(x):
    if not isinstance(x, tj.Array):
        return x * x[::-1]
    made = np.empty(x.shape, dtype=object)
    for i in range(len(x)):
        made[i] = x[i] * x[::-1][i]
    return made


@pytest.mark.parametrize("f", BUILT.values(), ids=BUILT)
def test_arrays_built_of_scalars(f):
    agrees(lambda x: plain_parts(f(x)), [1.5, 2.5, 0.7], tolerance=1e-15)


def plain_parts(made):
    """An object array of active scalars as an active array, for the comparison."""
    if isinstance(made, np.ndarray) and made.dtype == object:
        return np.stack([np.stack(list(row)) if isinstance(row, np.ndarray) else row for row in made])
    return made


def test_output_may_be_an_object_array_or_a_list():
    jacobian = [[2.0, 0.0], [3.0, 1.0]]
    x = np.array([1.0, 3.0])
    assert_array_equal(tj.jacobian(lambda x: np.array([2 * x[0], x[0] * x[1]]))(x), jacobian)
    assert_array_equal(tj.jacobian(lambda x: [2 * x[0], x[0] * x[1]])(x), jacobian)
    assert_array_equal(tj.jacobian(lambda x: (2 * x[0], x[0] * x[1]))(x), jacobian)


ALLOCATED = {
    "zeros": lambda like: np.zeros(3, like=like),
    "zeros shape": lambda like: np.zeros((2, 3), like=like),
    "empty": lambda like: np.empty(0, like=like),
    "ones": lambda like: np.ones((3, 1), like=like),
    "full": lambda like: np.full((3,), 2.5, like=like),
    "eye": lambda like: np.eye(3, k=1, like=like),
    "identity": lambda like: np.identity(3, like=like),
    "arange": lambda like: np.arange(1.0, 4.0, like=like),
    "array": lambda like: np.array([1, 2.5], like=like),
    "array ndmin": lambda like: np.array([1, 2.5], ndmin=2, like=like),
    "asarray": lambda like: np.asarray([[1.0]], like=like),
    "ascontiguousarray": lambda like: np.ascontiguousarray([[1.0]], like=like),
}


@pytest.mark.parametrize("allocate", ALLOCATED.values(), ids=ALLOCATED)
def test_allocation_like_active_values(allocate):
    expected = allocate(None)
    with tj.Tape() as tape:
        x = tape.input(np.array([1.5, 2.5]))
        for like_this in (x, x[0]):
            made = allocate(like_this)
            same_kind(made, expected)
            if allocate is not ALLOCATED["empty"]:
                assert_array_equal(made.value, expected)
            if made.size:
                made[(0,) * made.ndim] = x[1] * x[0]
                made.reshape(-1)[0].backward()
                assert_array_equal(x.grad, [2.5, 1.5])
                tape.zero_grad()


def test_facts():
    with tj.Tape() as tape:
        x = tape.input(np.ones((2, 3)))
        assert (np.shape(x), np.ndim(x), np.size(x), np.size(x, 1)) == ((2, 3), 2, 6, 3)
        assert (np.shape(x[0, 0]), np.ndim(x[0, 0]), np.size(x[0, 0])) == ((), 0, 1)
        assert not np.iscomplexobj(x) and np.isrealobj(x)
        assert np.result_type(x, 1) == np.float64
        assert np.isreal(x).all() and not np.iscomplex(x).any()
        assert repr(x) == "Array([[1., 1., 1.],\n       [1., 1., 1.]])" and str(x[0]) == "Array([1., 1., 1.])"
        assert np.array_repr(x[0]) == "Array([1., 1., 1.])"
        with pytest.raises(TypeError, match="unhashable"):
            hash(x)


# Any index at all: the value is NumPy's, and the adjoint of x[key] is a scatter to the same places.


@st.composite
def arrays_and_keys(draw):
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    kind = draw(st.sampled_from(["basic", "fancy", "mask"]))
    if kind == "basic":
        key = draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    elif kind == "mask" or not shape or 0 in shape:
        key = draw(hnp.arrays(bool, shape))
    else:
        key = draw(hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2, max_side=3)))
    return shape, key


@settings(max_examples=300, deadline=None)
@given(case=arrays_and_keys(), view=st.sampled_from(["whole", "reversed", "transposed"]))
def test_any_index(case, view):
    shape, key = case
    size = int(np.prod(shape))
    plain = np.arange(1.0, 1.0 + size)
    with tj.Tape() as tape:
        x = tape.input(plain)
        y, expected = (seen_as(z, view, shape) for z in (x, plain))
        taken = y[key]
        same_kind(taken, expected[key])
        assert_array_equal(tj.value(taken), expected[key])
        if np.size(expected[key]):
            seed = np.arange(1.0, 1.0 + np.size(expected[key])).reshape(np.shape(expected[key]))
            (taken * 1.0).backward(seed) if isinstance(taken, tj.Array) else (taken * 1.0).backward(float(seed))
            places = seen_as(np.arange(size), view, shape)[key]
            x_bar = np.zeros(size)
            np.add.at(x_bar, np.ravel(places), np.ravel(seed))
            assert_array_equal(x.grad, x_bar)


@settings(max_examples=300, deadline=None)
@given(case=arrays_and_keys(), view=st.sampled_from(["whole", "reversed", "transposed"]), scalar=st.booleans())
def test_any_assignment(case, view, scalar):
    shape, key = case
    size = int(np.prod(shape))
    plain = np.arange(1.0, 1.0 + size)
    with tj.Tape() as tape:
        x = tape.input(plain) * 1.0
        new = tape.input(np.array([-1.0, -2.0]))[0]
        y, expected = seen_as(x, view, shape), seen_as(plain, view, shape)
        numbers = -1.0 if scalar else -np.arange(1.0, 1.0 + np.size(expected[key])).reshape(np.shape(expected[key]))
        y[key] = new if scalar else numbers * new * -1.0
        expected[key] = numbers
        assert_array_equal(y.value, expected)
        assert_array_equal(x.value, plain)  # the view has written through to what it is a view of


def seen_as(x, view, shape):
    if view == "reversed":
        return x[::-1].reshape(shape) if not shape else x.reshape(shape)[tuple(slice(None, None, -1) for _ in shape)]
    if view == "transposed":
        return x.reshape(shape[::-1]).T
    return x.reshape(shape)
