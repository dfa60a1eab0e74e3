"""Random programs and random loop nests, compiled: the bits of the interpreted replay, and its gradient but for the order of additions.

``python tests/test_compiler_random.py 2000`` tries loop nests 0 to 1999 and prints those that fail.
"""

import functools
import importlib
import math
import pkgutil
import sys
import traceback

import loop_nests
import numpy as np
import programs
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import tapejit as tj
from tapejit import compiler, sweeps
from tapejit.compiler import kernel as kernels
from tapejit.compiler.kernel import compile_tape
from tapejit.layout import MATMUL, SUM

# The order in which contributions are added to one adjoint may differ: relative to the largest adjoint.
RTOL = 1e-12
SEEDS = st.integers(0, 10**6)

# Thresholds so low that small programs become loops, loops in loops, and pieces.
SMALL = [
    {},
    {
        "SMALLEST_TILED": 1,
        "SMALLEST_TILE": 8,
        "SMALLEST": 6,
        "SHORTEST_APART": 4,
        "SMALLEST_WINDOWED": 1,
        "SHORTEST_ENTRY": 1,
    },
    {
        "WINDOW": 1,
        "SMALLEST": 2,
        "UNROLL": 0,
        "PERIODS": ((2, 8), (64,)),
        "PERIODS_ABOVE": ((2,), (4, 64)),
        "SHORTEST_PIECE": 1,
        "SMALLEST_WINDOWED": 1,
        "SHORTEST_ENTRY": 1,
    },
    {
        "WINDOW": 2,
        "SMALLEST": 4,
        "UNROLL": 8,
        "PERIODS": ((1, 3), (200,)),
        "SHORTEST_SHIFTED": 2,
        "LONGEST_GROUP": 6,
        "SMALLEST_TILED": 1,
        "SMALLEST_TILE": 1,
    },
    {
        "WINDOW": 3,
        "SMALLEST": 6,
        "PERIODS": ((), (4096,)),
        "CONTIGUOUS": 1,
        "SHORTEST_PIECE": 2,
        "SMALLEST_WINDOWED": 16,
        "SHORTEST_ENTRY": 2,
    },
    {"SMALLEST_SHARED": 1, "FEWEST_CHUNKS": 2, "COPIED": 1e9},
]
MODULES = [importlib.import_module(f"tapejit.compiler.{part.name}") for part in pkgutil.iter_modules(compiler.__path__)]


@functools.cache
def compile_kernels_of_stages():
    """Before any threshold is another one: those that kernels read are part of them, also in the cache on disk."""
    tape = tj.record(lambda x: sum(x[i % 4] * x[(3 * i) % 4] for i in range(100)), np.ones(4)).tape
    assert not compile_tape(tape).why_interpreted


class thresholds:
    """Context manager: other thresholds, in whichever modules of the compiler they are."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __enter__(self):
        compile_kernels_of_stages()
        self.kept = []
        for name, number in self.numbers.items():
            holders = [module for module in MODULES if hasattr(module, name)]
            assert holders, f"the compiler has no {name}"
            for module in holders:
                self.kept.append((module, name, getattr(module, name)))
                setattr(module, name, number)

    def __exit__(self, *exception):
        for module, name, number in self.kept:
            setattr(module, name, number)


def poison(kernel):
    """Put NaN wherever a run must write before it reads."""
    work = kernel.take()
    start = kernel.constants_at
    work.memory[:start] = np.nan
    work.memory[start + kernel.constants.size :] = np.nan
    work.holds = None
    kernel.give(work)


def is_call(product):
    """Whether a matrix product is a call in a kernel."""
    return math.prod(product.shape) > kernels.LARGEST_PRODUCT


def check_compiled(recording, points, rng, limit=None, parameters=()):
    """A recording's tape compiled, against its interpreted replay; gives the kernel."""
    tape = recording.tape
    kernel = compile_tape(tape, max_compile_seconds=60.0)
    if "do not repeat" in kernel.why_interpreted or "LLVM would need" in kernel.why_interpreted:
        reject()  # more distinct code than is compiled
    assert not kernel.why_interpreted, kernel.why_interpreted
    threaded = compile_tape(tape, max_compile_seconds=60.0, n_threads=3) if kernel.n_shared else None
    output = np.asarray(tape.output_slots)
    # Sums of arrays may be added up in another order, and products that are written out. Elementwise blocks may not make a difference.
    kinds = {block.kind for block in tape.blocks()}
    is_exact = SUM not in kinds and all(is_call(block) for block in tape.blocks() if block.kind == MATMUL)
    scalars = tape.expand() if is_exact and MATMUL not in kinds else tape
    n_compared = 0
    for x in points:
        y_bar = rng.standard_normal(output.size)
        value = scalars.value.copy()
        scalars.set_inputs(value, x)
        sweeps.forward(scalars, value)
        changed = scalars.branch_change(value) is not None
        adjoint = np.zeros(scalars.n_slots)
        np.add.at(adjoint, scalars.output_slots, y_bar)
        sweeps.reverse(scalars, adjoint, value)
        expected = adjoint[scalars.input_index()]
        own = [value[first : first + size] for first, size in scalars.parameter_slots]
        poison(kernel)
        with_rows = kernel.run(np.ravel(x), own, np.stack([y_bar, -2.0 * y_bar]))
        poison(kernel)
        seeds = float(y_bar[0]) if output.size == 1 else y_bar
        found = kernel.run(np.ravel(x), own, seeds)
        if threaded is not None:
            poison(threaded)
            by_threads = threaded.run(np.ravel(x), own, seeds)
            assert (by_threads is None) == (found is None)
            if found is not None:
                assert_array_equal(by_threads[0], found[0])
                assert_array_equal(by_threads[1], found[1])
        if changed:
            assert found is None and with_rows is None, "a decision changed unnoticed"
            continue
        if found is None:
            is_finite = np.isfinite(expected).all() and np.isfinite(adjoint).all() and np.isfinite(value).all()
            assert not is_finite or np.abs(value).max() > 1e5, "finite results, but the kernel gives none"
            continue
        n_compared += 1
        if is_exact:
            assert_array_equal(np.reshape(found[0], -1), value[scalars.output_slots])
        else:
            largest = np.nanmax(np.abs(value))
            assert_allclose(np.reshape(found[0], -1), value[scalars.output_slots], rtol=0.0, atol=1e-11 * largest)
        scale = max(np.abs(expected).max(initial=0.0), np.nanmax(np.abs(adjoint)) * 1e-3)
        assert np.abs(found[1] - expected).max(initial=0.0) <= (RTOL if is_exact else 1e-10) * scale
        assert_array_equal(with_rows[1][0], found[1])
        assert np.abs(with_rows[1][1] + 2.0 * found[1]).max(initial=0.0) <= RTOL * scale
    kernel.n_compared = n_compared
    return kernel


