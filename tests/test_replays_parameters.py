"""Parameters of `tj.record`: float arguments that a replay changes without recording again."""

import math
import pickle
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import numba
import numpy as np
import programs
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit import sweeps
from tapejit.errors import BranchChangeError
from tapejit.sweeps.activity import activity, passive

Pair = namedtuple("Pair", ["rate", "table"])


def of_scalars(x, a, b=1.5):
    y = x[0] * a
    for i in range(1, 4):
        y = y * b + x[i % 2] / (1.0 + a * a)
    return y


def of_arrays(x, data, weights):
    scores = data @ x
    return np.sum(weights * np.log1p(scores * scores)) + np.mean(data) * x[0] + 0.5 * np.sum(x * x)


def of_nested(x, options, parts, pair):
    scaled = np.sum(np.sin(x * options["shift"][0]) * options["table"])
    return scaled * parts[0] + parts[1][0] * abs(x[0]) ** parts[2] + pair.rate * np.sum(pair.table[:2] * x)


def of_passive_work(x, data, scale):
    """Most of it does not depend on x."""
    centred = (data - np.mean(data, axis=0)) / (np.std(data, axis=0) + scale)
    table = np.exp(-centred) * centred
    last = data[:, 0][[0, 2]]
    total = np.sum(table) * 1e-3
    return np.sum((table @ x) ** 2) + np.sum(last * x) + total * x[0] + data[0, 1] * x[1]


def of_vectors(x, shift, *, factor=1.0):
    return np.concatenate([x * shift, np.cumsum(x) * factor, [shift[0]]])


@numba.njit
def compiled(x, data, rate, ends, n=2):
    total = 0.0
    work = np.zeros(x.size)
    for k in range(data.shape[0]):
        for i in range(x.size):
            work[i] = work[i] * rate + data[k, i] * x[i]
        total += np.sum(work**n) * ends[0]
    if rate > 0.5:
        total *= 2.0
    return total + ends[1][0] * np.sqrt(abs(total))


@numba.njit
def compiled_in_place(x, data, rate):
    data[0] = rate * x[0]
    return np.sum(data * data) + x[1] * data[1]


def draw(kind, rng):
    """Arguments besides x, and keyword arguments, of a function."""

    def scalar():
        return float(rng.uniform(0.6, 1.4))

    if kind == "scalars":
        return (scalar(),), {"b": scalar()}
    if kind == "numpy scalars":
        return (np.float64(scalar()),), {"b": np.float64(scalar())}
    if kind == "arrays":
        return (rng.standard_normal((6, 2)), rng.standard_normal(6)), {}
    if kind == "nested":
        options = {"shift": [scalar(), 3], "table": rng.standard_normal(2), "name": "a"}
        return (options, (scalar(), [scalar()], scalar()), Pair(scalar(), rng.standard_normal(3))), {}
    if kind == "passive work":
        return (rng.standard_normal((6, 2)), scalar()), {}
    if kind == "vectors":
        return (rng.standard_normal(2),), {"factor": scalar()}
    if kind == "compiled":
        return (rng.standard_normal((4, 2)), scalar(), (scalar(), rng.standard_normal(3))), {"n": 3}
    return (rng.standard_normal(3), scalar()), {}


