"""The tape's storage: slots, bytes, constants, growth and its limit, printing, pickling, blocks and their expansion."""

import itertools
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit import ops, sweeps, workspace
from tapejit.errors import TapeError, TapeFullError
from tapejit.layout import ELEMENTWISE, MATMUL, SUM
from tapejit.tape import FlatTape
from tapejit.workspace import extended

# Slots and bytes.


def test_a_slot_is_one_instruction_and_its_number_is_its_position():
    with tj.Tape() as tape:
        x, y = tape.input(3.0), tape.input(4.0)
        z = x * y
        w = z - x
    assert [v.slot for v in (x, y, z, w)] == [1, 2, 3, 4]
    assert tape.n_slots == 5
    assert_array_equal(tape.opcode, [ops.CONSTANT, ops.INPUT, ops.INPUT, ops.MUL, ops.SUB])
    assert_array_equal(tape.lhs, [0, 0, 0, 1, 3])
    assert_array_equal(tape.rhs, [0, 0, 0, 2, 1])
    assert_array_equal(tape.value, [0.0, 3.0, 4.0, 12.0, 9.0])
    assert [part.dtype for part in (tape.opcode, tape.lhs, tape.rhs, tape.value)] == [
        np.uint8,
        np.int32,
        np.int32,
        np.float64,
    ]


def test_operands_stand_before_their_results(rng):
    recording = tj.record(lambda x: sum((np.sin(x_i) * x_i / (1.5 + x_i) for x_i in x), 0.0), rng.uniform(0.0, 1.0, 50))
    tape = recording.tape
    later = np.arange(1, tape.n_slots)
    assert (tape.lhs[1:] < later).all() and (tape.rhs[1:] < later).all()


@pytest.mark.parametrize("n_operations", [0, 1, 1000, 70_000])
def test_a_scalar_tape_takes_17_bytes_a_slot(n_operations):
    with tj.Tape() as tape:
        x = tape.input(1.0)
        for _ in range(n_operations):
            x = x * x
    assert tape.n_slots == n_operations + 2
    assert tape.nbytes == 17 * tape.n_slots


def test_bytes_count_index_tables_copies_and_guards():
    data = np.arange(100.0)
    with tj.Tape() as tape:
        x = tape.input(data)
        before = tape.nbytes
        x * data  # a block with a copy
        assert tape.nbytes - before >= 17 * 100 + 800
        before = tape.nbytes
        np.sin(x[np.arange(99, -1, -1)])
        assert tape.nbytes - before >= 17 * 100 + 400
        before = tape.nbytes
        assert x[1] > 0.5
        assert tape.nbytes - before > 2 * 17


def test_one_copy_of_data_that_is_used_again():
    data = np.arange(1000.0)
    with tj.Tape() as tape:
        x = tape.input(data)
        x * data
        before = tape.nbytes
        x * data
        assert tape.nbytes - before < 17 * 1000 + 500


def test_changing_data_after_use_changes_nothing():
    data = np.arange(1.0, 4.0)
    with tj.Tape() as tape:
        x = tape.input(np.ones(3))
        y = x * data
        data[:] = 7.0
        z = x * data
        f = np.sum(y) + np.sum(z)
    data[:] = -1.0
    f.backward()
    assert_array_equal(x.grad, [8.0, 9.0, 10.0])


# Constants.


def test_equal_constants_share_a_slot():
    with tj.Tape() as tape:
        x = tape.input(2.0)
        y = (x + 3.0) * (3.0 - x) + 3
    assert tape.histogram() == {"constant": 2, "add": 2, "input": 1, "sub": 1, "mul": 1}
    assert y.value == 8.0


def test_zero_and_minus_zero_are_different_constants():
    with tj.Tape() as tape:
        x = tape.input(1.0)
        plus, minus = x / 0.0, x / -0.0
        assert tape.constant(0.0) == 0
        assert tape.constant(-0.0) != 0
    assert (plus.value, minus.value) == (math.inf, -math.inf)
    tape.forward([2.0])
    assert (plus.value, minus.value) == (math.inf, -math.inf)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 5e-324, 1e308])
