"""What each stage of the compiler promises: prune, roll, classify, cut, fuse, plan. Nests are run on the numbers of instructions."""

import loop_nests
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from test_compiler_random import HARD, SMALL, thresholds

import tapejit as tj
from tapejit import ops
from tapejit.compiler.nest import Loop, Site
from tapejit.compiler.operands import Carried, Constant, Memory, Result, Scope, classify, cut, fuse
from tapejit.compiler.plan import Plan
from tapejit.compiler.prune import ABSENT, EXPECTS_FALSE, EXPECTS_TRUE, OUTPUT, prune
from tapejit.compiler.roll import TooLargeError, roll

VECTOR = np.array([0.1, 0.2, -0.3, 0.4])


def program_of(f, x):
    """The pruned program of a function."""
    tape = tj.record(f, x).tape
    return prune(tape.expand() if len(tape.block_at) else tape)


class Simulation:
    """Runs a nest as the forward kernel does: registers of sites, carried values, memory. What is computed are the numbers of instructions."""

    def __init__(self, root, program):
        self.root, self.program = root, program
        self.registers, self.carried, self.time = {}, {}, {}
        self.began = {}  # how many instructions had been run before each node of the present iteration of each loop
        self.order = []
        self.done_as = np.full(program.size, program.size)
        self.all_carried = {}
        for site in root.sites():
            for operand in site.operands:
                while isinstance(operand, Carried):
                    self.all_carried[id(operand)] = operand
                    operand = operand.start

    def run(self):
        self.iterate(self.root, 0)
        assert sorted(self.order) == list(range(self.program.size))
        return self

    def iterate(self, loop, t):
        self.time[loop] = t
        self.began[loop] = began = []
        for node in loop.body:
            began.append(len(self.order))
            assert node.loop is loop and loop.body[node.position] is node
            if isinstance(node, Loop):
                self.enter(node, t)
            else:
                self.execute(node, int(node.instructions[t]))

    def enter(self, loop, e):
        own = [operand for operand in self.all_carried.values() if operand.home is loop]
        starts = {id(operand): self.read(operand.start) for operand in own}
        self.carried.update(starts)
        assert loop.first[e + 1] > loop.first[e]
        for t in range(loop.first[e], loop.first[e + 1]):
            assert loop.entry[t] == e
            self.iterate(loop, t)
            self.carried.update({id(operand): self.registers[operand.source] for operand in own})
        del self.time[loop]

    def execute(self, site, instruction):
        program = self.program
        assert program.code[instruction] == site.code and program.guard[instruction] == site.guard
        expected = [operand for operand in program.operands[:, instruction] if operand != ABSENT]
        assert len(expected) == len(site.operands)
        for operand, number in zip(site.operands, expected, strict=True):
            found = self.read(operand)
            if isinstance(found, float):
                constant = program.constants[~number - program.n_inputs - program.n_parameters]
                assert np.array([found]).tobytes() == np.array([constant]).tobytes()
            else:
                assert found == number
        self.done_as[instruction] = len(self.order)
        self.order.append(instruction)
        self.registers[site] = instruction

    def read(self, operand):
        match operand:
            case Constant(value=value):
                return value
            case Scope(site=site):
                assert site.loop in self.time
                return self.registers[site]
            case Result(site=site, home=home):
                assert home in self.time and site.loop not in self.time
                return self.registers[site]
            case Carried():
                assert operand.home in self.time
                return self.carried[id(operand)]
            case Memory(home=home, column=column):
                number = int(column[self.time[home]])
                assert number < 0 or self.done_as[number] < self.began[home][operand.first_use]
                return number
        raise AssertionError(operand)


def check_stages(program, fuses=True):
    """All invariants up to the plan."""
    root = roll(program)
    found = classify(root, program)
    simulated = Simulation(root, program).run()
    assert simulated.order == list(range(program.size))
    for _ in range(8):
        if cut(found):
            found = classify(root, program)
            Simulation(root, program).run()
        elif fuses and fuse(found):
            found = classify(root, program)
            Simulation(root, program).run()
        else:
            break
    check_plan(Plan(found))
    return root


def check_plan(plan):
    """Every value that is kept has a place of its own, the active ones first, and loads find what they read."""
    program = plan.program
    used = np.zeros(plan.size, int)
    used[: program.n_inputs] += 1
    leaves = program.n_parameters + program.n_constants
    used[plan.parameters_at : plan.parameters_at + leaves] += 1
    assert plan.constants_at == plan.parameters_at + program.n_parameters
    at = {}
    for site, place in plan.stored.items():
        places = place.base + place.stride * np.arange(site.loop.n_iterations)
        np.add.at(used, places, 1)
        at.update(zip(site.instructions.tolist(), places.tolist(), strict=True))
        assert (places.max() < plan.n_active) == (site in plan.active)
    for operand, place in plan.kept.items():
        np.add.at(used, place.base + place.stride * np.arange(operand.home.n_iterations), 1)
    assert (used == 1).all()
    outputs = np.arange(program.size - program.n_outputs, program.size)
    assert_array_equal(plan.outputs_at, [at[number] for number in outputs])
    tables = plan.tables()
    for memory in plan.found.memory:
        home, address = memory.home, memory.address
        t = np.arange(home.n_iterations)
        if address.per_entry:
            found = tables[address.table + home.entry[t]] + address.stride * (t - home.first[home.entry[t]])
        elif address.table >= 0:
            found = tables[address.table + t]
        else:
            found = address.base + address.stride * t
        shift = plan.parameters_at - program.n_inputs
        wanted = [at[v] if v >= 0 else ~v if ~v < program.n_inputs else ~v + shift for v in memory.column.tolist()]
        assert_array_equal(found, wanted)


