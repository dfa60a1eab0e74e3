"""What each stage of the compiler promises: prune, roll, Operands, cut, fuse, plan. Nests are run on the numbers of instructions."""

import loop_nests
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from problems import asian_option, heat, lennard_jones, lorenz96, lotka_volterra, mlp
from test_compiler_random import HARD, SMALL, thresholds

import tapejit as tj
from tapejit import ops
from tapejit.compiler.nest import Loop, Site
from tapejit.compiler.operands import Carried, Constant, Memory, Operands, Result, Scope, cut, fuse
from tapejit.compiler.plan import Plan
from tapejit.compiler.prune import ABSENT, EXPECTS_FALSE, EXPECTS_TRUE, OUTPUT, prune
from tapejit.compiler.roll import TooLargeError, roll

VECTOR = np.array([0.1, 0.2, -0.3, 0.4])


PROBLEMS = [
    (
        module.__name__.rpartition(".")[2] + kind,
        getattr(module, "primal" + kind),
        lambda rng, make=make, size=size: make(size, rng),
    )
    for module, kind, make, size in [
        (heat, "", heat.make, 20),
        (heat, "_conductivity", heat.make_conductivity, 20),
        (lorenz96, "", lorenz96.make, 2),
        (lotka_volterra, "", lotka_volterra.make, 10),
        (lennard_jones, "", lennard_jones.make, 9),
        (mlp, "", mlp.make, 6),
        (asian_option, "", asian_option.make, 4),
    ]
]


def program_of(f, *args):
    """The pruned program of a function."""
    tape = tj.record(f, *args).tape
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


def planned(program):
    """The plan of a program, as the kernel makes it."""
    found = Operands(roll(program), program)
    while cut(found) or fuse(found):
        found = Operands(found.root, program)
    return Plan(found)


def check_stages(program, fuses=True):
    """All invariants up to the plan."""
    root = roll(program)
    found = Operands(root, program)
    simulated = Simulation(root, program).run()
    assert simulated.order == list(range(program.size))
    for _ in range(8):
        if cut(found):
            found = Operands(root, program)
            Simulation(root, program).run()
        elif fuses and fuse(found):
            found = Operands(root, program)
            Simulation(root, program).run()
        else:
            break
    Traffic(Plan(found)).run()
    return root


def places_of(plan, address, loop):
    """Where an address is in all iterations of its loop."""
    tables, t = plan.tables(), np.arange(loop.n_iterations)
    if address.per_entry:
        return address.base + tables[address.table + loop.entry] + address.stride * (t - loop.first[loop.entry])
    return tables[address.table + t] if address.table >= 0 else address.base + address.stride * t


