"""Decisions that depend on values: a replay that would decide otherwise records again, raises or warns; one that would not, replays."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import tapejit as tj
from tapejit.errors import BranchChangeError, BranchChangeWarning, PassiveConversionError

X = np.array([0.5, 2.5, 1.5, -0.7])
OTHER = np.array([0.6, 2.4, 1.4, -0.8])  # every decision below is as for X
ACROSS = np.array([2.6, 0.4, -0.5, 1.3])  # every decision below is another one


def whole(x):
    """An active floor is an index; NumPy's own must be made an int."""
    return np.floor(x) if isinstance(x, tj.Variable) else int(np.floor(x))


def by_if(x):
    return np.sum(x**2) if x[0] > 1 else np.sum(x)


def by_while(x):
    y, n = x[0], 0
    while y < 2:
        y = y * 2.0
        n += 1
    return y * n


def by_and(x):
    return x[0] * x[1] if x[0] > 0 and x[2] > 0 else x[2]


def by_not(x):
    return x[1] if not x[0] > 1 else x[2] ** 2


def by_chain(x):
    return x[1] * x[1] if 0 < x[0] < 1 else x[2]


def by_conditional_assignment(x):
    y = x * 1.0
    if (x > 1.0).sum() > 1.5 and x[1] > x[0]:
        y[0] = x[1]
    return np.sum(y**2)


def by_floor_as_index(x):
    return x[whole(x[1])] * x[1]


def by_floor_as_range(x):
    total = 0.0
    for i in range(int(np.floor(x[1])) + 1):
        total = total + x[1] ** (i + 1)
    return total


def by_python_rounding(x):
    return [10.0, 20.0, 30.0, 40.0][round(x[1])] * x[1] + [1.0, 2.0, 3.0][int(np.trunc(np.abs(x[0])))] * x[0]


def by_slice(x):
    return np.sum(x[: whole(x[1])] ** 2)


def by_any(x):
    return np.sum(x**2) if np.any(x[:2] < 0.7) and np.any(x[:1] < 1.0) else np.sum(x)


def by_all(x):
    return np.sum(x**2) if np.all(x[:3] > 0) else np.sum(x)


def by_any_method(x):
    return x[0] if (x[2:] > 1.3).any() or (x[2:3] > 0).all() else x[1]


def by_equality(x):
    return np.sum(x) if np.sign(x[3]) == -1.0 else np.sum(x**3)


def by_searchsorted_in_active(x):
    return np.sum(x) * np.searchsorted(np.sort(x[:3]), x[3] + 1.5)


def by_data_index(x):
    data = np.array([1.0, 2.0, 3.0, 4.0])
    return np.sum(data[x > 1.0]) * x[0]


def by_assignment_through_a_mask(x):
    y = x * 1.0
    y[y < 0] = 0.0
    y[x > 1] *= 3.0
    return np.sum(y)


def by_mask_of_data(x):
    y = np.ones(4)
    y[x < 0] = 0.0
    return np.sum(y * x)


def by_where_places(x):
    (places,) = np.where(x > 1.0)
    return np.sum(x[places] * places)


