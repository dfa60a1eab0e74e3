"""What a computation with loops takes in memory: planned before, measured afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tapejit.calls import Call, check_callable, normalised_argnums
from tapejit.checkpointing.budget import LoopPlan, in_words
from tapejit.checkpointing.context import local
from tapejit.errors import UnsupportedError

__all__ = ["MemoryReport", "Plan", "memory_report", "plan"]


@dataclass(frozen=True)
class Plan:
    """What a function with loops takes. Made by `plan`.

    Attributes
    ----------
    loops : list of LoopPlan
    slots : int
        On the tape around the loops.
    tape_bytes : int
        Of that tape with its values, and of its adjoints.
    """

    loops: list[LoopPlan]
    slots: int
    tape_bytes: int

    @property
    def nbytes(self) -> int:
        """All of it, for a value and a gradient."""
        return self.tape_bytes + sum(loop.nbytes for loop in self.loops)

    def __str__(self) -> str:
        head = (
            f"{in_words(self.nbytes)}, of which {in_words(self.tape_bytes)} for {self.slots:,} slots around the loops"
        )
        return "\n".join([head, *map(str, self.loops)])


@dataclass
class MemoryReport:
    """What the last loop of this thread with a budget has taken. Made by `memory_report`.

    Attributes
    ----------
    plan : LoopPlan
    budget : int
    measured : int or None
        The largest resident memory of the process from the start of the loop to the end of its last reverse sweep, above that at the start; None
        where the system does not tell, or as long as there was no reverse sweep.
    """

    plan: LoopPlan
    budget: int
    measured: int | None = None
    before: int | None = field(default=None, repr=False)

    def __str__(self) -> str:
        measured = "not measured" if self.measured is None else in_words(self.measured)
        return f"budget {in_words(self.budget)}, planned {in_words(self.plan.nbytes)}, measured {measured}\n{self.plan}"


def memory_report() -> MemoryReport | None:
    """What the last loop with ``memory=`` in this thread has taken, beside what was planned; None if there was none.

    What is measured is resident memory of the whole process, other threads included. Memory that the process had and had freed before may be
    used again, so that less is measured than planned.

    Returns
    -------
    MemoryReport or None

    Examples
    --------
    >>> import tapejit as tj
    >>> _ = tj.grad(lambda p: tj.loop(lambda x, p: x * p, 1.0, 1000, p, memory="2 MiB"))(0.9)
    >>> tj.memory_report().plan.nbytes <= tj.memory_report().budget
    True
    """
    return local.report


def plan(
    f: Callable, *args: Any, argnums: int | Sequence[int] = 0, memory: int | str | None = None, **kwargs: Any
) -> Plan:
    """What a gradient of a function with loops would take in memory, and how often its steps would be computed, without running the loops.

    One step of each loop is recorded. What comes behind a loop sees its first state in the place of the last one.

    Parameters
    ----------
    f : callable
        Holds `tapejit.loop` or `tapejit.while_loop`.
    *args
        Its arguments.
    argnums : int or sequence of int
        Which of them would be differentiated by.
    memory : int or str, optional
        A budget for each loop that has neither a budget nor a number of checkpoints of its own.
    **kwargs
        Keyword arguments of `f`.

    Returns
    -------
    Plan

    Raises
    ------
    UnsupportedError
        If `f` runs no loop that depends on what is differentiated: a recording of plain code takes what it takes, 25 bytes a slot.
    MemoryBudgetError
        If a budget is too small; says what the smallest is.

    Examples
    --------
    >>> import numpy as np, tapejit as tj
    >>> f = lambda x: np.sum(tj.loop(lambda x: np.sin(x) + 0.1, x, 100_000))
    >>> made = tj.plan(f, np.zeros(100), memory="4 MiB")
    >>> made.loops[0].advances / 100_000 < 2.0, made.loops[0].nbytes <= 4 << 20
    (True, True)
    """
    check_callable(f)
    wanted, _ = normalised_argnums(argnums, len(args))
    before = local.planned, local.memory
    local.planned, local.memory = [], memory
    try:
        call = Call(f, args, wanted, kwargs, short_lived=True)
        loops = local.planned
    finally:
        local.planned, local.memory = before
    if not loops:
        raise UnsupportedError(
            "tj.plan needs a tj.loop or tj.while_loop that depends on what is differentiated: the length of plain code shows when it is recorded, "
            "len(tj.record(f, ...).tape)"
        )
    n_slots = call.tape.n_slots
    return Plan(loops, n_slots, call.tape.nbytes + 8 * n_slots)