def test_special_constants_are_kept(number):
    with tj.Tape() as tape:
        x = tape.input(1.0)
        y = x * number
        z = x * number
    tape.forward([1.0])
    assert_array_equal([y.value, z.value], [number, number])
    if number == number:
        assert tape.n_slots == 5


def test_one_nan_takes_one_slot():
    with tj.Tape() as tape:
        assert tape.constant(math.nan) == tape.constant(math.nan)


def test_an_integer_and_a_float_of_one_value_share_a_slot():
    with tj.Tape() as tape:
        x = tape.input(1.0)
        (x + 2, x + 2.0, x + np.float64(2.0), x + np.int64(2))
    assert tape.histogram()["constant"] == 2


# Growth and its limit.


def test_a_tape_grows_past_every_buffer():
    n = 200_000  # several times what is staged
    with tj.Tape() as tape:
        x = tape.input(0.5)
        y = x
        for _ in range(n):
            y = y + 1.0
    assert tape.n_slots == n + 3
    assert y.value == n + 0.5
    y.backward()
    assert x.grad == 1.0


def test_values_survive_growth_while_arrays_are_recorded(rng):
    numbers = rng.standard_normal(300)
    with tj.Tape() as tape:
        x = tape.input(numbers)
        parts = [np.sin(x * k) for k in range(200)]
    for k, part in enumerate(parts):
        assert_array_equal(part.value, np.sin(numbers * k))
    assert tape.n_slots > 300 * 400


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_full_tape_says_so_and_still_works(room):
    with tj.Tape() as tape:
        x = tape.input(3.0)
        y = x * x
        tape.max_slots = tape.n_slots + room
        tape._set_limit()
        z = y
        for _ in range(room):
            z = z + x
        with pytest.raises(TapeFullError, match="slots, but int32 slot numbers end at.*nothing is lost.*checkpointing"):
            z * x
        with pytest.raises(TapeFullError):
            z * 17.25  # a new constant
        with pytest.raises(TapeFullError):
            np.sin(z)
        assert tape.n_slots == tape.max_slots
    z.backward()
    assert x.grad == 6.0 + room
    tape.forward([1.0])
    assert z.value == 1.0 + room
    assert tape.opcode.size == tape.lhs.size == tape.rhs.size == tape.value.size == tape.n_slots


def test_a_block_that_does_not_fit_is_refused_whole():
    with tj.Tape() as tape:
        x = tape.input(np.ones(10))
        y = x + x
        tape.max_slots = tape.n_slots + 5
        before = tape.to_string()
        for compute in (
            lambda: x * y,
            lambda: np.outer(x, y) @ x,
            lambda: x[::-1] * 2.0,
            lambda: tape.input(np.ones(6)),
        ):
            with pytest.raises(TapeFullError, match="int32"):
                compute()
        assert tape.to_string() == before
        assert len(tape.block_at) == 1
        assert tape.input_slots == [(1, 10)]
        z = np.sum(y)
    z.backward()
    assert_array_equal(x.grad, np.full(10, 2.0))


def test_the_limit_is_what_int32_can_number():
    assert tj.Tape().max_slots == 2**31 - 1 == np.iinfo(np.int32).max


# Printing.


def small_tape():
    with tj.Tape() as tape:
        x = tape.input(np.array([1.0, 2.0, 3.0]))
        y = np.sin(x) * 2.0
        f = np.sum(y) if y[0] > 0.0 else -np.sum(y)
        f * f
    return tape


def test_print_shows_slots_bytes_inputs_and_opcodes():
    tape = small_tape()
    text = str(tape)
    assert text.startswith(f"Tape of {tape.n_slots} slots, {tape.nbytes} bytes")
    assert "inputs 3" in text and "blocks 3" in text and "guards 1" in text
    for name, count in tape.histogram().items():
        assert f"{name} {count}" in text
    assert repr(tape) == f"<Tape of {tape.n_slots} slots, 3 inputs>"