# prune


def test_prune_drops_what_no_output_needs():
    def f(x):
        np.exp(x[0])
        return x[1] * 2.0

    program = program_of(f, VECTOR)
    assert [ops.op_coded(code).name if code != OUTPUT else "output" for code in program.code] == ["mul", "output"]
    assert_array_equal(program.constants, [2.0])
    assert_array_equal(program.operands[:, 0], [~1, ~4, ABSENT])
    assert_array_equal(program.operands[:, 1], [0, ABSENT, ABSENT])
    assert (program.n_inputs, program.n_parameters, program.n_outputs) == (4, 0, 1)


def test_prune_keeps_decisions():
    def f(x):
        if x[0] > 0.0:
            if x[1] > 1.0:
                return x[2]
        return x[3]

    program = program_of(f, VECTOR)
    assert program.guard.tolist() == [EXPECTS_TRUE, EXPECTS_FALSE, 0]


def test_prune_compares_decisions_that_are_numbers():
    program = program_of(lambda x: x[0] * int(np.trunc(x[1] * 10.0)), VECTOR)
    compared = np.flatnonzero(program.guard)
    assert [ops.op_coded(code).name for code in program.code[compared]] == ["equal"]
    assert 2.0 in program.constants


def test_prune_reads_the_three_operands_of_select():
    program = program_of(lambda x: np.where(x[0] < x[1], x[2], x[3]), VECTOR)
    names = [ops.op_coded(code).name if code != OUTPUT else "output" for code in program.code]
    at = names.index("select")
    condition = program.operands[2, at]
    while names[condition] == "positive":
        condition = program.operands[0, condition]
    assert names[condition] == "less"
    assert_array_equal(program.operands[:2, at], [~2, ~3])


def test_prune_numbers_parameters_after_inputs():
    def f(x, a, b):
        return np.sum(x * a) + b * x[0]

    tape = tj.record(f, VECTOR, VECTOR, 3.0).tape
    program = prune(tape.expand())
    assert (program.n_inputs, program.n_parameters) == (4, 5)
    leaves = ~program.operands[(program.operands < 0) & (program.operands != ABSENT)]
    assert set(range(9)) <= set(leaves.tolist())


# roll, classify, cut, fuse, plan


@pytest.mark.parametrize("small", SMALL, ids=range(len(SMALL)))
@pytest.mark.parametrize("case", HARD, ids=lambda case: case[0].__name__)
def test_stages_of_hard_tapes(case, small):
    with thresholds(small):
        check_stages(program_of(*case))


@settings(max_examples=40)
@given(program=loop_nests.programs(), length=st.sampled_from(loop_nests.LENGTHS), small=st.sampled_from(SMALL))
def test_stages_of_loop_nests(program, length, small):
    x = np.random.default_rng(0).uniform(-1.0, 1.0, 3 + length)
    with thresholds(small):
        check_stages(program_of(loop_nests.function(program), x))


def loops_of(root):
    return [loop for loop in root.loops() if loop is not root]


def test_one_loop_is_one_loop():
    def f(x):
        y = x[0]
        for i in range(100):
            y = np.sin(y) + x[i]
        return y

    root = check_stages(program_of(f, np.zeros(100)))
    (loop,) = loops_of(root)
    assert loop.constant_trips >= 99 and len(list(loop.sites())) <= 2


def test_inner_loops_of_varying_length_are_one_loop():
    def f(x):
        total = 0.0
        for i in range(1, 80):
            own = 0.0
            for j in range(i):
                own = own + (x[i] - x[j]) ** 2
            total = total + np.sqrt(1.0 + own)
        return total

    program = program_of(f, np.linspace(0.0, 1.0, 80))
    check_stages(program)
    root = roll(program)
    assert max(loop.depth for loop in root.loops()) == 2
    assert sum(1 for _ in root.sites()) < 500  # of 9718


def test_a_carried_value_is_carried():
    def f(x):
        y = x[0]
        for _ in range(100):
            y = y * x[1] + x[2]
        return y

    program = program_of(f, VECTOR)
    root = roll(program)
    found = classify(root, program)
    (carried,) = found.carried
    assert carried.home.constant_trips >= 99 and isinstance(carried.start, (Memory, Scope))


def test_sites_and_loops_know_where_they_stand():
    root = roll(program_of(HARD[6][0], HARD[6][1]))
    for loop in root.loops():
        for position, node in enumerate(loop.body):
            assert node.loop is loop and node.position == position
            assert not isinstance(node, Site) or node.instructions.size == loop.n_iterations
            assert not isinstance(node, Loop) or node.n_entries == loop.n_iterations


def test_too_much_distinct_code_is_refused():
    program = program_of(HARD[1][0], HARD[1][1])
    with pytest.raises(TooLargeError, match="do not repeat|distinct instructions"):
        roll(program, max_sites=50)