DECISIONS = {
    "if": by_if,
    "while": by_while,
    "and": by_and,
    "not": by_not,
    "chained comparison": by_chain,
    "bool": lambda x: x[1] ** (2 if bool(x[0] > 1) else 1),
    "if of a number": lambda x: np.sum(x) if np.maximum(x[3], 0.0) else np.sum(x**2),
    "conditional assignment": by_conditional_assignment,
    "boolean index": lambda x: np.sum(x[x > 1.0] ** 2),
    "boolean index of data": by_data_index,
    "boolean assignment": by_assignment_through_a_mask,
    "boolean assignment to data": by_mask_of_data,
    "np.nonzero": lambda x: np.sum(x[np.nonzero(x > 1.0)]),
    "np.flatnonzero": lambda x: x[np.flatnonzero(x > 1.0)[0]],
    "np.argwhere": lambda x: x[np.argwhere(x > 1.0)[0, 0]],
    "np.where of one argument": by_where_places,
    "np.count_nonzero": lambda x: x[0] * np.count_nonzero(x > 2.3) + x[1] * np.count_nonzero(x[:1] > 1.0),
    "np.compress": lambda x: np.sum(np.compress(x > 1.0, x**2)),
    "np.extract": lambda x: np.sum(np.extract(x > 1.0, x**2)),
    "np.asarray of a comparison": lambda x: np.sum(np.asarray(x > 1.0) * x),
    "floor as an index": by_floor_as_index,
    "floor in a range": by_floor_as_range,
    "floor in a slice": by_slice,
    "int of floor": lambda x: x[int(np.floor(x[1]))] * 2.0,
    "round and trunc": by_python_rounding,
    "np.argmax": lambda x: x[np.argmax(x)] * x[3],
    "np.argmin": lambda x: x[x.argmin()] * x[0],
    "np.argsort": lambda x: np.sum(x[np.argsort(x)] * np.arange(4.0)),
    "np.sort": lambda x: np.sum(np.sort(x) ** np.arange(1, 5)),
    "np.median": lambda x: np.median(x[:3]),
    "sorted": lambda x: sorted(x)[0] * x[0],
    "max of Python": lambda x: max(x) * x[0],
    "np.searchsorted": lambda x: np.searchsorted([0.0, 1.0, 2.0], x[0]) * x[0],
    "np.searchsorted in active": by_searchsorted_in_active,
    "np.digitize": lambda x: np.sum(np.digitize(x, [0.0, 1.0, 2.0]) * x),
    "np.interp": lambda x: np.sum(np.interp(x, [-1.0, 0.0, 1.0, 2.0, 3.0], [1.0, 4.0, 9.0, 16.0, 25.0])),
    "np.any in an if": by_any,
    "np.all in an if": by_all,
    "any and all of the array": by_any_method,
    "equality": by_equality,
    "in": lambda x: x[0] if 1.0 in np.sign(x[:1] - 1.0) else x[1],
    "np.maximum of an object array": lambda x: np.max(np.array([x[0], x[1]])) * x[0],
}
each_decision = pytest.mark.parametrize("f", DECISIONS.values(), ids=DECISIONS)


@each_decision
def test_a_replay_that_decides_alike_replays(f):
    tape = tj.record(f, X, on_branch_change="raise")
    assert len(tape.tape.guards.slot) > 0
    value, x_bar = tape.value_and_grad(OTHER)
    assert_allclose(value, f(OTHER), rtol=1e-14)
    assert_allclose(x_bar, tj.grad(f)(OTHER), rtol=1e-14)
    assert tape.n_recorded == 1


@each_decision
def test_a_replay_across_a_decision_records_again(f):
    tape = tj.record(f, X)
    for x in (ACROSS, X, ACROSS):
        value, x_bar = tape.value_and_grad(x)
        assert_allclose(value, f(x), rtol=1e-14)
        assert_allclose(x_bar, tj.grad(f)(x), rtol=1e-14)
    assert tape.n_recorded > 1


@each_decision
def test_a_replay_across_a_decision_raises(f):
    tape = tj.record(f, X, on_branch_change="raise")
    for replay in (tape.value, tape.grad, lambda x: tape.jvp(x, x), lambda x: tape.hvp(x, x)):
        with pytest.raises(BranchChangeError, match=r"was .* when recorded, now .*test_numpy_decisions\.py:\d+"):
            replay(ACROSS)
    assert_allclose(tape.value(OTHER), f(OTHER), rtol=1e-14)


@each_decision
def test_a_replay_across_a_decision_warns(f):
    tape = tj.record(f, X, on_branch_change="warn")
    with pytest.warns(BranchChangeWarning, match=r"when recorded, now"), np.errstate(all="ignore"):
        tape.value_and_grad(ACROSS)
    assert tape.n_recorded == 1


NO_DECISIONS = {
    "np.max": np.max,
    "np.min": lambda x: np.min(x) * x[0],
    "np.where": lambda x: np.sum(np.where(x > 1, x**2, x)),
    "np.clip": lambda x: np.sum(np.clip(x, 0.0, 1.0)),
    "np.maximum": lambda x: np.sum(np.maximum(x, x[::-1])),
    "np.abs": lambda x: np.sum(np.abs(x)),
    "np.linalg.norm inf": lambda x: np.linalg.norm(x, np.inf),
    "np.floor": lambda x: np.sum(np.floor(x) * x),
    "np.sign": lambda x: np.sum(np.sign(x) * x),
    "comparison times value": lambda x: np.sum((x > 1.0) * x),
    "sum of a comparison": lambda x: np.sum(x > 1.0) * x[0],
    "np.any as a value": lambda x: np.where(np.any(x[:1] > 1), x[0], x[1]),
    "np.select": lambda x: np.sum(np.select([x > 1, x > 0], [x, x**2], 0.0)),
    "np.maximum.accumulate": lambda x: np.sum(np.maximum.accumulate(x)),
    "np.ptp": lambda x: np.ptp(x),
    "np.nan_to_num": lambda x: np.sum(np.nan_to_num(x)),
    "np.sinc": lambda x: np.sum(np.sinc(x)),
    "len and shape": lambda x: np.sum(x) * len(x) * x.shape[0],
}