def test_the_histogram_counts_every_slot_once():
    tape = small_tape()
    histogram = tape.histogram()
    assert histogram["[sin]"] == histogram["[mul]"] == 3
    assert histogram["[sum]"] == histogram["greater"] == histogram["mul"] == 1
    assert sum(histogram.values()) == tape.n_slots
    assert list(histogram.values()) == sorted(histogram.values(), reverse=True)


def test_to_string_lists_instructions():
    with tj.Tape() as tape:
        x = tape.input(3.0)
        x * x + 1.0
    lines = tape.to_string().splitlines()
    assert lines[1:] == ["%1 = input -> 3.0", "%2 = mul %1 %1 -> 9.0", "%3 = constant -> 1.0", "%4 = add %2 %3 -> 10.0"]


@pytest.mark.parametrize("first", [0, 1, 3, 4, 100])
def test_to_string_stops_and_says_how_much_is_left(first):
    tape = small_tape()
    lines = tape.to_string(first=first).splitlines()
    whole = tape.to_string(first=10**6).splitlines()
    assert lines[:first] == whole[:first]
    if first < len(whole):
        assert len(lines) == first + 1
        assert lines[-1].startswith("... ") and lines[-1].endswith(" more slots")


def test_to_string_shows_a_block_as_a_run_of_slots():
    text = small_tape().to_string()
    assert "%4..%6 = [sin 3] %1" in text
    assert "[mul 3] %4 data" in text
    assert "[sum 3]" in text


def test_a_recording_prints_its_tape():
    recording = tj.record(lambda x: x * x, 3.0)
    assert str(recording) == str(recording.tape)
    assert recording.to_string(first=2) == recording.tape.to_string(first=2)
    assert "4 slots" in repr(recording) or f"{recording.n_slots} slots" in repr(recording)
    assert recording.nbytes == recording.tape.nbytes


# Blocks.


def blocks_of(f, *args):
    return tj.record(f, *args, argnums=tuple(range(len(args)))).tape.blocks()


def test_an_elementwise_operation_is_one_block():
    (block,) = blocks_of(lambda x: x * x, np.ones((3, 4)))
    assert (block.kind, block.name, block.size, block.first) == (ELEMENTWISE, "mul", 12, 13)
    assert block.shape == (12,)  # dimensions walked through at one stride are merged
    assert [operand.elements(block.shape).tolist() for operand in block.operands] == [list(range(1, 13))] * 2


def test_a_broadcast_operand_has_stride_zero():
    (block,) = blocks_of(lambda x, y: x + y, np.ones((3, 4)), np.ones(4))
    rows = block.operands[1].elements(block.shape).reshape(3, 4)
    assert_array_equal(rows, np.tile(np.arange(13, 17), (3, 1)))


def test_a_sum_knows_where_its_addends_go():
    (block,) = blocks_of(lambda x: np.sum(x, axis=0), np.arange(6.0).reshape(2, 3))
    assert (block.kind, block.name, block.size) == (SUM, "sum", 3)
    assert len(block.result_strides) == len(block.shape)


def test_a_matrix_product_is_one_block():
    (block,) = blocks_of(lambda a, b: a @ b, np.ones((2, 3)), np.ones((3, 4)))
    assert (block.kind, block.name, block.shape, block.size) == (MATMUL, "matmul", (2, 3, 4), 8)


def test_one_element_records_a_scalar_slot_and_none_record_nothing():
    assert not blocks_of(lambda x: x * x + 1.0, np.ones((1, 1)))
    tape = tj.record(lambda x: np.sin(x) * 2.0, np.zeros((0, 3))).tape
    assert tape.n_inputs == 0 and not tape.blocks() and tape.output_slots.size == 0


def test_structural_functions_record_nothing():
    tape = tj.record(lambda x: np.roll(np.flip(x.T)[::2].reshape(-1), 1), np.ones((4, 4))).tape
    assert tape.n_slots == 17