def check_nest(f, length, seed):
    rng = np.random.default_rng(seed)
    x, near, far = rng.uniform(-1.0, 1.0, (3, 3 + length))
    recording = tj.record(f, x)
    for small in SMALL:
        with thresholds(small):
            kernel = check_compiled(recording, [x, x + 1e-3 * near, far], rng)
            assert kernel.n_compared
    return kernel


@settings(max_examples=25)
@given(
    program=loop_nests.programs(),
    length=st.sampled_from(loop_nests.LENGTHS),
    seed=SEEDS,
    m=st.sampled_from([0, 0, 1, 5]),
)
def test_compiled_loop_nests_equal_interpreted_ones(program, length, seed, m):
    check_nest(loop_nests.function(program, m), length, seed)


@settings(max_examples=15)
@given(
    rules=loop_nests.stencils(), length=st.sampled_from(loop_nests.LENGTHS), seed=SEEDS, m=st.sampled_from([0, 0, 1, 5])
)
def test_compiled_stencils_equal_interpreted_ones(rules, length, seed, m):
    check_nest(loop_nests.stencil(rules, length, m), length, seed)


def test_a_last_iteration_that_takes_a_flux_and_leaves_a_result(rng):
    """What it hands back to the flux is not like that of other iterations, and so is what the iteration before it contributes."""
    x = rng.uniform(-1.0, 1.0, 15)
    with thresholds(SMALL[3]):
        recording = tj.record(loop_nests.stencil([492, 2221, 3356, 2954, 2230, 1681], 12), x)
        assert check_compiled(recording, [x], rng).n_compared


@settings(max_examples=25)
@given(program=programs.scalar_programs(), seed=SEEDS)
def test_compiled_scalar_programs_equal_interpreted_ones(program, seed):
    rng = np.random.default_rng(seed)
    x, other = rng.uniform(-2.0, 2.0, (2, 4))
    recording = tj.record(programs.scalar_function(program), x)
    for small in SMALL[:2]:
        with thresholds(small):
            check_compiled(recording, [x, other], rng)


@settings(max_examples=25)
@given(program=programs.array_programs(max_size=5), shape=programs.shapes(limit=260), seed=SEEDS)
def test_compiled_array_programs_equal_interpreted_ones(program, shape, seed):
    recording = tj.record(programs.array_function(program), programs.points(shape, seed))
    rng = np.random.default_rng(seed)
    check_compiled(recording, [programs.points(shape, seed), programs.points(shape, seed + 1)], rng)


@settings(max_examples=20)
@given(
    program=programs.array_programs(kinds=programs.ELEMENTWISE, max_size=5),
    n=st.sampled_from([1, 2, 7, 8, 9, 255, 256, 257, 513]),
    seed=SEEDS,
)
def test_compiled_elementwise_programs_equal_interpreted_ones(program, n, seed):
    recording = tj.record(programs.elementwise_function(program), programs.points((n,), seed))
    check_compiled(recording, [programs.points((n,), seed + 1)], np.random.default_rng(seed))


# Tapes made to be hard to roll.


def period_one(x):
    """One instruction, over and over."""
    for _ in range(400):
        x = x + x
        x = x * 0.5
    return x


