"""The fourth stage: what is active, what the reverse kernel needs, and where values stand in memory.

The forward kernel keeps values in registers and stores only what is read through memory, what the reverse kernel cannot recompute (values carried
into an iteration, results of inner loops), and results that cost more to recompute than to load. The reverse kernel goes through the loops
backwards, recomputes in each iteration what the partials need, and hands adjoints on in registers; those of values that are read through memory
are added up there.

Memory is one array of doubles, every value at a place of its own:

| inputs | active stored values | parameters | constants | passive stored values, carried values, results |
|---|---|---|---|---|

The adjoints have an array of their own with the same places. Where every load is either of inputs or of other values (`Plan.inputs_apart`), inputs
and their adjoints stay where the caller has them, and their places in memory are not used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tapejit import ops
from tapejit.compiler.nest import Loop, Product, Site
from tapejit.compiler.operands import Carried, Factor, Memory, Operand, Result, Scope, classify
from tapejit.compiler.products import place_factor, place_products
from tapejit.compiler.prune import EXPECTS_FALSE, EXPECTS_TRUE, OUTPUT, PRODUCT
from tapejit.expressions import Tree, names, parse
from tapejit.ops import ADD, SELECT, SUB
from tapejit.sweeps.kernel import kernel

__all__ = ["WIDEST_SHIFT", "Address", "Place", "Plan", "Split", "identity", "partials_of", "value_of"]

# Recomputed rather than kept, if their operands are there: a few cycles each.
_CHEAP = {"positive", "add", "sub", "mul", "div", "neg", "square", "cube", "reciprocal", "sqrt", "length", "abs", "sign", "floor", "ceil", "rint",
          "trunc", "copysign", "maximum", "minimum", "fmax", "fmin", "select", "chain", "deg2rad", "rad2deg", "less", "less_equal", "greater",
          "greater_equal", "equal", "not_equal", "logical_and", "logical_or", "logical_xor", "logical_not", "isnan", "isinf", "isfinite",
          "signbit"}  # fmt: skip
SMALLEST_TILED = 128  # iterations times sites of an entry that is worth tiles; half of all iterations must be in such
LONGEST_BODY = 500  # sites in the body of one that is
FEWEST_PACKED = 4  # calls of one function
WIDEST_SHIFT = 8  # between loads whose adjoints are added up together
CONTIGUOUS = 8  # stored values of a loop up to which each has an array of its own; above, those of an iteration stand side by side
CONTIGUOUS_IN_VECTORS = 64  # the same for an innermost loop that carries nothing, whose iterations may run in vectors


@dataclass(frozen=True)
class Place:
    """Where a value of iteration t stands: ``base + stride * t``."""

    base: int
    stride: int


@dataclass(frozen=True)
class Address:
    """Where a load of iteration t, in entry e, finds its value.

    ``base + stride * t`` if there is no table; ``bases[e] + stride * (t - first[e])`` for a table of entries; ``table[t]`` for one of iterations.
    `table` is its place among all tables, -1 if there is none.
    """

    base: int = 0
    stride: int = 0
    table: int = -1
    per_entry: bool = False


def value_of(code: int) -> Tree:
    """The value of a primitive as an expression tree."""
    return parse(ops.op_coded(code).value)


def partials_of(code: int) -> tuple[Tree, ...]:
    return ops.partial_trees(ops.op_coded(code).name)


@kernel
def _addresses(column, leaf_shift, n_inputs, base, stride, site_of, iteration_of, out):
    """Where each instruction or leaf of a column stands."""
    for t in range(column.size):
        v = column[t]
        if v < 0:
            leaf = -v - 1
            out[t] = leaf if leaf < n_inputs else leaf + leaf_shift
        else:
            site = site_of[v]
            out[t] = base[site] + stride[site] * iteration_of[v]


@kernel
def _affine(address, first):
    """Whether addresses walk at one stride: over all iterations, within entries; gives (over all, within, stride)."""
    n = address.size
    everywhere, within = True, True
    stride = np.int64(0)
    known = False
    e = 1
    for t in range(1, n):
        d = address[t] - address[t - 1]
        starts = e < first.size and first[e] == t
        if starts:
            e += 1
        if not known and not starts:
            stride, known = d, True
            for s in range(1, t):  # the entries of one iteration before
                if address[s] - address[s - 1] != stride:
                    everywhere = False
        elif known and d != stride:
            everywhere = False
            if not starts:
                within = False
                break
    if not known:
        everywhere = n < 2
        if n >= 2:
            stride = address[1] - address[0]
            everywhere = True
            for t in range(2, n):
                if address[t] - address[t - 1] != stride:
                    everywhere = False
            if not everywhere:
                stride = np.int64(0)
    return everywhere, within, stride


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
    """

    parallel: list[Site]
    chains: list[tuple[Carried, list[Site]]]
    carried: list[Carried]
    serial: list[Site]

    @property
    def handed_over(self) -> list[Site]:
        """The sites of the parallel part that the serial part reads or carries on."""
        read = {o.site for site in self.serial for o in site.operands if isinstance(o, Scope)}
        read.update(carried.source for carried in self.carried)
        return [site for site in self.parallel if site in read]


