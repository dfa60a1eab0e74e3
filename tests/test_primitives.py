"""Primitives that users add: usable at once in every front end and sweep, and refused where their row cannot be right."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit import ops, sweeps
from tapejit.errors import DomainError
from tapejit.ops import Interval

softsign = tj.primitive("primitives_softsign", "x / (1 + abs(x))", "1 / square(1 + abs(x))", kink="1 at x = 0")
blend = tj.primitive("primitives_blend", "x * exp(-y) + y * y", ("exp(-y)", "-x * exp(-y) + 2 * y"))
half_log = tj.primitive("primitives_half_log", "log(x) / 2", "1 / (2 * x)", domain=(Interval(low=0.0, low_open=True),))
by_hand = tj.primitive(
    "primitives_by_hand", "sin(x) * sin(x)", "2 * sin(x) * cos(x)", seconds=("2 * (cos(x) * cos(x) - sin(x) * sin(x))",)
)
of_another = tj.primitive(
    "primitives_of_another", "primitives_softsign(x) * y", ("y / square(1 + abs(x))", "primitives_softsign(x)")
)

# Each beside the same in supported functions.
PAIRS = {
    "softsign": (softsign, lambda x: x / (1.0 + abs(x)), 1),
    "blend": (blend, lambda x, y: x * np.exp(-y) + y * y, 2),
    "half_log": (lambda x: half_log(x + 4.0), lambda x: 0.5 * np.log(x + 4.0), 1),
    "seconds by hand": (by_hand, lambda x: np.sin(x) ** 2, 1),
    "of another": (of_another, lambda x, y: x / (1.0 + abs(x)) * y, 2),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


def test_on_plain_numbers_and_arrays(pair, rng):
    ours, reference, arity = pair
    numbers = rng.uniform(-2.0, 2.0, arity)
    assert_allclose(ours(*numbers), reference(*numbers), rtol=1e-14)
    assert isinstance(softsign(0.5), float)
    for shape in [(3,), (2, 3), (0,), (1, 1), (600,)]:
        arrays = rng.uniform(-2.0, 2.0, (arity, *shape))
        assert ours(*arrays).shape == shape
        assert_allclose(ours(*arrays), reference(*arrays), rtol=1e-14, atol=1e-16)


def test_lists_integers_and_broadcasting():
    assert_array_equal(softsign([1, 3]), [0.5, 0.75])
    assert softsign(1) == 0.5
    assert blend(np.ones((3, 1)), np.zeros(2)).shape == (3, 2)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_on_scalars_nested(pair, depth, rng):
    ours, reference, arity = pair
    numbers = rng.uniform(0.3, 2.0, arity)
    for which in range(arity):
        f, g, forward = ours, reference, ours
        for _ in range(depth):
            f, g = tj.grad(f, which), tj.grad(g, which)
            forward = along(forward, which)
        assert_allclose(f(*numbers), g(*numbers), rtol=1e-11, atol=1e-13)
        assert_allclose(forward(*numbers), g(*numbers), rtol=1e-11, atol=1e-13)


def along(f, which):
    return lambda *args: tj.jvp(f, which)(*args, 1.0)[1]


@pytest.mark.parametrize("n", [2, 7, 300, 600])
def test_on_arrays_in_every_sweep(pair, n, rng):
    ours, reference, arity = pair

    def f(x):
        y = ours(*(np.sin(x), x[::-1] * 0.5)[:arity])
        return np.sum(y * x)

    def g(x):
        y = reference(*(np.sin(x), x[::-1] * 0.5)[:arity])
        return np.sum(y * x)

    x, other, v = rng.uniform(-2.0, 2.0, (3, n))
    options = {"rtol": 1e-11, "atol": 1e-12}
    assert_allclose(tj.value_and_grad(f)(x)[1], tj.grad(g)(x), **options)
    assert_allclose(tj.hvp(f)(x, v), tj.hvp(g)(x, v), **options)
    assert_allclose(tj.jvp(tj.grad(f))(x, v)[1], tj.hvp(g)(x, v), **options)
    assert_allclose(tj.grad(lambda x: np.sum(tj.grad(f)(x) * v))(x), tj.hvp(g)(x, v), **options)
    recording = tj.record(f, x)
    assert_allclose(recording.value(other), g(other), **options)
    assert_allclose(recording.grad(other), tj.grad(g)(other), **options)
    assert_allclose(recording.jvp(other, v)[1], tj.jvp(g)(other, v)[1], **options)
    # Blocks against scalar slots, K seeds.
    scalars = recording.expand()
    assert not scalars.blocks()
    value = scalars.value.copy()
    scalars.set_inputs(value, other)
    sweeps.forward(scalars, value)
    assert_allclose(value[scalars.output_slots], [g(other)], **options)
    seeds = np.zeros((scalars.n_slots, 2))
    seeds[scalars.output_slots] = [[1.0, -3.0]]
    sweeps.reverse(scalars, seeds, value)
    assert_allclose(seeds[scalars.input_index()], np.outer(tj.grad(g)(other), [1.0, -3.0]), **options)
    # Pickled.
    again = pickle.loads(pickle.dumps(recording))
    assert_array_equal(again.grad(other), recording.grad(other))


def test_one_active_operand_and_one_plain(rng):
    data = rng.uniform(0.5, 2.0, 5)
    x = rng.uniform(0.5, 2.0, 5)
    assert_allclose(tj.grad(lambda x: np.sum(blend(x, data)))(x), np.exp(-data), rtol=1e-14)
    assert_allclose(tj.grad(lambda x: np.sum(blend(data, x)))(x), -data * np.exp(-x) + 2.0 * x, rtol=1e-14)
    assert_allclose(tj.grad(lambda x: blend(x, 2.0))(1.5), np.exp(-2.0), rtol=1e-15)
    assert_allclose(tj.grad(lambda x: blend(2.0, x))(1.5), -2.0 * np.exp(-1.5) + 3.0, rtol=1e-15)
    assert_allclose(tj.grad(lambda x: np.sum(blend(x, data)))(1.5), np.sum(np.exp(-data)), rtol=1e-14)


def test_they_stand_on_tapes_under_their_name():
    tape = tj.record(lambda x: np.sum(softsign(x)) + softsign(x[0]), np.ones(3)).tape
    assert tape.histogram()["[primitives_softsign]"] == 3
    assert tape.histogram()["primitives_softsign"] == 1
    assert "primitives_softsign %1" in tape.to_string()


def test_check_grads_accepts_them(pair):
    ours, _, arity = pair
    tj.testing.check_grads(lambda x: np.sum(ours(*(x, x[::-1])[:arity])), np.array([0.5, 1.5, -0.7]))


def test_debug_names_the_domain_and_the_primitive():
    with (
        tj.debug(),
        pytest.raises(
            DomainError, match=r"primitives_half_log\(x\) needs x > 0, got x = -1.0 in slot 2 \(test_primitives.py:\d+"
        ),
    ):
        tj.grad(lambda x: half_log(x))(-1.0)
    with tj.debug(), pytest.raises(DomainError, match=r"primitives_half_log\(x\) needs x > 0, got x = -2.0"):
        tj.grad(lambda x: np.sum(half_log(x)))(np.array([1.0, -2.0]))
    with np.errstate(all="ignore"):
        assert np.isnan(tj.value_and_grad(half_log)(-1.0)[0])


def test_partials_outside_the_range_of_the_value():
    """inf and NaN propagate as in the built-in rows."""
    assert softsign(np.inf) != softsign(np.inf) or softsign(np.inf) == 1.0
    assert tj.grad(softsign)(1e200) == 0.0
    assert np.isnan(tj.grad(softsign)(np.nan))


# The row itself.


def test_the_same_row_again_is_the_one_already_there():
    n_rows = len(ops.USER)
    again = tj.primitive("primitives_softsign", "x / (1 + abs(x))", ("1 / square(1 + abs(x))",), kink="1 at x = 0")
    assert len(ops.USER) == n_rows
    assert again.op == softsign.op
    assert again(3.0) == 0.75


def test_a_primitive_pickles():
    assert pickle.loads(pickle.dumps(softsign))(3.0) == 0.75
    assert pickle.loads(pickle.dumps(half_log)).op == half_log.op
    assert pickle.loads(pickle.dumps(by_hand)).op == by_hand.op
    assert repr(softsign) == "<primitive primitives_softsign: x / (1 + abs(x))>"


BAD = {
    "another definition": (
        ("primitives_softsign", "x", "1"),
        "there is a primitive 'primitives_softsign' already, with another definition",
    ),
    "another kink only": (
        ("primitives_softsign", "x / (1 + abs(x))", "1 / square(1 + abs(x))"),
        "already, with another definition",
    ),
    "a built-in name": (("sin", "x", "1"), "there is a primitive 'sin' already"),
    "a name that is none": (("not a name", "x", "1"), "must be an identifier, got 'not a name'"),
    "no partials": (("primitives_bad", "x", ()), "one or two partials; got 0"),
    "three partials": (("primitives_bad", "x", ("1", "1", "1")), "one or two partials; got 3"),
    "an unknown function": (("primitives_bad", "erfcx(x)", "1"), "no primitive 'erfcx'; the nearest is 'erfc"),
    "an unknown function in a partial": (("primitives_bad", "x", "foo(x)"), "no primitive 'foo'"),
    "an unknown name": (("primitives_bad", "x + z", "1"), "z"),
    "an operand that it lacks": (("primitives_bad", "x + y", "1"), "reads y, which it lacks"),
    "an operand that a partial lacks": (("primitives_bad", "x", "y"), "reads y, which it lacks"),
    "the result in the value": (("primitives_bad", "x + v", "1"), "its value reads v, which is what it gives"),
    "too many operands of a call": (("primitives_bad", "sin(x, x)", "1"), "calls sin with 2 operands; it takes 1"),
    "too few operands of a call": (("primitives_bad", "hypot(x)", "1"), "calls hypot with 1 operands; it takes 2"),
    "too few operands of a select": (("primitives_bad", "select(x > 0, x)", "1"), "calls select"),
    "itself": (("primitives_bad", "primitives_bad(x) + 1", "1"), "its value calls itself"),
    "storage": (("primitives_bad", "constant()", "1"), "constant"),
    "a statement": (("primitives_bad", "y = x", "1"), None),
    "an attribute": (("primitives_bad", "x.real", "1"), None),
    "a string": (("primitives_bad", "'a'", "1"), None),
    "an open bracket": (("primitives_bad", "sin(x", "cos(x)"), None),
    "nothing": (("primitives_bad", "", "1"), None),
    "a comprehension": (("primitives_bad", "[x for x in y]", "1"), None),
    "an import": (("primitives_bad", "__import__('os')", "1"), None),
    "too few domains": (("primitives_bad", "x + y", ("1", "1"), (Interval(),)), "2 partials and 1 domains"),
    "too few second partials": (
        ("primitives_bad", "x * y", ("y", "x"), None, "", ("0",)),
        r"seconds are \(xx,\) for one operand",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_refused_and_leave_no_trace(case):
    arguments, message = BAD[case]
    n_rows = len(ops.USER)
    with pytest.raises(ValueError, match=message):
        tj.primitive(*arguments)
    assert len(ops.USER) == n_rows
    assert "primitives_bad" not in ops.BY_NAME and "primitives_bad" not in ops.CODE


def test_the_wrong_number_of_operands_is_refused():
    for call in (lambda: softsign(1.0, 2.0), lambda: blend(1.0), lambda: tj.grad(lambda x: blend(x))(1.0)):
        with pytest.raises(TypeError, match="operands, got"):
            call()


def test_complex_and_text_are_refused():
    for bad in (1j, "a", None, np.array([1j]), [1.0, None]):
        with pytest.raises(TypeError, match="primitives_softsign takes real numbers, got dtype"):
            softsign(bad)
        with pytest.raises((TypeError, ValueError)):
            tj.grad(lambda x, bad=bad: blend(x, bad))(1.0)


def test_shapes_that_do_not_broadcast_are_refused():
    for f in (
        lambda: blend(np.ones(2), np.ones(3)),
        lambda: tj.grad(lambda x: np.sum(blend(x, np.ones(3))))(np.ones(2)),
    ):
        with pytest.raises(ValueError, match="broadcast"):
            f()