def all_different(x):
    rng = np.random.default_rng(1)
    values = [x[i] for i in range(4)]
    for _ in range(300):
        i, j = rng.integers(0, len(values), 2)
        values.append([np.sin, np.tanh, np.arctan, np.cos][rng.integers(4)](values[i] + 0.5 * values[j]))
    return values[-1] + values[-2]


def half_period(x):
    """Twice the same long sequence that itself repeats nothing."""
    return all_different(x) + all_different(x * 0.5)


def almost_periodic(x):
    """A loop in which every seventh iteration has one instruction more, at another place each time."""
    total = x[0]
    for i in range(200):
        y = x[i % 4] * 0.9
        if i % 7 == 3:
            y = np.sin(y)
        y = y + 0.1 * total
        if i % 7 == 5:
            y = y * 0.5
        total = total * 0.5 + y
    return total


def dead_code(x):
    for i in range(50):
        np.exp(x[i % 4])
    return x[0] * 1.0


def time_stepping(x):
    u = [x[0], x[1], x[2], x[3], *[0.0 * x[0]] * 20]
    for step in range(30):
        for i in range(1, 23):
            u[i] = u[i] + 0.1 * (u[i - 1] - 2.0 * u[i] + u[i + 1])
        u = [u[0], *[u[i] * (1.0 + 0.001 * step) for i in range(1, 23)], u[-1]]
    return sum(u[5:])


def triangle(x):
    total = 0.0
    for i in range(40):
        for j in range(i):
            total = total + (x[i % 4] - x[j % 4]) ** 2 * 0.01
    return total


def last_results(x):
    """Results of inner loops of varying length feed the loop around."""
    total = 0.0
    for i in range(30):
        y = x[i % 4]
        for _ in range(1 + i % 5):
            y = np.sin(y) + 0.1 * x[1]
        total = total + y * x[2]
    return total


HARD = [
    (period_one, 0.3),
    (all_different, np.array([0.1, 0.2, -0.3, 0.4])),
    (half_period, np.array([0.1, 0.2, -0.3, 0.4])),
    (almost_periodic, np.array([0.1, 0.2, -0.3, 0.4])),
    (dead_code, np.array([0.1, 0.2, -0.3, 0.4])),
    (time_stepping, np.array([0.1, 0.2, -0.3, 0.4])),
    (triangle, np.array([0.1, 0.2, -0.3, 0.4])),
    (last_results, np.array([0.1, 0.2, -0.3, 0.4])),
    (lambda x: x, 0.3),
    (lambda x: x, np.array([1.0, 2.0])),
    (lambda x: [x[0], x[0], x[1] * 2.0, x[1], x[0]], np.array([1.0, 2.0])),
    (lambda x: [2.0, x[0], 3.0], np.array([1.0, 2.0])),
    (lambda x: [x[0] * x[0]] * 3, np.array([1.0, 2.0])),
    (lambda x: np.sum(x[:0]) + x[0], np.array([1.0])),
    (lambda x: 0.0 * x, 2.0),
    (lambda x: 3.0, 2.0),
    (lambda x: np.sin(x), np.zeros(0)),
]


@pytest.mark.parametrize("small", SMALL, ids=range(len(SMALL)))
@pytest.mark.parametrize("case", HARD, ids=lambda case: case[0].__name__)
def test_compiled_hard_tapes_equal_interpreted_ones(case, small, rng):
    f, x = case
    with thresholds(small):
        check_compiled(tj.record(f, x), [np.asarray(x), np.asarray(x) + 0.01], rng)


def test_a_long_tape_rolls():
    tape = tj.Tape()
    with tape:
        x = tape.input(0.3)
        y = x
        for _ in range(250_000):
            y = (y + x) * 0.5
    tape.output_slots = np.array([y.slot])
    kernel = compile_tape(tape)
    assert not kernel.why_interpreted
    assert kernel.nest.count("\n") < 6
    value, bars = kernel.run(np.array([0.4]), (), 1.0)
    assert value == 0.4
    np.testing.assert_allclose(bars, [1.0], rtol=1e-12)


def test_a_long_tape_without_repeats_is_left_to_the_interpreter():
    rng = np.random.default_rng(0)
    names = [np.sin, np.cos, np.tanh, np.arctan, np.arcsinh, np.sqrt]
    choice = rng.integers(0, len(names), 60_000)

    def f(x):
        y = x
        for i in choice:
            y = names[i](1.0 + y * y)
        return y

    kernel = compile_tape(tj.record(f, 0.3).tape)
    assert "do not repeat" in kernel.why_interpreted


def main(first, last):
    for seed in range(first, last):
        rng = np.random.default_rng(seed)
        length, m = loop_nests.LENGTHS[seed % 3], [0, 0, 0, 4][seed % 4]
        try:
            if seed % 5 == 4:
                program = rng.integers(0, 2**12, 6).tolist()
                check_nest(loop_nests.stencil(program, length, m), length, seed)
            else:
                program = loop_nests.random_program(rng)
                check_nest(loop_nests.function(program, m), length, seed)
        except Exception:
            print("nest", seed, program)
            print(traceback.format_exc(limit=-3))


if __name__ == "__main__":
    main(*([0] + [int(argument) for argument in sys.argv[1:]])[-2:])