@dataclass
class Plan:
    """Everything that `emit` must know of a nest."""

    found: classify
    active: set[Site] = field(default_factory=set)
    recomputed: set[Site] = field(default_factory=set)
    stored: dict[Site, Place] = field(default_factory=dict)
    kept: dict[Carried | Result, Place] = field(default_factory=dict)
    trips: dict[Loop, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root, self.program = self.found.root, self.found.program
        self._tables: list[np.ndarray] = []
        self._bases: dict[Memory, np.ndarray] = {}
        self.of_inputs: set[Memory] = set()  # loads of inputs and nothing else
        self.inputs_apart = True  # whether no load is of inputs now and of something else then
        self._n_table = 0
        self._producers = {memory: self._producers_of(memory) for memory in [*self.found.memory, *self.found.factors]}
        self._find_active()
        self._find_needed()
        self.parallel = {loop: split for loop in self.root.loops() if (split := self._split(loop)) is not None}
        self._lay_out()
        self._find_addresses()

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
        self._needed: set[Carried | Result] = set()
        self._stores: set[Site] = {site for site in self.found.sites if site.code in (OUTPUT, PRODUCT)}
        for _, producers in self._producers.values():
            self._stores.update(producers)
        while waiting:
            match waiting.pop():
                case Scope(site=site) if site not in self.recomputed:
                    self.recomputed.add(site)
                    if site in self._stores or ops.op_coded(site.code).name not in _CHEAP:
                        self._stores.add(site)
                    else:
                        waiting += site.operands
                case (Carried() | Result()) as operand:
                    self._needed.add(operand)

    # Parallel loops.

    def _split(self, loop: Loop) -> Split | None:
        """How an innermost loop splits into a parallel part and sums, None if it does not."""
        in_long = int(loop.trips[loop.trips * len(loop.body) >= SMALLEST_TILED].sum())
        if loop.loop is None or 2 * in_long < loop.n_iterations or len(loop.body) > LONGEST_BODY:
            return None
        if isinstance(loop, Product):
            return None
        sites = [node for node in loop.body if isinstance(node, Site)]
        if len(sites) < len(loop.body) or not self._reads_from_before(loop):
            return None
        serial: set[Site] = set()
        for site in sites:
            if any(o in serial if isinstance(o, Site) else _is_carried(o, loop) for o in map(identity, site.operands)):
                serial.add(site)
        results = {result.site for result in self.found.results}
        chains, others = [], []
        for carried in self.found.carried:
            if carried.home is loop:
                chain = self._chain(carried, [site for site in sites if site in serial])
                if chain is None or results & set(chain[:-1]):
                    others.append(carried)
                else:
                    chains.append((carried, chain))
        summed = {site for _, chain in chains for site in chain}
        parallel = [site for site in sites if site not in serial]
        rest = [site for site in sites if site in serial and site not in summed]
        is_costly = any(ops.op_coded(site.code).name not in _CHEAP for site in parallel if site.code != OUTPUT)
        n_scattered = sum(self._is_scattered(memory) for memory in self.found.memory if memory.home is loop)
        if not is_costly and (4 * n_scattered > len(parallel) or ((others or rest) and len(parallel) < 2 * len(rest))):
            return None
        return Split(parallel, chains, others, rest)

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
        n_stored = sum(isinstance(node, Site) and node in self._stores for node in producer.body)
        if n_stored > self._most_apart(producer):
            return True
        return bool(site_of[u] != site_of[v] or abs(int(iteration_of[v]) - int(iteration_of[u])) != 1)

    def _reads_from_before(self, loop: Loop) -> bool:
        """Whether no iteration reads what another one of the same entry wrote."""
        before = np.repeat(self.found.start(loop)[loop.first[:-1]], loop.trips)
        return all(bool((memory.column < before).all()) for memory in self.found.memory if memory.home is loop)

    def _chain(self, carried: Carried, serial: list[Site]) -> list[Site] | None:
        """The additions to a carried sum in one iteration, None if it is not just a sum that nothing else reads."""
        if carried in self._needed or any(site in self._stores or site in self.recomputed for site in serial):
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
        program = self.program
        self.n_active = program.n_inputs
        groups: dict[tuple[bool, Loop], list] = {}
        for site in self.found.sites:
            if site in self._stores:
                groups.setdefault((site in self.active, site.loop), []).append(site)  # type: ignore[arg-type]
        for operand in [*self.found.carried, *self.found.results]:
            if operand in self._needed:
                groups.setdefault((False, operand.home), []).append(operand)
        end = program.n_inputs
        for (is_active, loop), items in groups.items():
            if is_active:
                end = self._place(items, loop, end)
        self.n_active = end
        self.leaf_shift = end - program.n_inputs
        self.parameters_at = end
        self.constants_at = end + program.n_parameters
        end = self.constants_at + program.n_constants
        for (is_active, loop), items in groups.items():
            if not is_active:
                end = self._place(items, loop, end)
        self.size = end
        outputs = [site for site in self.found.sites if site.code == OUTPUT]
        self.outputs_at = np.empty(program.n_outputs, np.int64)
        for site in outputs:
            place = self.stored[site]
            at = site.instructions - (program.size - program.n_outputs)
            self.outputs_at[at] = place.base + place.stride * np.arange(at.size)

    def _place(self, items: list, loop: Loop, start: int) -> int:
        """Give sites, carried values and results of one loop their places from `start` on; gives the end."""
        n = loop.n_iterations
        apart = len(items) <= self._most_apart(loop)
        for k, item in enumerate(items):
            place = Place(start + k * n, 1) if apart else Place(start + k, len(items))
            (self.stored if isinstance(item, Site) else self.kept)[item] = place
        return start + n * len(items)

    def _most_apart(self, loop: Loop) -> int:
        """Up to how many stored values of a loop each have an array of their own; above, those of an iteration stand side by side."""
        is_innermost = all(isinstance(node, Site) for node in loop.body)
        is_serial = any(carried.home is loop for carried in self.found.carried)
        return CONTIGUOUS_IN_VECTORS if is_innermost and not is_serial else CONTIGUOUS

    def _find_addresses(self) -> None:
        found = self.found
        n_inputs = self.program.n_inputs
        # How many places adjoints are written to.
        self.adjoint_size = max(self.n_active, int(self.outputs_at.max(initial=-1)) + 1)
        base, stride = np.zeros(len(found.sites), np.int64), np.zeros(len(found.sites), np.int64)
        for site, place in self.stored.items():
            base[site.number], stride[site.number] = place.base, place.stride
        for memory in self._producers:
            address = np.empty(memory.column.size, np.int64)
            _addresses(
                memory.column,
                self.leaf_shift,
                self.program.n_inputs,
                base,
                stride,
                found.site_of,
                found.iteration_of,
                address,
            )
            if isinstance(memory, Factor):
                place_factor(memory, address, self)
            else:
                memory.address = self._fitted(address, memory.home)
                self._bases[memory] = address[memory.home.first[:-1]]
            if self.is_active(memory):
                self.adjoint_size = max(self.adjoint_size, int(address.max()) + 1)
            if not self._producers[memory][1] and (address < n_inputs).all():
                self.of_inputs.add(memory)
            elif (address < n_inputs).any():
                self.inputs_apart = False
        self.scratch, self.held = place_products(self)
        for loop in self.root.loops():
            if not loop.constant_trips:
                self.trips[loop] = self._table(loop.first)

    def _fitted(self, address: np.ndarray, home: Loop) -> Address:
        everywhere, within, stride = _affine(address, home.first)
        if everywhere:
            return Address(int(address[0]), int(stride) if address.size > 1 else 0)
        if within:
            bases = address[home.first[:-1]]
            return Address(stride=int(stride), table=self._table(bases), per_entry=True)
        return Address(table=self._table(address))

    def walk(self, address: np.ndarray) -> Address:
        """The same for one address an iteration of any loop, whatever its entries."""
        return self._fitted(address, Loop(np.array([address.size])))

    def shifts(self, loop: Loop, memories: list[Memory]) -> list[list[tuple[Memory, int]]]:
        """Groups of loads in `loop` that mostly walk side by side: each with its distance, in strides, from the first of its group."""
        groups: list[list[tuple[Memory, int]]] = []
        starts: list[np.ndarray] = []
        first = loop.first[:-1]
        for memory in memories:
            address = memory.address
            assert isinstance(address, Address)
            if address.stride == 0 or (address.table >= 0 and not address.per_entry):
                continue
            own = self._bases[memory] if address.per_entry else address.base + address.stride * first
            for group, start in zip(groups, starts, strict=True):
                leader = group[0][0].address
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

    def _table(self, numbers: np.ndarray) -> int:
        """Keep integers for the kernels to read; gives their place among all tables."""
        at = self._n_table
        self._tables.append(numbers)
        self._n_table += numbers.size
        return at

    def tables(self) -> np.ndarray:
        """All tables one after the other, int32."""
        joined = np.concatenate([np.zeros(1, np.int64), *self._tables])[1:] if self._tables else np.zeros(1, np.int64)
        if joined.size and joined.max() > np.iinfo(np.int32).max:
            raise OverflowError("addresses beyond 2**31")
        return joined.astype(np.int32)


def identity(operand: Operand) -> Operand | Site:
    """What an operand is known by: a site of the same iteration by itself."""
    return operand.site if isinstance(operand, Scope) else operand


def _is_carried(operand: Operand, loop: Loop) -> bool:
    return isinstance(operand, Carried) and operand.home is loop