class Traffic:
    """Runs a plan forwards and backwards, and follows what is written to memory and to adjoints, place by place.

    The iterations of a parallel loop may run in any order, so in each of its entries all reads must be right before all writes and after them.
    """

    def __init__(self, plan):
        self.plan, self.program = plan, plan.program
        self.holds = np.full(plan.size, -(1 << 40))
        leaves = plan.constants_at + self.program.n_constants
        self.holds[:leaves] = ~np.arange(leaves)
        self.owes = {}  # the instruction or leaf of which a part of the adjoint stands in a place
        self.memories, self.active = {}, {}
        for memory in plan.found.memory:
            at = places_of(plan, memory.address, memory.home)
            self.memories.setdefault(memory.home, []).append((memory, at))
            if plan.is_active(memory):
                at = places_of(plan, memory.adjoint, memory.home)
                self.active.setdefault(memory.home, []).append((memory, at))
        self.stored = {site: places_of(plan, address, site.loop) for site, address in plan.stored.items()}
        self.adjoints = {site: places_of(plan, address, site.loop) for site, address in plan.adjoints.items()}
        self.kept = {operand: places_of(plan, address, operand.home) for operand, address in plan.kept.items()}

    def run(self):
        self.forward(self.plan.root, 0)
        for memory in self.plan.read_back:
            self.check(memory, places_of(self.plan, memory.address, memory.home), slice(None))
        for site, at in self.stored.items():
            if site in self.plan.recomputed or site.code == OUTPUT:
                assert_array_equal(self.holds[at], site.instructions)
        kept = np.concatenate([np.zeros(0, int), *self.kept.values()])
        assert np.unique(kept).size == kept.size and (self.holds[kept] == -(1 << 40)).all()
        outputs = np.arange(self.program.size - self.program.n_outputs, self.program.size)
        assert_array_equal(self.holds[self.plan.outputs_at], outputs)
        for place, number in zip(self.plan.output_adjoints_at.tolist(), outputs.tolist(), strict=True):
            self.owe(place, number)
        self.backward(self.plan.root, 0)
        is_passive = {
            n for site in self.plan.found.sites if site not in self.plan.active for n in site.instructions.tolist()
        }
        assert all(number < 0 or number in is_passive for number in self.owes.values())
        assert max(self.owes, default=-1) < self.plan.adjoint_size

    def check(self, memory, at, t):
        assert_array_equal(self.holds[at[t]], memory.column[t])

    def write(self, site, t):
        if site in self.stored:
            self.holds[self.stored[site][t]] = site.instructions[t]

    def forward(self, loop, t):
        for node in loop.body:
            for memory, at in self.memories.get(loop, []):
                if memory.first_use == node.position:
                    self.check(memory, at, t)
            if isinstance(node, Site):
                self.write(node, t)
                continue
            own = slice(node.first[t], node.first[t + 1])
            if node not in self.plan.parallel:
                for k in range(own.start, own.stop):
                    self.forward(node, k)
                continue
            for _ in range(2):
                for memory, at in self.memories.get(node, []):
                    self.check(memory, at, own)
                for site in node.body:
                    self.write(site, own)

    def owe(self, place, number):
        assert self.owes.setdefault(place, number) == number

    def add(self, memory, at, t):
        for place, number in zip(np.atleast_1d(at[t]).tolist(), np.atleast_1d(memory.column[t]).tolist(), strict=True):
            assert number >= 0 or place == ~number
            self.owe(place, number)

    def pull_back(self, site, t):
        if site in self.adjoints and site in self.plan.active:
            at, numbers = np.atleast_1d(self.adjoints[site][t]), np.atleast_1d(site.instructions[t])
            for place, number in zip(at.tolist(), numbers.tolist(), strict=True):
                assert self.owes.pop(place, number) == number

    def backward(self, loop, t):
        for node in reversed(loop.body):
            if isinstance(node, Site):
                self.pull_back(node, t)
            elif node not in self.plan.parallel:
                for k in range(node.first[t + 1] - 1, node.first[t] - 1, -1):
                    self.backward(node, k)
            else:
                own = slice(node.first[t], node.first[t + 1])
                before = dict(self.owes)
                for site in node.body:
                    self.pull_back(site, own)
                for memory, at in self.active.get(node, []):
                    self.add(memory, at, own)
                after, self.owes = self.owes, before
                for memory, at in self.active.get(node, []):
                    self.add(memory, at, own)
                for site in node.body:
                    self.pull_back(site, own)
                assert self.owes == after
            for memory, at in self.active.get(loop, []):
                if memory.first_use == node.position:
                    self.add(memory, at, t)


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


# roll, Operands, cut, fuse, plan


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


@settings(max_examples=30)
@given(rules=loop_nests.stencils(), length=st.sampled_from(loop_nests.LENGTHS), small=st.sampled_from(SMALL))
def test_stages_of_stencils(rules, length, small):
    x = np.random.default_rng(0).uniform(-1.0, 1.0, 3 + length)
    with thresholds(small):
        check_stages(program_of(loop_nests.stencil(rules, length), x))


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
    found = Operands(root, program)
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


@pytest.mark.parametrize("small", SMALL[:3], ids=range(3))
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem[0])
def test_stages_of_problems(problem, small, rng):
    _, f, args = problem
    with thresholds(small):
        check_stages(program_of(f, *args(rng)))


def test_states_and_adjoints_of_time_stepping_stand_in_windows(rng):
    """A linear scheme: the reverse run reads the last state alone, so two rows hold all of them, and two all adjoints."""
    n = 60
    with thresholds({"SMALLEST_WINDOWED": 1}):
        plan = planned(program_of(heat.primal, *heat.make(n, rng)))
        assert len(plan.stored) > 1 and n * n > 3000
        assert plan.size < 8 * n
        assert plan.adjoint_size < 4 * n
        # Where the partials ask for all states, these stay, and adjoints do not.
        plan = planned(program_of(heat.primal_conductivity, *heat.make_conductivity(n, rng)))
        assert plan.size > n * (n - 1)
        assert plan.adjoint_size < 8 * n


def test_large_windows_stand_half_a_page_apart(rng):
    plan = planned(program_of(heat.primal, *heat.make(200, rng)))
    (site,) = [site for site in plan.stored if site.loop.n_iterations > 30_000]
    at, loop = places_of(plan, plan.stored[site], site.loop), site.loop
    begins = np.unique(at[loop.first[:-1][loop.trips == 196]])  # what is not at the ends of a row
    assert 1 < begins.size < 5
    assert (np.diff(begins) % 512 == 256).all()


def test_what_is_read_at_the_end_is_not_in_a_window(rng):
    def f(x):
        u, first = [x[i] for i in range(40)], None
        for step in range(40):
            u = [u[i] + 0.1 * (u[i - 1] - u[i]) for i in range(40)]
            first = u if step == 3 else first
        return sum(u) + sum(first)

    with thresholds({"SMALLEST_WINDOWED": 1, "SHORTEST_ENTRY": 1}):
        plan = planned(program_of(f, rng.uniform(size=40)))
        Traffic(plan).run()
        assert plan.size < 400 and plan.adjoint_size < 400
