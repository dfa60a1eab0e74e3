"""A tape as a compiled kernel: all stages of the compiler one after the other, and calls of what comes out.

A kernel is right or says that it is not: a decision that changes, or an argument beyond the range of an inlined function, gives a status; a
result that is not finite is thrown away, as compiled code multiplies zero adjoints and infinite partials where the sweeps do not. The caller
then asks the interpreter (`Kernel.run` gives None).
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import time
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from tapejit.compiler.emit import emit
from tapejit.compiler.functions import register
from tapejit.compiler.link import Linked, estimate, link
from tapejit.compiler.multiply import register_products
from tapejit.compiler.nest import Loop, Product, Site
from tapejit.compiler.operands import Operands, cut, fuse
from tapejit.compiler.plan import Plan
from tapejit.compiler.prune import prune
from tapejit.compiler.roll import TooLargeError, roll
from tapejit.compiler.team import RUN, Team, register_team
from tapejit.errors import CompileError, TapeFullError, from_signal_handler
from tapejit.expansion import expand
from tapejit.layout import MATMUL
from tapejit.sweeps.kernel import kernel
from tapejit.tape import FlatTape
from tapejit.workspace import fresh

__all__ = ["MAX_COMPILE_SECONDS", "Kernel", "compile_tape"]

MAX_COMPILE_SECONDS = 20.0
LARGEST_PRODUCT = 50  # multiplications of a matrix product up to which it is written out; larger ones are calls
LARGEST_IN_LANES = 200_000  # the same for many inputs at once, where there are no such calls
_VECTORISED_SECONDS = 2.0  # as long as LLVM may look for loops to vectorise; it needs quadratic time
_PER_SITE = 10  # instructions of LLVM's, forward and reverse together
_ROUNDS = 8  # of cutting and fusing
_PADDING = 8  # doubles after the last value
EXPONENT = 0x7FF << 52  # its bits are all set in inf and NaN
_LONG = 1 << 14  # entries from which one pass that copies and tests is faster than two of NumPy's

_Forward = ctypes.CFUNCTYPE(ctypes.c_int64, *(ctypes.c_void_p,) * 3)
_Reverse = ctypes.CFUNCTYPE(ctypes.c_int64, *(ctypes.c_void_p,) * 5)


class Kernel:
    """Machine code for one tape, or the reason why there is none. Made by `compile_tape`.

    Several threads may run one kernel at the same time.

    Attributes
    ----------
    why_interpreted : str
        Why the tape was not compiled; empty if it was.
    nest : str
        The loops that were found, a line each.
    seconds : float
        That compiling took.
    nbytes : int
        Working memory of a value and gradient.
    n_shared : int
        Loops that threads may share.
    """

    def __init__(self, why_interpreted: str, seconds: float) -> None:
        self.why_interpreted, self.seconds = why_interpreted, seconds
        self.nest = ""
        self.nbytes = self.n_shared = 0
        self.n_lanes = 1
        self.linked: Linked | None = None

    def _load(self, plan: Plan, linked: Linked, n_threads: int) -> None:
        program = plan.program
        self.linked = linked
        self.size, self.adjoint_size = plan.size, plan.adjoint_size
        self.n_inputs, self.n_parameters = program.n_inputs, program.n_parameters
        self.parameters_at, self.constants_at = plan.parameters_at, plan.constants_at
        self.constants = np.append(program.constants, np.zeros(int(plan.threaded)))  # and where the team goes
        self.n_threads, self._team_at = (n_threads if plan.threaded and plan.shared else 1), plan.team_at
        self.inputs_apart = plan.inputs_apart
        self.outputs_at, self.output_adjoints_at = plan.outputs_at, plan.output_adjoints_at
        self._place: Any = _place(plan.outputs_at)
        self._seed_place: Any = _place(plan.output_adjoints_at)
        self.tables = np.ascontiguousarray(plan.tables())
        self._tables_at = self.tables.ctypes.data
        self._held = plan.held
        self._forward = _Forward(linked.address("forward"))
        self._reverse = _Reverse(linked.address("reverse"))
        self._free: list[_Work] = []
        self._most = 2 * (os.cpu_count() or 1)
        self.nest = _described(plan)
        self.n_shared = len(plan.shared)
        self.nbytes = 8 * (plan.size + plan.adjoint_size) * self.n_lanes + self.tables.nbytes

    def take(self) -> _Work:
        """Memory for one call; to be given back."""
        try:
            return self._free.pop()
        except IndexError:
            return _Work(self)

    def give(self, work: _Work) -> None:
        if len(self._free) < self._most:
            self._free.append(work)

    def run(
        self, x: np.ndarray, parameters: Sequence[Any] = (), seeds: Any = None, token: object = None
    ) -> tuple[Any, np.ndarray | None] | None:
        """Outputs and adjoints of the inputs, or None if the interpreter must be asked.

        Parameters
        ----------
        x : (n_inputs,) ndarray
        parameters : sequence of float and ndarray
            In the order of their slots.
        seeds : float or ndarray of float64, optional
            A number for one output; (m,) for several; (k, m) for k adjoints of the inputs at a time. None: values only.
        token : object
            Something that stands for these parameters: they are not written again where the same object was given before.

        Returns
        -------
        outputs : float or (m,) ndarray
            A float if there is one output.
        adjoints : (n_inputs,) or (k, n_inputs) ndarray, or None
        """
        work = self.take()
        team = Team.take(self.n_threads) if self.n_threads > 1 else None
        try:
            memory = work.memory
            if team is not None:
                work.team[0] = team.address
                team.wake()
            if self.inputs_apart:
                x = np.ascontiguousarray(x, np.float64)
                inputs_at = x.__array_interface__["data"][0]
            else:
                work.inputs[:] = x
                inputs_at = None
            if self.n_parameters and (token is None or work.holds is not token):
                work.holds = None
                _write(work.parameters, parameters)
                work.holds = token
            if self._forward(inputs_at, work.memory_at, self._tables_at):
                return None
            place = self._place
            outputs = memory.item(place) if type(place) is int else memory[place].copy()
            if seeds is None:
                return outputs, None
            if type(seeds) is float or seeds.ndim < 2:
                bars = self._pulled_back(work, inputs_at, seeds)
            else:
                bars = np.empty((len(seeds), self.n_inputs))
                for row, seed in zip(bars, seeds, strict=True):
                    pulled = self._pulled_back(work, inputs_at, seed.item() if seed.size == 1 else seed)
                    if pulled is None:
                        return None
                    row[:] = pulled
            return None if bars is None else (outputs, bars)
        finally:
            if team is not None:
                work.team[0] = 0
                team.give()
            self.give(work)

    def _pulled_back(self, work: _Work, inputs_at: int | None, seeds: Any) -> np.ndarray | None:
        adjoint = work.adjoint
        if adjoint is None:
            adjoint = work.add_adjoint(self)
        adjoint[self._seed_place] = seeds
        if inputs_at is not None:
            out = np.zeros(self.n_inputs)
            out_at = out.__array_interface__["data"][0]
            if self._reverse(inputs_at, work.memory_at, out_at, work.adjoint_at, self._tables_at):
                work.adjoint = None
                return None
            if out.size >= _LONG:
                return out if _is_finite(out.view(np.int64)) else None
            # One pass; a square may overflow where the number does not.
            return out if math.isfinite(out.dot(out)) or np.isfinite(out).all() else None
        if self._reverse(None, work.memory_at, None, work.adjoint_at, self._tables_at):
            work.adjoint = None
            return None
        bars = work.bars
        if bars.size >= _LONG:
            out = np.empty(bars.size)
            return out if _moved_finite(bars.view(np.int64), out.view(np.int64)) else None
        out = bars.copy()
        bars.fill(0.0)
        if not math.isfinite(out.dot(out)) and not np.isfinite(out).all():
            return None
        return out


class _Work:
    """The arrays of one call."""

    __slots__ = ("adjoint", "adjoint_at", "bars", "holds", "inputs", "memory", "memory_at", "parameters", "team")

    def __init__(self, owner: Kernel) -> None:
        self.memory = fresh(owner.size + _PADDING, np.dtype(np.float64))
        self.memory_at = self.memory.ctypes.data
        self.inputs = self.memory[: owner.n_inputs]
        self.parameters = self.memory[owner.parameters_at : owner.parameters_at + owner.n_parameters]
        self.memory[owner.constants_at : owner.constants_at + owner.constants.size] = owner.constants
        self.team = self.memory[owner._team_at : owner._team_at + 1].view(np.int64)
        self.holds: object = None
        self.adjoint: np.ndarray | None = None

    def add_adjoint(self, owner: Kernel) -> np.ndarray:
        """Adjoints of 0: a run that ends well leaves them so."""
        adjoint = fresh(owner.adjoint_size + _PADDING, np.dtype(np.float64))
        if adjoint.nbytes < 1 << 20:
            adjoint.fill(0.0)
        self.adjoint, self.adjoint_at = adjoint, adjoint.ctypes.data
        self.bars = adjoint[: owner.n_inputs]
        return adjoint


def _write(out: np.ndarray, parameters: Sequence[Any]) -> None:
    at = 0
    for number in parameters:
        if np.ndim(number):
            out[at : at + number.size].reshape(number.shape)[...] = number
            at += number.size
        else:
            out[at] = number
            at += 1
    assert at == out.size, "not the parameters of this tape"


def _place(at: np.ndarray) -> int | slice | np.ndarray:
    """The cheapest index for the places of the outputs."""
    if at.size == 1:
        return int(at[0])
    if at.size and (np.diff(at) == 1).all():
        return slice(int(at[0]), int(at[-1]) + 1)
    return at


@kernel
def _moved_finite(source, out):
    """Copy numbers given by their bits and clear them, and say whether all were finite."""
    found = 0
    for i in range(source.size):
        out[i] = source[i]
        found |= (source[i] & EXPONENT) == EXPONENT
        source[i] = 0
    return not found


@kernel
def _is_finite(bits):
    """Whether all numbers, given by their bits, are finite: in vectors, which a sum of floats would not be."""
    found = 0
    for i in range(bits.size):
        found |= (bits[i] & EXPONENT) == EXPONENT
    return not found


def compile_tape(
    tape: FlatTape,
    *,
    fast: bool = False,
    max_compile_seconds: float = MAX_COMPILE_SECONDS,
    n_lanes: int = 1,
    n_threads: int = 1,
) -> Kernel:
    """Compile a tape with its `output_slots`.

    Parameters
    ----------
    tape : FlatTape
        Blocks are written out first, except for matrix products of more than `LARGEST_PRODUCT` multiplications.
    fast : bool
        Let LLVM contract products and sums: values then differ from the interpreter's in the last bits.
    max_compile_seconds : float
        Give up where compiling would take longer, as far as that is known before.
    n_lanes : int
        How many independent inputs a run works on (see `tapejit.compiler.lanes`).
    n_threads : int
        How many threads share loops that carry nothing but sums. The results do not depend on it.

    Returns
    -------
    Kernel
        Check `why_interpreted`.
    """
    started = time.perf_counter()
    try:
        return _compiled(tape, started, fast, max_compile_seconds, n_lanes, n_threads)
    except Exception as error:  # an error of the compiler's own: interpreting gives the same results
        if from_signal_handler(error):
            raise
        what = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"tapejit's compiler failed on this tape ({what}), which is interpreted instead, with the same results; please report it",
            RuntimeWarning,
            stacklevel=2,
        )
        return Kernel(f"the compiler failed ({what})", time.perf_counter() - started)


def _compiled(
    tape: FlatTape, started: float, fast: bool, max_compile_seconds: float, n_lanes: int, n_threads: int
) -> Kernel:
    """All stages, one after the other; see `compile_tape`."""

    def given_up(why: str) -> Kernel:
        return Kernel(why, time.perf_counter() - started)

    for block in tape.blocks() if n_lanes > 1 else ():
        if block.kind == MATMUL and math.prod(block.shape) > LARGEST_IN_LANES:
            return given_up(f"a product of {_shapes(block.shape)} matrices stays a call of BLAS")
    largest = LARGEST_IN_LANES if n_lanes > 1 else LARGEST_PRODUCT
    try:
        scalars = expand(tape, FlatTape(), True, largest) if len(tape.block_at) else tape
        program = prune(scalars)
        del scalars
        root = roll(program, max_sites=_most_sites(max_compile_seconds))
    except (TooLargeError, TapeFullError) as error:
        return given_up(str(error))
    found = Operands(root, program)
    for _ in range(_ROUNDS):
        if not (cut(found) or fuse(found)):
            break
        found = Operands(root, program)
    try:
        plan = Plan(found, in_chunks=n_lanes == 1, threaded=n_threads > 1)
        text, externals = emit(plan, n_lanes)
    except OverflowError as error:
        return given_up(str(error))
    n_instructions = _n_instructions(text)
    vectorise = estimate(len(re.findall(r"^  ", text, re.MULTILINE))) <= min(_VECTORISED_SECONDS, max_compile_seconds)
    seconds = estimate(n_instructions, vectorise=vectorise)
    if time.perf_counter() - started + seconds > max_compile_seconds:
        return given_up(
            f"LLVM would need about {seconds:.0f} s for {n_instructions} instructions; max_compile_seconds is {max_compile_seconds:g}"
        )
    register(externals)
    symbols = [f"tapejit_{name}" for name in sorted(externals)]
    if plan.threaded:
        register_team()
        symbols.append(RUN)
    if plan.has_products:
        symbols += register_products()
    try:
        linked = link(
            text,
            fast=fast,
            vectorise=vectorise,
            pack=plan.has_packs and n_lanes == 1,
            externals=symbols,
        )
    except CompileError as error:
        return given_up(str(error))
    made = Kernel("", 0.0)
    made.n_lanes = n_lanes
    made._load(plan, linked, n_threads)
    made.seconds = time.perf_counter() - started
    return made


def _most_sites(seconds: float) -> int:
    """Distinct instructions of a program above which LLVM would take longer than this."""
    n = 1
    while n < 1 << 20 and estimate(n * _PER_SITE, vectorise=False) <= seconds:
        n += n // 8 + 1
    return n


def _n_instructions(text: str) -> int:
    """Instructions of a module when its inlined functions stand where they are called."""
    sizes: dict[str, int] = {}
    calls: dict[str, list[str]] = {}
    for name, body in re.findall(r'^define [^@]*@"([^"]+)"(.*?)^}', text, re.MULTILINE | re.DOTALL):
        sizes[name] = len(re.findall(r"^  ", body, re.MULTILINE))
        calls[name] = re.findall(
            r' call [^@\n]*@"(tapejit\.[^"]+)"\([^\n]*\)$', body, re.MULTILINE
        )  # but those out of line

    chunks = set(re.findall(r'^define [^@\n]*@"([^"]+)"[^\n]* noinline ', text, re.MULTILINE))  # compiled once each

    @cache
    def inlined(name: str) -> int:
        return sizes.get(name, 0) + sum(inlined(callee) for callee in calls.get(name, ()) if callee not in chunks)

    return sum(inlined(name) for name in sizes if not name.startswith("tapejit.") or name in chunks)


# What was found, in words.


def _described(plan: Plan) -> str:
    lines: list[str] = []
    _describe(plan, plan.root, lines, 0)
    return "\n".join(lines)


def _describe(plan: Plan, loop: Loop, lines: list[str], depth: int) -> None:
    own = [node for node in loop.body if isinstance(node, Site)]
    if depth:
        n_carried = sum(operand.home is loop for operand in plan.found.carried)
        n_stored = sum(site in plan.stored for site in own) + sum(operand.home is loop for operand in plan.kept)
        facts = [_counted(len(own), "slot")]
        facts += [f"{n_carried} carried"] if n_carried else []
        facts += [f"{n_stored} stored"] if n_stored else []
        facts += [f"{plan.shared[loop].n_chunks} chunks"] if loop in plan.shared else []
        lines.append(f"{'  ' * depth}loop, {_trips(loop)}: {', '.join(facts)}")
    elif own:
        lines.append(f"  {_counted(len(own), 'slot')} outside of loops")
    for node in loop.body:
        if isinstance(node, Product):
            lines.append(f"{'  ' * (depth + 1)}product of {_shapes(node.shape)} matrices")
        elif isinstance(node, Loop):
            _describe(plan, node, lines, depth + 1)


def _shapes(shape: tuple[int, ...]) -> str:
    m, k, n = shape
    return f"{m:,} x {k:,} and {k:,} x {n:,}"


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("s" if n != 1 else "")


def _trips(loop: Loop) -> str:
    trips = loop.trips
    if loop.constant_trips:
        return f"{loop.constant_trips:,} times"
    return f"{trips.min():,} to {trips.max():,} times, {trips.mean():,.1f} on average"
