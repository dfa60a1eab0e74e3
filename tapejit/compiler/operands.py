"""The third stage: what every site of a loop nest reads.

| operand | the value of | in the kernels |
|---|---|---|
| `Constant` | a number | a literal |
| `Scope` | a site of this iteration, here or in a loop around | a register |
| `Result` | a site of a loop that was left before, in its last iteration | a register |
| `Carried` | a site in the iteration before, of this loop or one around; another operand in the first iteration | a register |
| `Memory` | anything else: inputs, earlier iterations, other loops | a load: affine, or by a table |

A loop whose operands are affine in pieces is cut where the pieces meet (`cut`): the pieces become a loop around it, whose table of starts and lengths
takes the place of a table of all iterations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from tapejit.compiler.nest import Loop, Node, Product, Site
from tapejit.compiler.prune import ABSENT, PRODUCT, Program
from tapejit.sweeps.kernel import kernel

__all__ = [
    "Carried",
    "Constant",
    "Data",
    "Factor",
    "Memory",
    "Operand",
    "Result",
    "Scope",
    "Operands",
    "cut",
    "fuse",
]

SHORTEST_PIECE = 6  # iterations in a piece, on average, from which cutting pays
LONGEST_GROUP = 400  # instructions of a few iterations that are put together
MOST_APART, SHORTEST_APART, LARGEST_APART = (
    8,
    64,
    32,
)  # pieces of a loop that become loops of their own; iterations; sites
LARGEST_FUSED = 200  # sites of two loops that become one


@dataclass(frozen=True)
class Constant:
    """A number that is known when the kernel is made."""

    value: float


@dataclass(frozen=True, eq=False)
class Scope:
    """The value of a site of the same iteration, in the same loop or one around."""

    site: Site


@dataclass(frozen=True, eq=False)
class Result:
    """The value that a site of a loop inside `home` had when that loop was left, in this iteration of `home`."""

    site: Site
    home: Loop


@dataclass(eq=False)
class Carried:
    """The value of `source` in the iteration before of `home`; in the first iteration of an entry, `start`, read outside of `home`."""

    source: Site
    home: Loop
    start: Operand


@dataclass(eq=False)
class Memory:
    """Values in memory: instruction or leaf ``column[t]`` in iteration t of `home`.

    `first_use` is the position in the body of `home` of the first node that reads it: what it reads was stored before. The plan adds where the values
    stand, and their adjoints.
    """

    home: Loop
    column: np.ndarray
    first_use: int
    address: Any = field(default=None, repr=False)
    adjoint: Any = field(default=None, repr=False)


@dataclass(eq=False)
class Factor(Memory):
    """A factor of a matrix product: `n_rows` times `n_columns` values in each iteration of `home`, the loop around the product.

    `column` has them one after the other, iteration by iteration, or once if all iterations read the same.
    Rows and columns are those of the transposed matrix if BLAS reads that. `address` and `adjoint` are of the kind `products.Standing`.
    """

    n_rows: int = 0
    n_columns: int = 0
    is_transposed: bool = False

    @property
    def size(self) -> int:
        return self.n_rows * self.n_columns


@dataclass(eq=False)
class Data:
    """A factor of plain numbers, which stay where they are: an array for each iteration of the loop around, and the strides that BLAS reads.

    The addresses are in the table at `table`, two entries each, `table_stride` from one iteration to the next.
    """

    arrays: list[np.ndarray]
    strides: tuple[int, int]
    table: int = -1
    table_stride: int = 0


Operand: TypeAlias = Constant | Scope | Result | Carried | Memory | Data


@kernel
def _follow(column, iteration_of, site_of, site, down, up, is_first):
    """Whether all of a column is `site` of the same iteration of a loop, and whether all is of the one before but in first iterations."""
    same, before, n_before = True, True, 0
    for t in range(column.size):
        v = column[t]
        at = -1
        if v >= 0 and site_of[v] == site:
            at = down[iteration_of[v]]
        own = up[t]
        if at != own:
            same = False
        if not is_first[own]:
            n_before += 1
            if at < 0 or at != own - 1:
                before = False
        if not (same or before):
            break
    return same, before and n_before > 0


@kernel
def _held(column, up, first_of):
    """The one value that a column has in each iteration of a loop around that ``first_of`` marks; an empty array if there are several."""
    found = np.full(first_of.size, -(1 << 40))
    for t in range(column.size):
        own = up[t]
        if first_of[own]:
            if found[own] == -(1 << 40):
                found[own] = column[t]
            elif found[own] != column[t]:
                return np.empty(0, np.int64)
    return found[first_of]


@kernel
def _keys(column, site_of, iteration_of, keys):
    """A number for what is read, so that the same site in the next iteration, and the next leaf, are one apart."""
    for t in range(column.size):
        v = column[t]
        keys[t] = ((np.int64(site_of[v]) + 1) << 36) + iteration_of[v] if v >= 0 else -np.int64(v) - 1


@kernel
def _breaks(keys, first, marks):
    """Mark the iterations where a column stops walking at its most frequent stride; gives how many."""
    n = keys.size
    candidate, count = np.int64(0), 0
    for t in range(1, n):  # the majority vote of Boyer and Moore
        d = keys[t] - keys[t - 1]
        if count == 0:
            candidate, count = d, 1
        else:
            count += 1 if d == candidate else -1
    n_breaks = 0
    e = 1
    for t in range(1, n):
        if e < first.size and first[e] == t:
            e += 1
        elif keys[t] - keys[t - 1] != candidate:
            marks[t] = True
            n_breaks += 1
    return n_breaks


class Operands:
    """The operands of all sites below `root`, found when it is made; ``site.operands`` then has those of a site: x, y, condition.

    Attributes
    ----------
    root : Loop
    sites : list of Site
        In order; ``site.number`` is the position.
    memory, carried, results, factors : list
        All operands of these kinds.
    """

    def __init__(self, root: Loop, program: Program) -> None:
        self.root, self.program = root, program
        self.sites = list(root.sites())
        self.n_fixed = program.n_inputs + program.n_parameters
        self.site_of = np.empty(program.size, np.int32)
        self.iteration_of = np.empty(program.size, np.int32)
        for number, site in enumerate(self.sites):
            site.number = number
            self.site_of[site.instructions] = number
            self.iteration_of[site.instructions] = np.arange(site.instructions.size, dtype=np.int32)
        self._up: dict[tuple[Loop, Loop], np.ndarray] = {}
        self._down: dict[tuple[Loop, Loop], np.ndarray] = {}
        self._first: dict[Loop, np.ndarray] = {}
        self._start: dict[Loop, np.ndarray] = {}
        self._known: dict[tuple, list[tuple[np.ndarray, Operand]]] = {}
        self.memory: list[Memory] = []
        self.carried: list[Carried] = []
        self.results: list[Result] = []
        self.factors: list[Factor] = []
        for site in self.sites:
            if isinstance(site.loop, Product):
                site.operands = [self._factor(site.loop, which) for which in (0, 1)]
                continue
            site.operands = [
                self._operand(self.program.operands[k][site.instructions], site)
                for k in range(3)
                if self.program.operands[k][site.instructions[0]] != ABSENT
            ]

    def _factor(self, product: Product, which: int) -> Factor | Data:
        """What a matrix product reads as its first or second factor."""
        m, k, n = product.shape
        shape = ((m, k), (k, n))[which]
        matmuls = product.matmuls
        strides = matmuls[0].layouts[which]
        if matmuls[0].reads[which] is None:
            arrays = [matmul.operands[which].elements(shape) for matmul in matmuls]
            if strides is None:
                return Data([np.ascontiguousarray(array) for array in arrays], (shape[1], 1))
            return Data(arrays, strides)
        is_transposed = strides is not None and strides[1] != 1
        reads = [matmul.reads[which] for matmul in matmuls]
        if all(column is reads[0] for column in reads):
            reads = reads[:1]
        columns = [column.reshape(shape) for column in reads]  # type: ignore[union-attr]
        if is_transposed:
            columns, shape = [column.T for column in columns], shape[::-1]
        assert product.loop is not None
        factor = Factor(
            product.loop, np.stack(columns).reshape(-1), product.position, None, None, *shape, is_transposed
        )
        self.factors.append(factor)
        return factor

    def _operand(self, column: np.ndarray, user: Site) -> Operand:
        assert user.loop is not None
        return self._find(column.astype(np.int64), user.loop, user.position)

    def _find(self, column: np.ndarray, loop: Loop, position: int) -> Operand:
        """The operand that reads `column` in `loop`, before the node at `position`."""
        key = (loop, position if column[-1] >= 0 else -1, int(column[0]), int(column[-1]), int(column.sum()))
        for known, operand in self._known.get(key, []):
            if np.array_equal(known, column):
                return operand
        operand = self._made(column, loop, position)
        self._known.setdefault(key, []).append((column, operand))
        return operand

    def _made(self, column: np.ndarray, loop: Loop, position: int) -> Operand:
        last = int(column[-1])
        if last < 0:
            constant = ~last - self.n_fixed
            if constant >= 0 and (column == last).all():
                return Constant(float(self.program.constants[constant]))
        elif self.program.code[last] != PRODUCT:  # whose results are in memory alone
            found = self._followed(column, loop, position, self.sites[self.site_of[last]])
            if found is not None:
                return found
        return self._loaded(column, loop, position)

    def _followed(self, column: np.ndarray, loop: Loop, position: int, source: Site) -> Operand | None:
        """A `Scope`, `Result` or `Carried` of `source`, if the column is one."""
        home: Loop | None = loop
        while home is not None:
            if home.contains(source):
                down, up = self.down(source.loop, home), self.up(loop, home)  # type: ignore[arg-type]
                same, before = _follow(
                    column, self.iteration_of, self.site_of, source.number, down, up, self.is_first(home)
                )
                if same and _place(source, home) < position:
                    return Scope(source) if source.loop is home else self._result(source, home)
                if before and home is not self.root:
                    start = _held(column, up, self.is_first(home))
                    # Not what the first iteration itself computes.
                    if start.size and (start < self.start(home)[self.is_first(home)]).all():
                        assert home.loop is not None
                        begin = self._find(start, home.loop, home.position)
                        return self._carry(source, home, begin)
            position, home = home.position, home.loop
        return None

    def _result(self, source: Site, home: Loop) -> Result:
        for result in self.results:
            if result.site is source and result.home is home:
                return result
        self.results.append(Result(source, home))
        return self.results[-1]

    def _carry(self, source: Site, home: Loop, start: Operand) -> Carried:
        for carried in self.carried:
            if carried.source is source and carried.home is home and _alike(carried.start, start):
                return carried
        carried = Carried(source, home, start)
        self.carried.append(carried)
        return carried

    def _loaded(self, column: np.ndarray, loop: Loop, position: int) -> Memory:
        """A load, made in the outermost loop in which it can be."""
        while loop.loop is not None:
            first = loop.first[:-1]
            starts = column[first]
            if not (column == np.repeat(starts, loop.trips)).all() or (starts >= self.start(loop)[first]).any():
                break
            column, position, loop = starts, loop.position, loop.loop
        for memory in self.memory:
            if memory.home is loop and np.array_equal(memory.column, column):
                memory.first_use = min(memory.first_use, position)
                return memory
        self.memory.append(Memory(loop, column, position))
        return self.memory[-1]

    # Iterations of one loop seen from another.

    def up(self, loop: Loop, home: Loop) -> np.ndarray:
        """The iteration of `home`, which is around `loop`, for each iteration of `loop`."""
        key = (loop, home)
        if key not in self._up:
            if loop is home:
                self._up[key] = np.arange(loop.n_iterations, dtype=np.int32)
            else:
                assert loop.loop is not None
                self._up[key] = self.up(loop.loop, home)[loop.entry]
        return self._up[key]

    def down(self, loop: Loop, home: Loop) -> np.ndarray:
        """The same for iterations whose values can be seen in `home`, the last ones; -1 for the others."""
        key = (loop, home)
        if key not in self._down:
            if loop is home:
                self._down[key] = self.up(loop, home)
            else:
                assert loop.loop is not None
                seen = np.full(loop.n_iterations, -1, np.int32)
                seen[loop.first[1:] - 1] = self.down(loop.loop, home)
                self._down[key] = seen
        return self._down[key]

    def is_first(self, loop: Loop) -> np.ndarray:
        if loop not in self._first:
            first = np.zeros(loop.n_iterations, np.bool_)
            first[loop.first[:-1]] = True
            self._first[loop] = first
        return self._first[loop]

    def start(self, loop: Loop) -> np.ndarray:
        """The first instruction of every iteration."""
        if loop not in self._start:
            self._start[loop] = loop.start()
        return self._start[loop]

    def keys(self, column: np.ndarray) -> np.ndarray:
        keys = np.empty(column.size, np.int64)
        _keys(column, self.site_of, self.iteration_of, keys)
        return keys


def _place(source: Site, home: Loop) -> int:
    """Position in the body of `home` of what holds `source`."""
    node: Node = source
    while node.loop is not home:
        assert node.loop is not None
        node = node.loop
    return node.position


def _alike(a: Operand, b: Operand) -> bool:
    return (
        a is b
        or (isinstance(a, Constant) and a == b)
        or (isinstance(a, Scope) and isinstance(b, Scope) and a.site is b.site)
    )


@kernel
def _steady(keys, lag):
    """How many iterations walk on from the one `lag` before, at the stride that is most frequent for their number modulo `lag`."""
    n = 0
    for residue in range(lag):
        candidate, count = np.int64(0), 0
        for t in range(lag + residue, keys.size, lag):
            d = keys[t] - keys[t - lag]
            if count == 0:
                candidate, count = d, 1
            else:
                count += 1 if d == candidate else -1
        for t in range(lag + residue, keys.size, lag):
            n += keys[t] - keys[t - lag] == candidate
    return n


def cut(found: Operands) -> bool:
    """Cut loops where their loads are affine in pieces, and put iterations together where all pieces have one short length.

    Returns
    -------
    bool
        Whether anything was changed: the operands must then be found again.
    """
    changed = False
    for loop in list(found.root.loops()):
        columns = [memory.column for memory in found.memory if memory.home is loop]
        if loop.loop is None or not columns or loop.n_iterations < 2 * SHORTEST_PIECE:
            continue
        marks = np.zeros(loop.n_iterations, np.bool_)
        n_pieces = loop.n_entries
        unsteady = []
        for column in columns:
            own = np.zeros(loop.n_iterations, np.bool_)
            keys = found.keys(column)
            if 3 * _breaks(keys, loop.first, own) <= loop.n_iterations:
                marks |= own
            else:
                unsteady.append(keys)
        lag = _common_lag(loop, unsteady)
        if lag:
            _grouped(loop, lag)
            changed = True
            continue
        n_pieces += int(np.count_nonzero(marks))
        if n_pieces > loop.n_entries:
            changed |= _regroup(loop, marks) or (loop.n_iterations >= SHORTEST_PIECE * n_pieces and _split(loop, marks))
    return changed


def _split(loop: Loop, marks: np.ndarray) -> bool:
    """Put a loop over pieces around `loop`; a few long pieces become loops of their own."""
    marks[loop.first[:-1]] = True
    starts = np.flatnonzero(marks)
    pieces = np.diff(np.append(starts, loop.n_iterations))
    if loop.n_entries == 1 and len(loop.body) <= LARGEST_APART and all(isinstance(node, Site) for node in loop.body):
        # A piece of one iteration may be the beginning of a sum, which is carried on in the next.
        begins = np.append(True, pieces[:-1] > 1)
        longer = np.diff(np.append(starts[begins], loop.n_iterations))
        if 1 < longer.size <= MOST_APART and longer.min() >= SHORTEST_APART:
            _take_apart(loop, starts[begins], longer)
            return True
    outer = Loop(np.bincount(loop.entry[starts], minlength=loop.n_entries))
    inner = Loop(pieces)
    parent = loop.loop
    assert parent is not None
    outer.loop, outer.position = parent, loop.position
    parent.body[loop.position] = outer
    for node in loop.body:
        inner.append(node)
    outer.append(inner)
    return True


def _take_apart(loop: Loop, starts: np.ndarray, pieces: np.ndarray) -> None:
    """Make every piece of an innermost loop a loop of its own."""
    parent = loop.loop
    assert parent is not None
    own = []
    for start, size in zip(starts, pieces, strict=True):
        piece = Loop(np.array([size]))
        for node in loop.body:
            assert isinstance(node, Site)
            piece.append(Site(node.code, node.guard, node.instructions[start : start + size]))
        own.append(piece)
    parent.replace(loop, own)


def fuse(found: Operands) -> bool:
    """Make one loop of two that follow each other, run equally often, and hand results on from iteration to iteration at most.

    Returns
    -------
    bool
        Whether anything was changed: the operands must then be found again.
    """
    changed = False
    for parent in list(found.root.loops()):
        k = 0
        while k + 1 < len(parent.body):
            first, second = parent.body[k : k + 2]
            if isinstance(first, Loop) and isinstance(second, Loop) and _fit(found, first, second):
                fused = Loop(first.trips)
                for node in [*first.body, *second.body]:
                    fused.append(node)
                parent.replace(first, [fused])
                parent.replace(second, [])
                changed = True
            else:
                k += 1
    return changed


def _fit(found: Operands, first: Loop, second: Loop) -> bool:
    """Whether two neighbouring loops may become one: then every read of the other's results is of the same iteration."""
    if not np.array_equal(first.trips, second.trips) or len(first.body) + len(second.body) > LARGEST_FUSED:
        return False
    nodes = [*first.body, *second.body]
    if any(isinstance(node, Loop) for node in nodes) or isinstance(first, Product) or isinstance(second, Product):
        return False
    numbers = np.array([node.number for node in first.body if isinstance(node, Site)])
    if numbers.min() < 0:  # fused a moment ago: its sites have not been numbered again
        return False
    low, high = numbers.min(), numbers.max()
    for site in second.body:
        assert isinstance(site, Site)
        if site.number < 0:
            return False
        for k in range(3):
            column = found.program.operands[k][site.instructions]
            if not _reads_alike(column, found.site_of, found.iteration_of, low, high):
                return False
    return True