FUNCTIONS = {
    "scalars": of_scalars,
    "numpy scalars": of_scalars,
    "arrays": of_arrays,
    "nested": of_nested,
    "passive work": of_passive_work,
    "vectors": of_vectors,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_new_parameters_give_what_a_recording_with_them_gives(kind, rng):
    f = FUNCTIONS[kind]
    args, kwargs = draw(kind, rng)
    recording = tj.record(f, np.ones(2), *args, **kwargs)
    assert not recording.why_static
    assert recording.tape.n_inputs == 2
    for _ in range(4):
        args, kwargs = draw(kind, rng)
        x, v = rng.standard_normal(2), rng.standard_normal(2)
        afresh = tj.record(f, x, *args, **kwargs)
        given = {"args": args, "kwargs": {name: number for name, number in kwargs.items() if name != "n"}}
        value, x_bar = recording.vjp(x, np.ones(np.shape(afresh.value(x))), **given)
        reference = afresh.vjp(x, np.ones(np.shape(value)))
        assert_array_equal(value, reference[0])
        assert_array_equal(x_bar, reference[1])
        assert_array_equal(recording.jacobian(x, **given), afresh.jacobian(x))
        assert_array_equal(recording.jvp(x, v, **given)[1], afresh.jvp(x, v)[1])
        if np.ndim(value) == 0:
            assert_array_equal(recording.hvp(x, v, **given), afresh.hvp(x, v))
            assert_array_equal(recording.hessian(x, **given), afresh.hessian(x))
        copies = pickle.loads(pickle.dumps((args, kwargs)))
        assert_allclose(value, f(x, *copies[0], **copies[1]), rtol=1e-13)
        copies = pickle.loads(pickle.dumps((args, kwargs)))
        assert_allclose(
            recording.jacobian(x, **given), tj.jacobian(f)(x, *copies[0], **copies[1]), rtol=1e-10, atol=1e-12
        )
    assert recording.n_recorded == 1


def test_no_arguments_mean_those_of_the_recording(rng):
    data, weights = rng.standard_normal((6, 2)), rng.standard_normal(6)
    recording = tj.record(of_arrays, np.ones(2), data, weights)
    x = rng.standard_normal(2)
    expected = recording.value_and_grad(x)
    recording.value(x, args=(data + 1.0, weights))
    assert_array_equal(recording.value_and_grad(x)[1], expected[1])
    weights[:] = 0.0  # the recording has its own
    assert recording.value(x) == expected[0]
    assert recording.value(x, args=(data, weights)) == of_arrays(x, data, weights)
    assert recording.n_recorded == 1


def test_names_of_parameters():
    def f(x, n, rate, label, table, *, scale, order="C"):
        return np.sum(x) ** n * rate * np.sum(table[0]) * scale

    recording = tj.record(f, np.ones(2), 2, 0.5, "a", [np.ones(3)], scale=2.0, order="F")
    assert recording.parameters == (2, 4, "scale")
    assert recording.why_static == {}
    assert recording.tape.parameter_slots == [(3, 1), (4, 3), (7, 1)]
    assert recording.tape.n_inputs == 2
    assert recording.tape.first_operation == 8
    with pytest.raises(TypeError, match="recorded without the keyword argument 'other'"):
        recording.value(np.ones(2), kwargs={"other": 1.0})


@pytest.mark.parametrize("f", [lambda x, p, n: p * x**n, numba.njit(lambda x, p, n: p * x**n)])
def test_other_arguments_are_static(f):
    recording = tj.record(f, 2.0, 1.5, 2)
    assert recording.value(3.0, args=(2.0, 2)) == 18.0
    assert recording.n_recorded == 1
    assert recording.value(3.0, args=(2.0, 3)) == 54.0
    assert recording.n_recorded == 2
    assert recording.value(3.0, args=(1.0, 2)) == 9.0
    assert recording.value(3.0, args=(4.0, 3)) == 108.0
    assert recording.n_recorded == 2
    assert recording.value(3.0, args=(4, 3)) == 108.0  # an int
    assert recording.n_recorded == 3


def test_shapes_are_compared():
    recording = tj.record(lambda x, d: np.sum(d) * x, 1.0, np.ones(3))
    assert recording.value(2.0, args=(np.ones(4),)) == 8.0
    assert recording.value(2.0, args=(np.ones((3, 1)),)) == 6.0
    assert recording.value(2.0, args=(2.0 * np.ones(4),)) == 16.0
    assert recording.n_recorded == 3


def test_dicts_in_another_order():
    recording = tj.record(lambda x, d: x * d["a"] + d["b"], 1.0, {"a": 2.0, "b": 3.0})
    assert recording.value(1.0, args=({"b": 5.0, "a": 7.0},)) == 12.0
    assert recording.value(1.0, args=({"a": 5.0, "b": 7.0},)) == 12.0
    assert recording.value(2.0, args=({"b": 5.0, "a": 7.0},)) == 19.0


def test_other_precisions_are_static():
    recording = tj.record(lambda x, d: np.sum(d * d) * x, 1.0, np.float32([0.1, 0.7]))
    assert recording.parameters == ()
    new = np.float32([0.3, 0.9])
    assert recording.value(2.0, args=(new,)) == np.sum(new * new) * 2.0
    assert recording.n_recorded == 2


# What a function does not take as a parameter.

REFUSED = {
    "as an integer": (lambda x, t, c: x * c * sum(1 for _ in range(int(t))), 3.0, 4.0),
    "math": (lambda x, t, c: x * c * math.exp(t), 3.0, 4.0),
    "an array of floats": (lambda x, t, c: x * c * np.sum(np.array([t, 2.0], dtype=float)), 3.0, 4.0),
    "a key": (lambda x, t, c: x * c * {3.0: 1.0, 4.0: 7.0}[t], 3.0, 4.0),
    "tj.value": (lambda x, t, c: x * c * float(tj.value(t)) + 0.0 * tj.value(x), 3.0, 4.0),
    "the type": (lambda x, t, c: x * c * (t if isinstance(t, float) else 1.0), 1.0, 4.0),
    "the type of an array": (
        lambda x, t, c: x * c * (np.sum(t) if isinstance(t, np.ndarray) else 3.0),
        np.ones(3),
        np.arange(3.0),
    ),
    "np.isscalar": (lambda x, t, c: x * c * (t if np.isscalar(t) else 1.0), 1.0, 4.0),
    "type()": (lambda x, t, c: x * c * (t if type(t) is float else 1.0), 3.0, 4.0),
    "asarray": (lambda x, t, c: x * c * np.sum(np.asarray(t)), np.ones(3), np.arange(3.0)),
    "an index": (lambda x, t, c: x * c * np.sum(np.arange(9.0)[t.astype(int)]), np.ones(3), np.arange(3.0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_parameter_is_static(name):
    f, here, there = REFUSED[name]
    recording = tj.record(f, 2.0, here, 2.0)
    assert list(recording.why_static) == [1]
    assert recording.parameters == (2,)
    assert recording.n_recorded == 1
    for args in ((there, 2.5), (here, 2.0), (here, 5.0), (there, 6.0)):
        assert_allclose(recording.value(3.0, args=args), f(3.0, *args), rtol=1e-15)
        assert_allclose(recording.grad(3.0, args=args), tj.grad(f)(3.0, *args), rtol=1e-15)
    assert recording.n_recorded == 2
    assert recording.value(3.0) == f(3.0, here, 2.0)


@numba.njit
def with_table(x, table, rate):
    return x * rate * np.linalg.svd(table)[1][0]


def test_what_a_compiled_function_does_not_take_is_static():
    recording = tj.record(with_table, 2.0, np.diag([3.0, 1.0]), 0.5)
    assert recording.parameters == (2,)
    assert "svd" in recording.why_static[1]
    assert recording.value_and_grad(2.0, args=(np.diag([3.0, 1.0]), 2.0)) == (12.0, 6.0)
    assert recording.n_recorded == 1
    assert recording.value_and_grad(2.0, args=(np.diag([5.0, 1.0]), 2.0)) == (20.0, 10.0)
    assert recording.n_recorded == 2


def test_an_error_of_the_function_is_its_own():
    def f(x, p):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tj.record(f, 1.0, 2.0)


def test_a_branch_that_does_not_take_a_parameter():
    """It is found out when the branch is first taken; what was recorded before is compared anew."""

    def f(x, t):
        return x * t if x > 0.0 else x * float(t) ** 2

    recording = tj.record(f, 1.0, 2.0)
    assert recording.parameters == (1,)
    assert recording.value(2.0, args=(3.0,)) == 6.0
    assert recording.value(-1.0, args=(3.0,)) == -9.0
    assert recording.parameters == ()
    for _ in range(2):
        for t in (2.0, 3.0, 5.0):
            assert recording.value(-1.0, args=(t,)) == -t * t
            assert recording.value(4.0, args=(t,)) == 4.0 * t
    assert recording.value(4.0) == 8.0
    assert recording.value(-1.0) == -4.0


def test_random_numbers_are_frozen_as_before():
    generator = np.random.default_rng(0)
    recording = tj.record(lambda x, p: x * p * generator.standard_normal(), 1.0, 2.0)
    assert recording.parameters == ()
    assert recording.value(2.0) == 2.0 * recording.value(1.0)


# Decisions.


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_branch_on_a_parameter(is_compiled):
    def f(x, limit):
        if x < limit:
            return x * limit
        return x * x + limit

    g = numba.njit(f) if is_compiled else f
    recording = tj.record(g, 1.0, 2.0)
    assert recording.value_and_grad(1.5, args=(3.0,)) == (4.5, 3.0)
    assert recording.n_recorded == 1
    assert recording.value_and_grad(1.5, args=(1.0,)) == (3.25, 3.0)
    assert recording.n_recorded == 2
    assert recording.value_and_grad(1.5, args=(0.5,)) == (2.75, 3.0)
    assert recording.n_recorded == 2
    assert recording.value_and_grad(1.5) == (3.0, 2.0)  # the recorded one, 2.0
    assert recording.n_recorded == 3
    strict = tj.record(g, 1.0, 2.0, on_branch_change="raise")
    with pytest.raises(BranchChangeError, match="was true when recorded, now false"):
        strict.value(1.0, args=(0.5,))
    assert strict.value(1.0) == 2.0


def test_a_recording_made_again_has_the_parameters_of_the_call():
    recording = tj.record(lambda x, p: x * p if x > 0.0 else x * x * p, 1.0, 2.0)
    assert recording.value_and_grad(-2.0, args=(5.0,)) == (20.0, -20.0)
    assert recording.value_and_grad(-2.0, args=(3.0,)) == (12.0, -12.0)
    assert recording.value_and_grad(-2.0) == (8.0, -8.0)
    assert recording.n_recorded == 2


# The tape.


def test_adjoints_of_data_are_not_computed(rng):
    recording = tj.record(of_passive_work, np.ones(2), rng.standard_normal((6, 2)), 1.0)
    tape = recording.tape
    known = passive(tape)
    assert known.runs.size + known.tables.size > 5
    # A workspace that is used again must be left as zeros.
    x = rng.standard_normal(2)
    expected = recording.grad(x)
    for _ in range(3):
        assert_array_equal(recording.grad(x), expected)


def test_large_workspaces_are_left_as_zeros(rng):
    """Parameters that scalars read, and an output that is a parameter, take adjoints."""
    data = rng.standard_normal(1 << 15)

    def f(x, data):
        return np.concatenate([x * data[3], [data[5]], [data[7] * data[9]], x * np.sum(data)])

    recording = tj.record(f, np.ones(2), data)
    plain = tj.record(lambda x: np.sum(np.repeat(x, 1 << 14) ** 2), np.ones(2))
    for _ in range(3):
        assert_array_equal(
            recording.vjp(np.ones(2), np.ones(6))[1], np.full(2, data[3] + recording.value(np.ones(2))[4])
        )
        assert_array_equal(plain.grad(np.ones(2)), np.full(2, 2.0 * (1 << 14)))


def test_activity(rng):
    recording = tj.record(of_passive_work, np.ones(2), rng.standard_normal((6, 2)), 1.0)
    for tape in (recording.tape, recording.tape.expand()):
        active = activity(tape)
        assert active[tape.input_index()].all()
        tangent_bound = np.zeros(tape.n_slots, bool)
        for i in tape.input_index():
            tangent = np.zeros(tape.n_slots)
            tangent[i] = 1.0
            sweeps.tangent(tape, tangent)
            tangent_bound |= tangent != 0.0
        assert not (tangent_bound & ~active).any()
        for first, size in tape.parameter_slots:
            assert not active[first : first + size].any()
        assert (~active).sum() > 60


def test_expanded_tapes_keep_their_parameters(rng):
    recording = tj.record(of_arrays, np.ones(2), rng.standard_normal((6, 2)), rng.standard_normal(6))
    tape, expanded = recording.tape, recording.tape.expand()
    assert expanded.parameter_slots == tape.parameter_slots
    assert expanded.first_operation == tape.first_operation
    assert expanded.n_inputs == 2
    again = pickle.loads(pickle.dumps(tape))
    assert again.parameter_slots == tape.parameter_slots


def test_parameters_of_a_define_by_run_tape():
    with tj.Tape() as tape:
        x, p = tape.input(2.0), tape.parameter(np.array([3.0, 4.0]))
        f = np.sum(p * x * x)
    assert "%2 = parameter -> 3.0" in tape.to_string()
    assert "inputs 1, parameters 2, outputs 0" in str(tape)
    f.backward()
    assert x.grad == 28.0
    assert tape.n_inputs == 1
    tape.forward([1.0])
    assert f.value == 7.0


# Threads, pickles, optimisers.


@pytest.mark.parametrize("is_compiled", [False, True])
def test_threads_with_parameters_of_their_own(is_compiled, rng):
    def f(x, data, scale):
        total = 0.0
        for i in range(data.size):
            total += scale * x[0] * data[i] + x[1] ** 2 * data[i]
        return total

    g = numba.njit(f, nogil=True) if is_compiled else f
    recording = tj.record(g, np.ones(2), np.ones(40), 1.0)
    x = np.array([0.5, 2.0])
    drawn = [[(rng.standard_normal(40), float(k)) for k in range(40)] for _ in range(4)]
    expected = [[tj.record(g, x, *args).value_and_grad(x) for args in part[:8]] for part in drawn]
    kept = recording.value_and_grad(x)
    barrier = threading.Barrier(4)

    def work(k):
        barrier.wait()
        wrong = 0
        for args, (value, gradient) in zip(drawn[k][:8] * 10, expected[k] * 10, strict=True):
            got = recording.value_and_grad(x, args=args)
            wrong += got[0] != value or (got[1] != gradient).any()
            got = recording.value_and_grad(x)
            wrong += got[0] != kept[0] or (got[1] != kept[1]).any()
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0] * 4
    assert recording.n_recorded == 1


def test_a_pickled_recording_takes_new_parameters(rng):
    data, weights = rng.standard_normal((6, 2)), rng.standard_normal(6)
    recording = tj.record(lambda x, d, w: of_arrays(x, d, w), np.ones(2), data, weights)
    recording.value(np.ones(2), args=(data + 1.0, weights))
    again = pickle.loads(pickle.dumps(recording))
    x = rng.standard_normal(2)
    for args in (None, (data, weights), (weights[:, None] * data, weights), None):
        assert again.value(x, args=args) == recording.value(x, args=args)
        assert_array_equal(again.grad(x, args=args), recording.grad(x, args=args))
    assert again.n_recorded == 1


def test_minimising_for_new_data(rng):
    data, weights = rng.standard_normal((6, 2)), rng.uniform(0.5, 1.0, 6)
    recording = tj.record(of_arrays, np.ones(2), data, weights)
    for method in ("L-BFGS-B", "Newton-CG", "trust-exact"):
        new = rng.standard_normal((6, 2))
        ours = tj.minimize(recording, np.ones(2), args=(new, weights), method=method)
        assert_allclose(ours.x, tj.minimize(of_arrays, np.ones(2), args=(new, weights), method=method).x, atol=1e-6)
    assert recording.n_recorded == 1
    assert tj.minimize(of_arrays, np.ones(2), args=(data, weights)).n_recorded == 1


def test_a_transform_of_a_parameter_inside(rng):
    """An inner derivative that reads a parameter, and one with respect to a number made of it."""

    def f(x, p):
        return tj.grad(lambda y: y**3 * p)(x) + x * tj.grad(lambda q: q**2 * x)(p)

    recording = tj.record(f, 2.0, 3.0)
    assert recording.parameters == (1,)
    x, p = 1.5, 0.7
    value, gradient = recording.value_and_grad(x, args=(p,))
    assert_allclose(value, 3 * x**2 * p + x * 2 * p * x, rtol=1e-14)
    assert_allclose(gradient, 6 * x * p + 4 * p * x, rtol=1e-14)
    assert recording.n_recorded == 1


def of_two(program):
    """A scalar function of an array and a parameter that an array program computes from both; most of it depends on one of them alone."""

    def f(x, p):
        both, alone = [x, p], [p]
        for kind, i, j, k in program:
            both.append(programs._ARRAY[kind](both, i, j, k))
            alone.append(programs._ARRAY[kind](alone, i, k, j))
        total = np.sum(x * p) * 0.01
        for n, array in enumerate((both[1:] + alone[1:])[-6:]):
            total = total + np.sum(array * programs._data(np.shape(array), n)) / np.sqrt(np.size(array))
        return total * np.mean(alone[-1]) + np.sum(x * np.sin(np.mean(alone[-1]) * p) * np.cos(p))

    return f


@settings(max_examples=120, deadline=None)
@given(program=programs.array_programs(max_size=6), shape=programs.shapes(), seed=st.integers(0, 10**6))
def test_programs_have_the_derivatives_that_they_have_without_parameters(program, shape, seed):
    """To the bit: against a recording in which the parameter is an input, whose adjoint is computed and left out."""
    f = of_two(program)
    x, p, other_x, other_p, v = (programs.points(shape, seed + k) for k in range(5))
    recording, whole = tj.record(f, x, p), tj.record(f, x, p, argnums=(0, 1))
    assert recording.parameters == (1,)
    nothing = np.zeros(shape)
    with np.errstate(all="ignore"):
        for at, parameter in ((x, p), (other_x, other_p), (other_x, p)):
            value, x_bar = recording.value_and_grad(at, args=(parameter,))
            expected, bars = whole.value_and_grad((at, parameter))
            assert value == expected
            assert_array_equal(x_bar, bars[0])
            assert_array_equal(recording.jvp(at, v, args=(parameter,))[1], whole.jvp((at, parameter), (v, nothing))[1])
            assert_array_equal(recording.hvp(at, v, args=(parameter,)), whole.hvp((at, parameter), (v, nothing))[0])
            assert_array_equal(recording.jacobian(at, args=(parameter,)), whole.jacobian((at, parameter))[0])
    tape = recording.tape
    active = activity(tape)
    reached = np.zeros(tape.n_slots, bool)
    tangent = np.zeros(tape.n_slots)
    tangent[tape.input_index()] = v.reshape(-1)
    sweeps.tangent(tape, tangent)
    reached = tangent != 0.0
    assert not (reached & ~active).any()
    assert_array_equal(activity(tape.expand())[-1], active[-1])