def test_an_assignment_after_use_leaves_what_a_block_has_read():
    def f(x):
        y = x.copy()
        z = y * 2.0
        y[1:] = 5.0
        w = y * 3.0
        y[...] = 0.0
        return np.sum(z) + np.sum(w * x)

    x = np.array([1.0, 2.0, 3.0])
    assert tj.value_and_grad(f)(x)[0] == 2 * 6 + 3 * 1 + 15 * 2 + 15 * 3
    assert_array_equal(tj.grad(f)(x), [2 + 3 * 2 * 1, 17.0, 17.0])


def test_joined_blocks_are_told_in_the_descriptor():
    """Elementwise blocks of one length that read each other at the same index only are swept together; a shift ends that."""

    def joins(f, n):
        tape = tj.record(f, np.linspace(0.0, 1.0, n)).tape
        return [tape.words[at + 6] >= 0 for at in tape.block_at if tape.words[at] == ELEMENTWISE]

    assert joins(lambda x: np.sin(x * x) + x, 1000) == [False, True, True]
    assert joins(lambda x: np.sin((x * x)[::-1]) + x, 1000)[1] is False
    assert joins(lambda x: np.sin(np.roll(x * x, 1)) + x, 1000)[1] is False
    assert not any(joins(lambda x: np.sin(x * x) + x, 8))


# Expansion.

DATA = np.array([[0.5, 1.5, -2.0], [3.0, 0.25, -1.0]])
EXPANDABLE = {
    "elementwise": lambda x: np.sum(np.sin(x) * x / 1.5),
    "broadcast": lambda x: np.sum(x * x[0] + x[:, :1]),
    "passive": lambda x: np.sum(x * DATA + DATA[::-1]),
    "sum over rows": lambda x: np.sum(np.exp(np.sum(x, axis=0))),
    "sum over columns": lambda x: np.sum(np.exp(np.sum(x, axis=1))),
    "sum of a transpose": lambda x: np.sum(np.exp(np.sum(x.T, axis=0))),
    "sum over one": lambda x: np.sum(np.sum(x[:1], axis=0) ** 2),
    "matmul": lambda x: np.sum((x @ x.T) ** 2),
    "passive matmul": lambda x: np.sum((DATA.T @ x) ** 2),
    "matrix and vector": lambda x: np.sum((x @ x[0]) ** 2),
    "where": lambda x: np.sum(np.where(x > 0.2, np.sin(x), x * x)),
    "fancy": lambda x: np.sum(np.sin(x[[0, 1, 1], [2, 0, 0]]) * x[1]),
    "scalar slots between": lambda x: np.sum(x * (x[0, 0] * x[1, 1])) + np.sum(x) ** 2,
    "branch": lambda x: np.sum(x * x) if x[0, 0] < 10.0 else np.sum(x),
    "array output": lambda x: np.cumsum(x, axis=1) * x,
    "output equal to an input": lambda x: x.T,
}


@pytest.mark.parametrize("name", EXPANDABLE)
def test_expand_gives_the_same_values_and_gradients(name, rng):
    recording = tj.record(EXPANDABLE[name], rng.uniform(-1.0, 1.0, (2, 3)))
    tape, scalars = recording.tape, recording.expand()
    assert not scalars.blocks()
    assert scalars.n_inputs == tape.n_inputs
    assert scalars.input_slots == tape.input_slots
    assert_allclose(scalars.value[scalars.output_slots], tape.value[tape.output_slots], rtol=1e-15, atol=1e-15)
    assert len(scalars.guards.slot) == len(tape.guards.slot)
    for _ in range(3):
        other = rng.uniform(-1.0, 1.0, (2, 3))
        value = scalars.value.copy()
        scalars.set_inputs(value, other)
        sweeps.forward(scalars, value)
        y, y_bar = recording.value(other), rng.standard_normal(tape.output_slots.size)
        assert_allclose(value[scalars.output_slots], np.ravel(y), rtol=1e-14, atol=1e-15)
        adjoint = sweeps.input_adjoint(scalars, scalars.output_slots, y_bar, value)
        assert_allclose(adjoint, np.ravel(recording.vjp(other, y_bar.reshape(np.shape(y)))[1]), rtol=1e-13, atol=1e-14)