@pytest.mark.parametrize("f", NO_DECISIONS.values(), ids=NO_DECISIONS)
def test_a_value_is_no_decision(f):
    tape = tj.record(f, X, on_branch_change="raise")
    assert len(tape.tape.guards.slot) == 0
    for x in (OTHER, ACROSS):
        value, x_bar = tape.value_and_grad(x)
        assert_allclose(value, f(x), rtol=1e-14)
        assert_allclose(x_bar, tj.grad(f)(x), rtol=1e-14)


def test_ties_are_decided_as_numpy_decides_them():
    x = np.array([1.0, 3.0, 3.0, 0.0])
    tape = tj.record(lambda x: x[np.argmax(x)] * 2.0, x)
    for y in (x, np.array([1.0, 3.0, 2.0, 0.0]), np.array([3.0, 3.0, 3.0, 3.0]), np.array([1.0, 2.0, 3.0, 0.0])):
        expected = np.zeros(4)
        expected[np.argmax(y)] = 2.0
        assert tape.grad(y).tolist() == expected.tolist()
    order = tj.record(lambda x: x[np.argsort(x, kind="stable")] * np.arange(4.0), x)
    for y in (x, x[::-1].copy(), np.ones(4), np.array([2.0, 2.0, 1.0, 1.0])):
        expected = np.zeros((4, 4))
        expected[np.arange(4), np.argsort(y, kind="stable")] = np.arange(4.0)
        assert order.jacobian(y).tolist() == expected.tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_searchsorted_on_the_edges(side):
    grid = np.array([0.0, 1.0, 1.0, 2.0])
    tape = tj.record(lambda x: x * np.searchsorted(grid, x, side=side), np.array([0.5]))
    for x in (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, np.inf):
        with np.errstate(invalid="ignore"):
            assert tape.value(np.array([x])).tolist() == [x * np.searchsorted(grid, x, side=side)]


def test_recorded_again_at_each_of_many_branches():
    rng = np.random.default_rng(4)
    tapes = {name: tj.record(f, X) for name, f in DECISIONS.items()}
    for _ in range(10):
        x = rng.uniform(0.1, 2.9, 4)
        for name, f in DECISIONS.items():
            assert_allclose(tapes[name].value(x), f(x), rtol=1e-13, err_msg=name)


def test_a_guard_inside_a_nested_gradient_is_seen_by_the_outer_replay():
    def inner(z):
        return z**3 if z > 1 else z**2

    tape = tj.record(lambda x: tj.grad(inner)(x[0]) * x[1], np.array([2.0, 1.0]))
    assert_allclose(tape.value([3.0, 1.0]), 27.0)
    assert_allclose(tape.value([0.5, 1.0]), 1.0)
    assert tape.n_recorded == 2


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("bins", [[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]], ids=["increasing", "decreasing"])
def test_digitize_at_the_edges_of_bins(bins, right):
    x = np.array([1.0, 0.0, -1.0, 0.5, 7.0])
    found = []
    tj.grad(lambda x: found.append(np.digitize(x, bins, right)) or np.sum(x))(x)
    assert found[0].tolist() == np.digitize(x, bins, right).tolist()


def test_an_integer_element_of_a_block_is_a_decision():
    x = np.full(300, 1.3)
    recording = tj.record(lambda x: int(np.floor(x * 2.0)[3]) * x[3], x, on_branch_change="raise")
    assert recording.grad(x)[3] == 2.0
    with pytest.raises(BranchChangeError):
        recording.grad(x + 0.5)


def test_a_real_element_of_a_block_is_not_an_integer_whatever_the_memory_held_before():
    for _ in range(2):  # the memory of this tape serves the next one
        with tj.Tape() as tape:
            x = tape.input(1.5)
            for _ in range(20_000):
                np.floor(x)
        del tape, x
        with pytest.raises(PassiveConversionError, match="int"):
            tj.grad(lambda x: int((x * 2.5)[1000]) * x[1000])(np.full(20_000, 1.3))


def test_argsort_chooses_among_equals_as_numpy_does():
    x = np.array([2.0, 1.0] * 20)
    found = []
    tj.grad(lambda x: found.extend([np.argsort(x), np.argsort(x, kind="stable")]) or np.sum(x))(x)
    assert found[0].tolist() == np.argsort(x).tolist()
    assert found[1].tolist() == np.argsort(x, kind="stable").tolist()
