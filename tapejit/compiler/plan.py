"""The fourth stage: what is active, what the reverse kernel needs, and where values stand in memory.

The forward kernel keeps values in registers and stores only what is read through memory, what the reverse kernel cannot recompute (values carried
into an iteration, results of inner loops), and results that cost more to recompute than to load. The reverse kernel goes through the loops
backwards, recomputes in each iteration what the partials need, and hands adjoints on in registers; those of values that are read through memory
are added up there.

Memory is one array of doubles, adjoints are another:

| inputs | parameters | constants | carried values, results | stored values |
|---|---|---|---|---|

| inputs | what active loads read, though it is passive | active stored values |
|---|---|---|

What the reverse kernel reads has a place of its own; other stored values, and all adjoints, may stand in windows (see `tapejit.compiler.windows`).
Where every load is either of inputs or of other values (`Plan.inputs_apart`), inputs and their adjoints stay where the caller has them, and their
places in memory are not used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tapejit import layout, ops
from tapejit.compiler.nest import Loop, Product, Site
from tapejit.compiler.operands import Carried, Memory, Operand, Operands, Result, Scope
from tapejit.compiler.places import Address, Layout, Tables, most_apart
from tapejit.compiler.products import place_factor, place_products
from tapejit.compiler.prune import EXPECTS_FALSE, EXPECTS_TRUE, OUTPUT, PRODUCT
from tapejit.compiler.sharing import Sharing, find_copies, identity, is_whole_sum, shared
from tapejit.compiler.windows import Run
from tapejit.expressions import Tree, names, parse
from tapejit.ops import ADD, SELECT, SUB

__all__ = ["WIDEST_SHIFT", "Plan", "Split", "identity", "partials_of", "value_of"]

# Recomputed rather than kept, if their operands are there: a few cycles each.
_CHEAP = {"positive", "add", "sub", "mul", "div", "neg", "square", "cube", "reciprocal", "sqrt", "length", "abs", "sign", "floor", "ceil", "rint",
          "trunc", "copysign", "maximum", "minimum", "fmax", "fmin", "select", "chain", "deg2rad", "rad2deg", "less", "less_equal", "greater",
          "greater_equal", "equal", "not_equal", "logical_and", "logical_or", "logical_xor", "logical_not", "isnan", "isinf", "isfinite",
          "signbit"}  # fmt: skip
SMALLEST_TILED = 128  # iterations times sites of an entry that is worth tiles; half of all iterations must be in such
LONGEST_BODY = 500  # sites in the body of one that is
FEWEST_PACKED = 4  # calls of one function
LARGEST_STENCIL = 64  # sites that are evaluated for one iteration, over and over for every load
_DIVISIONS = {"div", "reciprocal", "sqrt", "length"}
DIVISION = 8  # sites that one of these counts for
WIDEST_SHIFT = 8  # between loads whose adjoints are added up together


def value_of(code: int) -> Tree:
    """The value of a primitive as an expression tree."""
    return parse(ops.op_coded(code).value)


def partials_of(code: int) -> tuple[Tree, ...]:
    return ops.partial_trees(ops.op_coded(code).name)


@dataclass(frozen=True)
class Split:
    """A loop of which a part of every iteration does not depend on the others.

    Attributes
    ----------
    parallel : list of Site
        What every iteration computes by itself.
    chains : list of (Carried, list of Site)
        Each sum, and the additions of one iteration to it.
    carried, serial : list of Carried, list of Site
        What else is carried, and what depends on it: one iteration after the other.
    delayed : list of Carried
        What is carried but computed in the parallel part, so that every iteration could compute that of the one before.
    """

    parallel: list[Site]
    chains: list[tuple[Carried, list[Site]]]
    carried: list[Carried]
    serial: list[Site]
    delayed: list[Carried] = field(default_factory=list)

    @property
    def handed_over(self) -> list[Site]:
        """The sites of the parallel part that the serial part reads or carries on."""
        read = {o.site for site in self.serial for o in site.operands if isinstance(o, Scope)}
        read.update(carried.source for carried in self.carried)
        return [site for site in self.parallel if site in read]


@dataclass
class Plan:
    """Everything that `emit` must know of a nest.

    Loops in chunks are for kernels of one input (`in_chunks`); chunks by several threads must have room for addends (`threaded`).
    """

    found: Operands
    in_chunks: bool = True
    threaded: bool = False
    active: set[Site] = field(default_factory=set)
    recomputed: set[Site] = field(default_factory=set)
    stored: dict[Site, Address] = field(default_factory=dict)
    adjoints: dict[Site, Address] = field(default_factory=dict)  # of active stored sites
    kept: dict[Carried | Result, Address] = field(default_factory=dict)
    addends: dict[Site | Result, Address] = field(default_factory=dict)
    trips: dict[Loop, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root, self.program = self.found.root, self.found.program
        self._tables = Tables()
        self._bases: dict[Memory, np.ndarray] = {}
        self.of_inputs: set[Memory] = set()  # loads of inputs and nothing else
        self.inputs_apart = True  # whether no load is of inputs now and of something else then
        self._producers = {memory: self._producers_of(memory) for memory in [*self.found.memory, *self.found.factors]}
        self._find_active()
        self._find_needed()
        self.parallel = self._splits(self.root.loops())
        self.shared: dict[Loop, Sharing] = {}
        if self.in_chunks:
            self.shared = {loop: found for loop in self.root.loops() if (found := shared(self, loop)) is not None}
        self.threaded = self.threaded and bool(self.shared)
        self._lay_out()

    # Activity.

    def _producers_of(self, memory: Memory) -> tuple[bool, list[Site]]:
        """Whether a load reads inputs, and the sites that it reads."""
        column = memory.column
        numbers = np.unique(self.found.site_of[column[column >= 0]])
        leaves = ~column[column < 0]
        return bool((leaves < self.program.n_inputs).any()), [self.found.sites[number] for number in numbers]

    def _find_active(self) -> None:
        """Sites that depend on inputs and that an output depends on, both through partials that are not identically zero."""
        influenced: set[Site] = set()
        changed = True
        while changed:
            changed = False
            for site in self.found.sites:
                if site not in influenced and any(self._is_influenced(o, influenced) for _, o in self.flows(site)):
                    influenced.add(site)
                    changed = True
        self._influenced = influenced
        waiting = [site for site in self.found.sites if site.code == OUTPUT and site in influenced]
        while waiting:
            site = waiting.pop()
            if site in self.active:
                continue
            self.active.add(site)
            for _, operand in self.flows(site):
                waiting += [producer for producer in self.behind(operand) if producer in influenced]

    def flows(self, site: Site) -> list[tuple[int, Operand]]:
        """The operands that take an adjoint from a site, with their numbers."""
        if site.code == OUTPUT:
            return [(0, site.operands[0])]
        if site.code in (SELECT, PRODUCT):
            return [(0, site.operands[0]), (1, site.operands[1])]
        return [(k, o) for k, o in enumerate(site.operands) if partials_of(site.code)[k] != 0.0]

    def behind(self, operand: Operand) -> list[Site]:
        """The sites whose values an operand may have."""
        match operand:
            case Scope(site=site) | Result(site=site):
                return [site]
            case Carried(source=source, start=start):
                return [source, *self.behind(start)]
            case Memory():
                return self._producers[operand][1]
        return []

    def _is_influenced(self, operand: Operand, influenced: set[Site]) -> bool:
        if isinstance(operand, Memory) and self._producers[operand][0]:
            return True
        if isinstance(operand, Carried) and self._is_influenced(operand.start, influenced):
            return True
        return any(site in influenced for site in self.behind(operand))

    def is_input(self, memory: Memory) -> bool:
        """Whether a load is of inputs that stay where the caller has them."""
        return self.inputs_apart and memory in self.of_inputs

    def is_active(self, operand: Operand) -> bool:
        """Whether adjoints are handed on to an operand."""
        return self._is_influenced(operand, self.active)

    # What the reverse kernel needs.

    def _find_needed(self) -> None:
        waiting: list[Operand] = []
        for site in self.active:
            flows = [(k, operand) for k, operand in self.flows(site) if self.is_active(operand)]
            if site.code == SELECT:
                waiting.append(site.operands[2])
            elif site.code not in (OUTPUT, PRODUCT):
                read = {name for k, _ in flows for name in names(partials_of(site.code)[k])}
                waiting += [operand for name, operand in zip("xy", site.operands, strict=False) if name in read]
                if "v" in read:
                    waiting.append(Scope(site))
        self.needed: set[Carried | Result] = set()
        self.read_back: set[Memory] = set()  # by the reverse kernel
        self.stores: set[Site] = {site for site in self.found.sites if site.code in (OUTPUT, PRODUCT)}
        for _, producers in self._producers.values():
            self.stores.update(producers)
        while waiting:
            match waiting.pop():
                case Scope(site=site) if site not in self.recomputed:
                    self.recomputed.add(site)
                    if site in self.stores or ops.op_coded(site.code).name not in _CHEAP:
                        self.stores.add(site)
                    else:
                        waiting += site.operands
                case (Carried() | Result()) as operand:
                    self.needed.add(operand)
                case Memory() as operand:
                    self.read_back.add(operand)

    # Parallel loops.

    def _splits(self, loops: Iterable[Loop], may_delay: bool = True) -> dict[Loop, Split]:
        """How innermost loops split into a parallel part and sums; those that do not are left out."""
        splits = {}
        for loop in loops:
            split = self._split(loop, True) if may_delay else None
            split = self._split(loop, False) if split is None else split
            if split is not None:
                splits[loop] = split
        return splits

    def _split(self, loop: Loop, delays: bool) -> Split | None:
        """How one loop does; `delays`: something that is computed in the parallel part may be carried, and nothing else but sums."""
        in_long = int(loop.trips[loop.trips * len(loop.body) >= SMALLEST_TILED].sum())
        if loop.loop is None or 2 * in_long < loop.n_iterations or len(loop.body) > LONGEST_BODY:
            return None
        if isinstance(loop, Product):
            return None
        sites = [node for node in loop.body if isinstance(node, Site)]
        if len(sites) < len(loop.body) or not self._reads_from_before(loop):
            return None
        carried_here = [carried for carried in self.found.carried if carried.home is loop]
        serial = _dependent(sites, carried_here)
        delayed = [carried for carried in carried_here if carried.source not in serial] if delays else []
        serial = _dependent(sites, [carried for carried in carried_here if carried not in delayed])
        results = {result.site for result in self.found.results}
        chains, others = [], []
        for carried in carried_here:
            if carried not in delayed:
                chain = self._chain(carried, [site for site in sites if site in serial])
                if chain is None or results & set(chain[:-1]):
                    others.append(carried)
                else:
                    chains.append((carried, chain))
        summed = {site for _, chain in chains for site in chain}
        parallel = [site for site in sites if site not in serial]
        rest = [site for site in sites if site in serial and site not in summed]
        if delays and (not delayed or others or rest):
            return None
        is_costly = any(ops.op_coded(site.code).name not in _CHEAP for site in parallel if site.code != OUTPUT)
        n_scattered = sum(self._is_scattered(memory) for memory in self.found.memory if memory.home is loop)
        if not is_costly and (4 * n_scattered > len(parallel) or ((others or rest) and len(parallel) < 2 * len(rest))):
            return None
        return Split(parallel, chains, others, rest, delayed)

    def _is_scattered(self, memory: Memory) -> bool:
        """Whether a load of an iteration is not next to that of the one before, as far as is known before places are."""
        if memory.column.size < 2:
            return False
        at = int(np.argmax(memory.home.trips > 1))
        first = int(memory.home.first[at])
        u, v = memory.column[first : first + 2]
        if u < 0 or v < 0:
            return bool(abs(v - u) != 1)
        site_of, iteration_of = self.found.site_of, self.found.iteration_of
        producer = self.found.sites[site_of[u]].loop
        n_stored = sum(isinstance(node, Site) and node in self.stores for node in producer.body)
        if n_stored > most_apart(self.found, producer):
            return True
        return bool(site_of[u] != site_of[v] or abs(int(iteration_of[v]) - int(iteration_of[u])) != 1)

    def _reads_from_before(self, loop: Loop) -> bool:
        """Whether no iteration reads what another one of the same entry wrote."""
        before = np.repeat(self.found.start(loop)[loop.first[:-1]], loop.trips)
        return all(bool((memory.column < before).all()) for memory in self.found.memory if memory.home is loop)

    def _chain(self, carried: Carried, serial: list[Site]) -> list[Site] | None:
        """The additions to a carried sum in one iteration, None if it is not just a sum that nothing else reads."""
        if carried in self.needed or any(site in self.stores or site in self.recomputed for site in serial):
            return None
        chain: list[Site] = []
        link: Operand | Site = carried
        for site in serial:
            operands = list(map(identity, site.operands))
            if link not in operands:
                continue
            if (
                site.code not in (ADD, SUB)
                or site.guard in (EXPECTS_FALSE, EXPECTS_TRUE)
                or operands.count(link) > 1
                or (site.code == SUB and operands[0] is not link)
            ):
                return None
            other = operands[1] if operands[0] is link else operands[0]
            if other in serial or (isinstance(other, Carried) and other.home is carried.home):
                return None
            chain.append(site)
            link = site
        if not chain or chain[-1] is not carried.source:
            return None
        readers = [o for site in serial for o in map(identity, site.operands) if o is carried or o in chain]
        starts = [o for o in self.found.carried if o.start is carried]
        return chain if len(readers) == len(chain) and not starts else None

    @property
    def has_packs(self) -> bool:
        """Whether a body that is not worked off in tiles has several calls of one costly function, which fit one vector."""
        for loop in self.root.loops():
            if loop.n_iterations > 1 and loop not in self.parallel and not isinstance(loop, Product):
                codes = [node.code for node in loop.body if isinstance(node, Site) and node.code != OUTPUT]
                costly = [code for code in codes if ops.op_coded(code).name not in _CHEAP]
                if any(costly.count(code) >= FEWEST_PACKED for code in set(costly)):
                    return True
        return False

    @property
    def has_products(self) -> bool:
        """Whether matrix products stay whole."""
        return any(isinstance(loop, Product) for loop in self.root.loops())

    # Memory.

    def _lay_out(self) -> None:
        program, found = self.program, self.found
        run = Run(found, {*self.parallel, *self.shared})
        outputs = {site for site in found.sites if site.code == OUTPUT}
        self.parameters_at = program.n_inputs
        self.constants_at = self.parameters_at + program.n_parameters
        self.team_at = self.constants_at + program.n_constants  # the address of the threads that help
        end = n_leaves = self.team_at + self.threaded
        for operand in [*found.carried, *found.results]:
            if operand in self.needed:
                self.kept[operand] = Address(end, 1)
                end += operand.home.n_iterations

        of_products = {site for factor in found.factors for site in self._producers[factor][1]}
        of_products |= {site for site in found.sites if site.code == PRODUCT}
        values = Layout(found, self._tables, end)
        values.add(self.stores, outputs | of_products | self.recomputed)
        self.stored, self.size = values.fold(found.memory, run, self.read_back)
        if self.threaded:
            self._place_addends()
        for factor in found.factors:
            factor.address = place_factor(factor, values.after(factor), self._tables)
        for memory in found.memory:
            memory.address = values.address(memory)
        for memory in self._producers:
            reads_inputs, producers = self._producers[memory]
            if reads_inputs and not producers and (~memory.column < program.n_inputs).all():
                self.of_inputs.add(memory)
            elif reads_inputs:
                self.inputs_apart = False

        active = [memory for memory in found.memory if self.is_active(memory)]
        factors = [factor for factor in found.factors if self.is_active(factor)]
        passive = {site for memory in [*active, *factors] for site in self._producers[memory][1]} | outputs
        passive -= self.active
        reads_leaves = any((~memory.column >= program.n_inputs).any() for memory in [*active, *factors])
        adjoints = Layout(found, self._tables, n_leaves if reads_leaves else program.n_inputs)
        adjoints.add(passive, passive)  # nothing clears these, and nothing reads them
        adjoints.add(self.stores & self.active, outputs | of_products)
        self.adjoints, self.adjoint_size = adjoints.fold(active, run)
        for memory in active:
            memory.adjoint = adjoints.address(memory)
            self._bases[memory] = adjoints.places(memory)[memory.home.first[:-1]]
        for factor in factors:
            factor.adjoint = place_factor(factor, adjoints.after(factor), self._tables)
        self.scratch, self.held = place_products(self)
        self._share({memory: adjoints.places(memory) for memory in active})

        self.stencils = {
            loop: stencil
            for loop, split in self.parallel.items()
            if (stencil := self._stencil(loop, split)) is not None
        }
        tiled = [loop for loop, split in self.parallel.items() if split.delayed and loop not in self.stencils]
        for loop in tiled:  # tiles do not know how to delay
            del self.parallel[loop]
        self.parallel |= self._splits(tiled, may_delay=False)
        self.outputs_at, self.output_adjoints_at = self._outputs_at(self.stored), self._outputs_at(self.adjoints)
        for loop in self.root.loops():
            if not loop.constant_trips:
                self.trips[loop] = self._tables.add(loop.first)

    def _place_addends(self) -> None:
        """Places for what is added when the chunks of a loop are done; for the sum of a block, the sums of its tiles."""
        for loop, sharing in self.shared.items():
            whole = self.whole_sums(loop)
            for site in whole:
                self.addends[site] = Address(self.size, 1)
                self.size += -(-loop.n_iterations // layout.TILE)
            one_by_one = {
                identity(o) for site in sharing.parts.difference(whole) if isinstance(site, Site) for o in site.operands
            }
            for addend in sharing.addends:
                if addend in one_by_one:
                    home = addend.home if isinstance(addend, Result) else addend.loop
                    assert home is not None
                    self.addends[addend] = Address(self.size, 1)
                    self.size += home.n_iterations

    def whole_sums(self, loop: Loop) -> list[Site]:
        """The additions of a parallel loop that are the sum of a block each."""
        split = self.parallel.get(loop)
        return [chain[0] for carried, chain in split.chains if is_whole_sum(carried, chain)] if split else []

    def _share(self, places: dict[Memory, np.ndarray]) -> None:
        """Places for what each chunk of a shared loop adds up for itself, after all adjoints."""
        self.shared = {
            loop: sharing for loop, sharing in self.shared.items() if find_copies(self, loop, sharing, places)
        }
        self.edges = {loop: self._tables.add(sharing.edges) for loop, sharing in self.shared.items()}
        self.copies_at: dict[Loop, list[int]] = {}
        self.sums_at: dict[Loop, int] = {}
        for loop, sharing in self.shared.items():
            self.copies_at[loop] = []
            for _, low, high in sharing.copied:
                self.copies_at[loop].append(self.adjoint_size)
                self.adjoint_size += sharing.n_chunks * (high + 1 - low)
            self.sums_at[loop] = self.adjoint_size
            self.adjoint_size += sharing.n_chunks * self._most_sums(loop)

    def _most_sums(self, loop: Loop) -> int:
        """How many numbers from outside may take adjoints in a loop."""
        found: set[object] = set()

        def visit(operand: Operand) -> None:
            found.add(identity(operand))
            if isinstance(operand, Carried):
                visit(operand.start)

        for site in loop.sites():
            for operand in site.operands:
                visit(operand)
        return len(found)

    def _outputs_at(self, places: dict[Site, Address]) -> np.ndarray:
        """Where the outputs stand, one after the other: (m,)."""
        program = self.program
        at = np.empty(program.n_outputs, np.int64)
        for site in places:
            if site.code == OUTPUT:  # these stay for the whole run
                place, t = places[site], np.arange(site.instructions.size)
                at[site.instructions - (program.size - program.n_outputs)] = place.base + place.stride * t
        return at

    def shifts(self, loop: Loop, memories: list[Memory]) -> list[list[tuple[Memory, int]]]:
        """Groups of loads in `loop` that mostly walk side by side: each with its distance, in strides, from the first of its group."""
        groups: list[list[tuple[Memory, int]]] = []
        starts: list[np.ndarray] = []
        for memory in memories:
            address = memory.adjoint
            assert isinstance(address, Address)
            if address.stride == 0 or (address.table >= 0 and not address.per_entry):
                continue
            own = self._bases[memory]
            for group, start in zip(groups, starts, strict=True):
                leader = group[0][0].adjoint
                assert isinstance(leader, Address)
                distances = own - start
                usual = int(np.median(distances[loop.trips == loop.trips.max()]))
                shift, rest = divmod(usual, address.stride)
                if leader.stride == address.stride and rest == 0 and abs(shift) <= WIDEST_SHIFT:
                    group.append((memory, shift))
                    break
            else:
                groups.append([(memory, 0)])
                starts.append(own)
        return [
            group
            for group in groups
            if len(group) > 1 and max(k for _, k in group) - min(k for _, k in group) <= WIDEST_SHIFT
        ]

    def _stencil(self, loop: Loop, split: Split) -> tuple[list[list[tuple[Memory, int]]], bool] | None:
        """The active loads of a loop in groups that walk side by side, if that is all that takes adjoints and partials are cheap; None otherwise.

        The second is whether those of a group are at their distances in all entries, not only in most.
        """
        sites = [*split.parallel, *(site for _, chain in split.chains for site in chain)]
        taking = [o for site in sites if site in self.active for _, o in self.flows(site) if self.is_active(o)]
        memories = [memory for memory in self.found.memory if memory.home is loop and memory in taking]
        outside = any((o.site.loop if isinstance(o, Scope) else o.home) is not loop for o in taking)  # type: ignore[union-attr]
        if outside or not memories or split.carried or split.serial:
            return None
        called = [ops.op_coded(site.code).name for site in sites if site.code != OUTPUT]
        if not _CHEAP.issuperset(called):
            return None
        groups: list[list[tuple[Memory, int]]] = []
        for of_inputs in (True, False):
            own = [memory for memory in memories if self.is_input(memory) is of_inputs]
            groups += self.shifts(loop, own)
        grouped = {memory for group in groups for memory, _ in group}
        groups += [[(memory, 0)] for memory in memories if memory not in grouped]
        sharing = self.shared.get(loop)
        if sharing and any(len({sharing.is_copied(memory) for memory, _ in group}) > 1 for group in groups):
            return None
        usual = np.ones(loop.n_entries, np.bool_)
        for group in groups:
            leader = group[0][0]
            for memory, shift in group:
                address = memory.adjoint
                assert isinstance(address, Address)
                if address.stride == 0 or (address.table >= 0 and not address.per_entry):
                    return None
                usual &= self._bases[memory] - self._bases[leader] == shift * address.stride
        if 4 * int(loop.trips[usual].sum()) < 3 * loop.n_iterations:
            return None
        n_evaluations = sum(len(group) for group in groups) * (2 if split.delayed else 1)
        cost = sum(DIVISION if name in _DIVISIONS else 1 for name in called)
        if n_evaluations * cost > LARGEST_STENCIL:
            return None
        return groups, bool(usual.all())

    def add_table(self, numbers: np.ndarray) -> int:
        """Keep integers for the kernels to read; gives their place among all tables."""
        return self._tables.add(numbers)

    def tables(self) -> np.ndarray:
        """All tables one after the other, int32."""
        return self._tables.joined()


def _dependent(sites: list[Site], carried: list[Carried]) -> set[Site]:
    """The sites of a body that depend on something carried."""
    dependent: set[Operand | Site] = set(carried)
    for site in sites:
        if any(identity(operand) in dependent for operand in site.operands):
            dependent.add(site)
    return {site for site in sites if site in dependent}