def test_expand_keeps_guards_with_their_lines():
    recording = tj.record(lambda x: np.sum(x * x) if np.sum(x) > 0.0 else np.sum(x), np.ones(4))
    scalars = recording.expand()
    value = scalars.value.copy()
    scalars.set_inputs(value, -np.ones(4))
    sweeps.forward(scalars, value)
    message = scalars.branch_change(value)
    assert "greater" in message and "test_tape.py" in message


def test_expand_leaves_the_tape_alone():
    tape = small_tape()
    before = pickle.dumps(tape)
    tape.expand()
    assert pickle.dumps(tape) == before


def test_expand_of_a_scalar_tape_is_the_same_tape():
    tape = tj.record(lambda x: np.sin(x) * x + 3.0, 2.0).tape
    assert tape.expand().to_string() == tape.to_string()


# Pickling.

PICKLED = {
    "scalars": (lambda x: np.sin(x[0]) * x[1] + 3.0, np.array([1.0, 2.0])),
    "blocks": (lambda x: np.sum(np.sin(x) * x[::-1]), np.arange(5.0)),
    "data in C order": (lambda x: np.sum(np.arange(6.0).reshape(2, 3) * x), np.ones((2, 3))),
    "data in Fortran order": (lambda x: np.sum(np.asfortranarray(np.arange(6.0).reshape(2, 3)) * x), np.ones((2, 3))),
    "transposed data": (lambda x: np.sum(np.arange(6.0).reshape(3, 2).T * x), np.ones((2, 3))),
    "strided data": (lambda x: np.sum(np.arange(12.0)[::2].reshape(2, 3) * x), np.ones((2, 3))),
    "data of a product": (lambda x: np.sum(np.asfortranarray(np.arange(6.0).reshape(2, 3)) @ x), np.ones((3, 2))),
    "transposed data of a product": (lambda x: np.sum((np.arange(6.0).reshape(3, 2).T @ x) ** 2), np.ones((3, 2))),
    "numbers": (lambda x: np.sum(x * 3.5 - 0.25), np.ones(4)),
    "fancy": (lambda x: np.sum(np.exp(x[[2, 0, 0, 1]])), np.ones(4)),
    "where": (lambda x: np.sum(np.where(x > 0.0, x, 2.0 * x)), np.array([1.0, -1.0])),
    "branch": (lambda x: np.sum(x) if x[0] > 0.0 else np.sum(x * x), np.ones(3)),
    "joined": (lambda x: np.sum(np.sin(x * x) * 2.0), np.linspace(0.0, 1.0, 600)),
}


@pytest.mark.parametrize("name", PICKLED)
def test_a_pickled_tape_replays(name, rng):
    f, x = PICKLED[name]
    recording = tj.record(f, x)
    again = pickle.loads(pickle.dumps(recording.tape))
    assert str(again) == str(recording.tape)
    assert again.to_string(10**6) == recording.tape.to_string(10**6)
    other = np.abs(rng.standard_normal(x.shape)) * np.sign(x + 0.5)
    again.forward(other)
    expected, gradient = tj.value_and_grad(f)(other)
    assert_allclose(again.value[again.output_slots], [expected], rtol=1e-14)
    assert_allclose(sweeps.input_adjoint(again, again.output_slots, np.ones(1)), np.ravel(gradient), rtol=1e-14)


def test_a_pickled_tape_keeps_gradients_and_goes_on():
    with tj.Tape() as tape:
        x = tape.input(3.0)
        y = x * x
    y.backward()
    tape, x, y = pickle.loads(pickle.dumps((tape, x, y)))
    assert (x.grad, y.value) == (6.0, 9.0)
    assert x.tape is tape
    y.backward()
    assert x.grad == 12.0
    with tape:
        z = y * x + 2.0
    z.backward()
    assert x.grad == 12.0 + 27.0


def test_a_tape_that_reads_another_is_not_pickled():
    def f(x):
        with tj.Tape() as tape:
            tape.input(1.0) * x
        with pytest.raises(TapeError, match="refers to values of another tape"):
            pickle.dumps(tape)
        return x

    assert tj.grad(f)(2.0) == 1.0