@kernel
def _reads_alike(column, site_of, iteration_of, low, high):
    """Whether what a column reads of the sites low .. high is of the same iteration."""
    for t in range(column.size):
        v = column[t]
        if v >= 0 and low <= site_of[v] <= high and iteration_of[v] != t:
            return False
    return True


def _common_lag(loop: Loop, columns: list[np.ndarray]) -> int:
    """Over how many iterations columns are steady that are not from one to the next: 0 if none, or too many to put together."""
    if not columns or any(isinstance(node, Loop) for node in loop.body):
        return 0
    n = loop.n_iterations
    for lag in range(2, 9):
        if (loop.trips % lag).any() or lag * len(loop.body) > LONGEST_GROUP:
            continue
        if all(4 * _steady(keys, lag) >= 3 * (n - lag) for keys in columns):
            return lag
    return 0


def _regroup(loop: Loop, marks: np.ndarray) -> bool:
    """Make one iteration of every few, if all pieces are that long and the body is small."""
    if any(isinstance(node, Loop) for node in loop.body):
        return False
    marked = marks.copy()
    marked[loop.first[:-1]] = True
    pieces = np.diff(np.append(np.flatnonzero(marked), loop.n_iterations))
    length = int(pieces[0])
    if (pieces != length).any() or length * len(loop.body) > LONGEST_GROUP or length >= 64:
        return False
    _grouped(loop, length)
    return True


def _grouped(loop: Loop, length: int) -> None:
    """Make one iteration of every `length`."""
    parent = loop.loop
    assert parent is not None
    grouped = Loop(loop.trips // length)
    grouped.loop, grouped.position = parent, loop.position
    parent.body[loop.position] = grouped
    for j in range(length):
        for node in loop.body:
            assert isinstance(node, Site)
            grouped.append(Site(node.code, node.guard, node.instructions[j::length]))