def test_another_table_of_primitives_is_refused(monkeypatch):
    data = pickle.dumps(small_tape())
    monkeypatch.setattr("tapejit.tape._table_digest", lambda: ("another",))
    with pytest.raises(TapeError, match="another table of primitives.*record it again"):
        pickle.loads(data)


SCRIPT = """
import pickle, sys
import numpy as np
import tapejit as tj
from tapejit import ops

sys.path.insert(0, {directory!r})
{rows}
with open({path!r}, "rb") as file:
    tape = pickle.load(file)
tape.forward(np.array([0.5, -2.0, 3.0]))
from tapejit import sweeps
print(repr(tape.value[tape.output_slots].tolist()))
print(repr(sweeps.input_adjoint(tape, tape.output_slots, np.ones(1)).tolist()))
print(sorted(op.name for op in ops.USER))
"""

SOFT = ("tape_test_soft", "x / (1 + abs(x))", "1 / square(1 + abs(x))")
TWIST = ("tape_test_twist", "x * y + sin(x)", ("y + cos(x)", "x"))


def run_elsewhere(tmp_path, data, rows):
    path = tmp_path / "tape.pickle"
    path.write_bytes(data)
    script = SCRIPT.format(directory=str(tmp_path), path=str(path), rows=rows)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)


def user_tape():
    soft, twist = tj.primitive(*SOFT), tj.primitive(*TWIST)

    def f(x):
        return np.sum(soft(x)) + twist(x[0], x[1]) + np.sum(twist(x, 2.0))

    return f, tj.record(f, np.array([1.0, 2.0, 3.0])).tape


@pytest.mark.parametrize(
    "rows",
    ["", f"tj.primitive('elsewhere', 'x + 1', '1'); tj.primitive(*{TWIST!r}); tj.primitive(*{SOFT!r})"],
    ids=["no rows there", "rows numbered differently there"],
)
def test_user_primitives_travel_with_the_tape(tmp_path, rows):
    f, tape = user_tape()
    done = run_elsewhere(tmp_path, pickle.dumps(tape), rows)
    assert done.returncode == 0, done.stderr
    value, gradient = (eval(line) for line in done.stdout.splitlines()[:2])
    expected, expected_gradient = tj.value_and_grad(f)(np.array([0.5, -2.0, 3.0]))
    assert_allclose(value, [expected], rtol=1e-15)
    assert_allclose(gradient, expected_gradient, rtol=1e-15)
    assert "tape_test_soft" in done.stdout


def test_a_user_primitive_with_another_formula_is_refused(tmp_path):
    _, tape = user_tape()
    done = run_elsewhere(tmp_path, pickle.dumps(tape), f"tj.primitive({SOFT[0]!r}, 'x', '1')")
    assert done.returncode != 0
    assert "there is a primitive 'tape_test_soft' already, with another definition" in done.stderr


def test_growth_that_is_broken_off_loses_nothing():
    """A signal's handler may raise between any two instructions of Python."""

    class Interrupt(Exception):
        pass

    growing = {FlatTape._reserve.__code__, extended.__code__}
    for at in itertools.count(1):
        workspace.forget()  # With memory that another tape has left, nothing grows.
        tape = tj.Tape()
        count = 0

        def trace(frame, event, argument, at=at):
            nonlocal count
            if frame.f_code not in growing:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                count += 1
                if count == at:
                    raise Interrupt
            return trace

        with tape:
            tape.input(np.arange(1.0, 70001.0))
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                tape._reserve(400000)
            except Interrupt:
                pass
            finally:
                sys.settrace(before)
        assert_array_equal(tape.value[1:70001], np.arange(1.0, 70001.0))
        assert tape.opcode[1] == ops.CODE["input"]
        assert tape.lhs.size == tape.rhs.size == 70001
        if count < at:
            break
    assert at > 100


def test_tape_collected_while_memory_is_taken_does_not_wait_for_itself():
    with workspace._lock:  # as in `take`, in the middle of which the garbage collector may run
        workspace.give_back("tape", (np.zeros(workspace.SMALLEST),))
