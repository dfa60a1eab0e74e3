"""Schedules: which states of a loop to keep, which to compute again, and when to reverse which step.

A loop of `n` steps goes from state 0 to state n. Its reverse sweep needs the states n - 1, n - 2, ..., 0 in this order, and memory for `c` of them.
A schedule is the list of what to do, as data: it can be printed, drawn (`draw`, `plot`), counted (`Schedule.counts`) and
verified (`check`), with no loop at hand.

============================  ==========================================================================
``advance`` from `s` to `t`   compute state `t` from state `s`, which is at hand, and keep nothing between
``store`` `s` in a slot       copy state `s`, which is at hand
``restore`` `s` from a slot   put a copy of a stored state at hand
``reverse`` `s`               record step `s` from state `s`, which is at hand, and pull the adjoints back through it
``free`` `s` in a slot        the slot is not needed any longer
============================  ==========================================================================

**What is counted.** The initial state counts as a snapshot, as it must be there in the end. Advances are counted in steps; recording a step in order
to reverse it is not an advance. So with memory for everything, ``n - 1`` advances are needed: the last step is recorded at once.

Four schedules: `binomial`, optimal where the number of steps is known; `two_level`, the same with a part of the slots on disk; `uniform`, the
simplest one, for comparison; and in `tapejit.checkpointing.online` the one for a number of steps that turns out in the end.

References
----------
A. Griewank and A. Walther, Algorithm 799: revolve, ACM Transactions on Mathematical Software 26(1), 2000.
Ph. Stumm and A. Walther, MultiStage approaches for optimal offline checkpointing, SIAM Journal on Scientific Computing 31(3), 2009.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import numpy as np

from tapejit.checkpointing.streams import (
    ADVANCE,
    FREE,
    MOST_PER_DECISION,
    RESTORE,
    REVERSE,
    STORE,
    list_free,
    next_actions,
)
from tapejit.errors import ScheduleError

__all__ = [
    "BLOCK",
    "Action",
    "Counts",
    "Schedule",
    "as_action",
    "binomial",
    "check",
    "fewest_advances",
    "generated",
    "two_level",
    "uniform",
    "whole_number",
]

KINDS = ("advance", "store", "restore", "reverse", "free")
_CODES = {kind: code for code, kind in enumerate(KINDS)}
BLOCK = 4096  # actions a block: some tens of microseconds of the kernel's


class Action(NamedTuple):
    """One action of a schedule.

    Attributes
    ----------
    kind : {"advance", "store", "restore", "reverse", "free"}
    step : int
        The state that is at hand, stored, restored or freed; the step that is reversed.
    to : int
        Of an advance: the state that is at hand afterwards.
    slot : int
        Of a store, restore or free: where the snapshot is.
    """

    kind: str
    step: int
    to: int = -1
    slot: int = -1

    def __str__(self) -> str:
        if self.kind == "advance":
            return f"advance {self.step} to {self.to}"
        return f"reverse {self.step}" if self.kind == "reverse" else f"{self.kind} {self.step} in slot {self.slot}"


@dataclass(frozen=True)
class Counts:
    """What a schedule does, in numbers.

    Attributes
    ----------
    advances : int
        Steps that are computed without being recorded; the first sweep included.
    stores, restores, reverses : int
    most_held : int
        Snapshots at the same time.
    most_repeated : int
        How often the same step is computed at most, without its recording.
    disk_writes, disk_reads : int
        Those of the stores and restores that go to disk.
    """

    advances: int
    stores: int
    restores: int
    reverses: int
    most_held: int
    most_repeated: int
    disk_writes: int = 0
    disk_reads: int = 0


class Schedule:
    """A stream of actions that reverses `n_steps` steps with `n_slots` snapshots. Made by `binomial`, `two_level`, `online` and `uniform`.

    Iterating gives the actions, afresh every time; `str` writes a line for each. A schedule of your own is made from any actions:

    Parameters
    ----------
    n_steps : int
    n_slots : int
        How many snapshots may be held at a time, the initial state included.
    actions : iterable of Action
        Read once. `check` says whether they reverse the loop.
    name : str
    on_disk : iterable of int
        Slots that stand on disk.

    Examples
    --------
    >>> from tapejit.checkpointing import Action, Schedule, check
    >>> mine = Schedule(2, 1, [Action("store", 0, slot=0), Action("advance", 0, to=1), Action("reverse", 1),
    ...                        Action("restore", 0, slot=0), Action("reverse", 0), Action("free", 0, slot=0)])
    >>> check(mine).advances
    1
    """

    def __init__(
        self,
        n_steps: int,
        n_slots: int,
        actions: Iterable[Action],
        *,
        name: str = "custom",
        on_disk: Iterable[int] = (),
    ) -> None:
        self._set(n_steps, n_slots, name, frozenset(on_disk))
        rows = np.array([_row(action) for action in actions], np.int64).reshape(-1, 3)
        self._blocks: Callable[[], Iterator[np.ndarray]] = lambda: iter([rows.copy()] if rows.size else [])

    def _set(self, n_steps: int, n_slots: int, name: str, on_disk: frozenset[int]) -> None:
        self.n_steps, self.n_slots, self.name, self.on_disk = n_steps, n_slots, name, on_disk

    @classmethod
    def of_blocks(
        cls,
        n_steps: int,
        n_slots: int,
        name: str,
        blocks: Callable[[], Iterator[np.ndarray]],
        on_disk: frozenset[int] = frozenset(),
    ) -> Schedule:
        made = cls.__new__(cls)
        made._set(n_steps, n_slots, name, on_disk)
        made._blocks = blocks
        return made

    def blocks(self) -> Iterator[np.ndarray]:
        """The actions as blocks of rows, for drivers that are compiled: each (k, 3) int64, the caller's until the next one.

        A row has the position of its kind in ``("advance", "store", "restore", "reverse", "free")``, `step`, and `to` or `slot`.
        """
        return self._blocks()

    def __iter__(self) -> Iterator[Action]:
        for rows in self.blocks():
            for code, step, other in rows.tolist():
                yield as_action(code, step, other)

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def __repr__(self) -> str:
        slots = f"{self.n_slots} snapshot{'s' if self.n_slots != 1 else ''}"
        disk = f", {len(self.on_disk)} of them on disk" if self.on_disk else ""
        return f"<{self.name} schedule: {self.n_steps} steps, {slots}{disk}>"

    def counts(self) -> Counts:
        """What the schedule does, in numbers, read off without verifying it."""
        n = np.zeros(len(KINDS), np.int64)
        advances = held = most_held = disk_writes = disk_reads = 0
        repeated = np.zeros(self.n_steps + 1, np.int64)  # differences between neighbouring steps
        on_disk = np.array(sorted(self.on_disk), np.int64)
        for rows in self.blocks():
            code, step, other = rows.T
            n += np.bincount(code, minlength=len(KINDS))
            step_from, step_to = step[code == ADVANCE], other[code == ADVANCE]
            advances += int((step_to - step_from).sum())
            np.add.at(repeated, step_from, 1)
            np.add.at(repeated, step_to, -1)
            held_after = held + np.cumsum((code == STORE).astype(np.int64) - (code == FREE))
            held, most_held = int(held_after[-1]), max(most_held, int(held_after.max()))
            disk_writes += int(np.isin(other[code == STORE], on_disk).sum())
            disk_reads += int(np.isin(other[code == RESTORE], on_disk).sum())
        _, stores, restores, reverses, _ = n.tolist()
        most_repeated = int(np.cumsum(repeated).max())
        return Counts(advances, stores, restores, reverses, most_held, most_repeated, disk_writes, disk_reads)


def _row(action: Action) -> tuple[int, int, int]:
    kind, step, to, slot = action
    if kind not in _CODES:
        raise ScheduleError(f"no action {kind!r}; there are {', '.join(KINDS)}")
    return _CODES[kind], step, to if kind == "advance" else slot if kind != "reverse" else 0


def as_action(code: int, step: int, other: int) -> Action:
    if code == ADVANCE:
        return Action("advance", step, to=other)
    return Action("reverse", step) if code == REVERSE else Action(KINDS[code], step, slot=other)


def binomial(n_steps: int, checkpoints: int) -> Schedule:
    """The optimal schedule for a known number of steps (revolve): the fewest advances with so many snapshots, and of those the fewest stores.

    With ``beta(c, r) = (c + r)! / (c! r!)``, a loop of at most ``beta(c, r)`` steps needs none of them advanced more than `r` times: with 30
    snapshots that is 496 steps for ``r = 2``, and 278,256 for ``r = 5``. `fewest_advances` has the count.

    Parameters
    ----------
    n_steps : int
    checkpoints : int
        Snapshots, the initial state included. More than there are steps are not used.

    Returns
    -------
    Schedule

    Examples
    --------
    >>> from tapejit.checkpointing import binomial, draw
    >>> schedule = binomial(10, 3)
    >>> schedule
    <binomial schedule: 10 steps, 3 snapshots>
    >>> schedule.counts().advances
    15
    >>> print(binomial(3, 1))
    store 0 in slot 0
    advance 0 to 2
    reverse 2
    restore 0 in slot 0
    advance 0 to 1
    reverse 1
    restore 0 in slot 0
    reverse 0
    free 0 in slot 0
    """
    n_steps, slots = whole_number(n_steps, "n_steps", 0), whole_number(checkpoints, "checkpoints", 1)
    slots = max(1, min(slots, n_steps - 1))  # the last step is recorded from the state at hand
    return Schedule.of_blocks(n_steps, slots, "binomial", lambda: generated(n_steps, slots))


def fewest_advances(n_steps: int, checkpoints: int) -> int:
    """How many steps any schedule must advance: ``r n - beta(c + 1, r - 1)``, where `r` is the smallest with ``beta(c, r) >= n``.

    Griewank & Walther (2000), with `c` snapshots, the initial state counted, and recordings not counted as advances.

    Parameters
    ----------
    n_steps, checkpoints : int

    Returns
    -------
    int

    Examples
    --------
    >>> from tapejit.checkpointing import fewest_advances
    >>> [fewest_advances(10, c) for c in (1, 2, 3, 10)]
    [45, 20, 15, 9]
    >>> fewest_advances(1_000_000, 30) / 1_000_000  # 30 snapshots for a million steps
    5.623008
    """
    n, c = whole_number(n_steps, "n_steps", 0), whole_number(checkpoints, "checkpoints", 1)
    if n <= 1:
        return 0
    r, here, before = 0, 1, 0  # beta(c, r) and beta(c + 1, r - 1)
    while here < n:
        before += here
        r += 1
        here = here * (c + r) // r
    return r * n - before


def two_level(n_steps: int, memory: int, disk: int) -> Schedule:
    """A binomial schedule with some slots in memory and some on disk: the fewest advances for all of them, and little traffic to disk.

    A snapshot that lies deep in the stack is written once and read seldom, while the top of the stack is read all the time. So the slots that are
    accessed least stand on disk (Stumm & Walther 2009).

    Parameters
    ----------
    n_steps : int
    memory, disk : int
        Snapshots in memory and on disk, the initial state included.

    Returns
    -------
    Schedule
        `Schedule.on_disk` has the slots.

    Examples
    --------
    >>> from tapejit.checkpointing import two_level
    >>> schedule = two_level(1000, memory=25, disk=5)
    >>> schedule
    <two-level schedule: 1000 steps, 30 snapshots, 5 of them on disk>
    >>> counts = schedule.counts()
    >>> counts.advances, counts.stores, counts.disk_writes, counts.disk_reads
    (2472, 504, 22, 42)
    """
    n_steps = whole_number(n_steps, "n_steps", 0)
    memory, disk = whole_number(memory, "memory", 0), whole_number(disk, "disk", 0)
    if memory + disk < 1:
        raise ScheduleError("a schedule needs at least 1 snapshot, in memory or on disk; got none")
    plain = binomial(n_steps, memory + disk)
    accesses = np.zeros(plain.n_slots, np.int64)
    for rows in plain.blocks():
        accessed = rows[(rows[:, 0] == STORE) | (rows[:, 0] == RESTORE), 2]
        accesses += np.bincount(accessed, minlength=accesses.size)
    # Stable: of slots accessed equally often, the lower one goes to disk.
    n_on_disk = max(0, plain.n_slots - memory)
    on_disk = frozenset(np.argsort(accesses, kind="stable")[:n_on_disk].tolist())
    return Schedule.of_blocks(n_steps, plain.n_slots, "two-level", plain.blocks, on_disk)


def uniform(n_steps: int, period: int | None = None) -> Schedule:
    """A snapshot every `period` steps, and all states of a period on its way back: every step is advanced twice at most.

    The simplest schedule, and what loops nested by hand amount to. It needs about ``n_steps / period + period`` snapshots, fewest with the square
    root. The binomial schedule does the same with 30 % fewer, and with far fewer for little more.

    Parameters
    ----------
    n_steps : int
    period : int, optional
        The square root of `n_steps`, rounded up, if not given.

    Returns
    -------
    Schedule

    Examples
    --------
    >>> from tapejit.checkpointing import binomial, uniform
    >>> schedule = uniform(10_000)
    >>> schedule
    <uniform schedule: 10000 steps, 198 snapshots>
    >>> schedule.counts().advances, binomial(10_000, 140).counts().advances
    (19800, 19858)
    """
    n_steps = whole_number(n_steps, "n_steps", 0)
    period = isqrt(max(n_steps - 1, 0)) + 1 if period is None else whole_number(period, "period", 1)
    starts = -(-n_steps // period)
    last = (starts - 1) * period  # where the last period begins, whose states are stored on the way forward
    n_slots = max(1, starts - 1 + max(0, n_steps - 1 - last), starts - 2 + max(1, period - 1) if starts > 1 else 0)
    return Schedule.of_blocks(n_steps, n_slots, "uniform", lambda: generated(n_steps, n_slots, period))


def generated(
    n_steps: int,
    n_slots: int,
    period: int = 0,
    held: tuple[np.ndarray, np.ndarray] | None = None,
    at_hand: int = 0,
) -> Iterator[np.ndarray]:
    """Blocks of actions, from the start, or from where `held` are stored and `at_hand` is at hand."""
    if n_steps == 0:
        return
    steps, slots, free = (np.zeros(n_slots, np.int64) for _ in range(3))
    n_held = 0
    if held is not None:
        n_held = held[0].size
        steps[:n_held], slots[:n_held] = held
    n_free = list_free(free, slots, n_held)
    state = np.array([at_hand, n_steps, n_held, n_free])
    rows = np.empty((min(BLOCK, 8 * n_steps + MOST_PER_DECISION), 3), np.int64)
    while n := next_actions(rows, state, steps, slots, free, period):
        yield rows[:n]


def check(schedule: Schedule) -> Counts:
    """Carry a schedule out without a loop, and make sure that it reverses every step.

    Every step is reversed once, the last one first, each from its own state; what is restored has been stored and not yet freed; no slot is
    written while it holds something else, and no more are used than allowed.

    Parameters
    ----------
    schedule : Schedule

    Returns
    -------
    Counts

    Raises
    ------
    ScheduleError
        Names the first action that cannot be carried out.

    Examples
    --------
    >>> from tapejit.checkpointing import Action, Schedule, binomial, check
    >>> check(binomial(10, 3))
    Counts(advances=15, stores=6, restores=9, reverses=10, most_held=3, most_repeated=2, disk_writes=0, disk_reads=0)
    >>> check(Schedule(2, 1, [Action("reverse", 1)]))
    Traceback (most recent call last):
        ...
    tapejit.errors.ScheduleError: action 0, reverse 1: state 0 is at hand, not state 1
    """
    held: dict[int, int] = {}  # slot: state
    at_hand: int | None = 0
    left = schedule.n_steps
    for number, action in enumerate(schedule):
        wrong = _what_is_wrong(action, schedule, held, at_hand, left)
        if wrong:
            raise ScheduleError(f"action {number}, {action}: {wrong}")
        kind, step, to, slot = action
        if kind == "advance":
            at_hand = to
        elif kind == "store":
            held[slot] = step
        elif kind == "restore":
            at_hand = step
        elif kind == "reverse":
            left, at_hand = left - 1, None
        else:
            del held[slot]
    if left:
        raise ScheduleError(f"{left} of {schedule.n_steps} steps are not reversed")
    if held:
        raise ScheduleError(f"the snapshots in slots {sorted(held)} are not freed")
    return schedule.counts()


def _what_is_wrong(action: Action, schedule: Schedule, held: dict[int, int], at_hand: int | None, left: int) -> str:
    """Why an action cannot be carried out now; empty if it can."""
    kind, step, to, slot = action
    if kind in ("advance", "store", "reverse") and at_hand != step:
        return (
            "no state is at hand; restore one" if at_hand is None else f"state {at_hand} is at hand, not state {step}"
        )
    if kind == "advance":
        return "" if step < to < left else f"an advance from here leads to one of the states {step + 1} to {left - 1}"
    if kind == "reverse":
        return "" if step == left - 1 else f"the next step to reverse is {left - 1}"
    if not 0 <= slot < schedule.n_slots:
        return f"there are {schedule.n_slots} slots, numbered from 0"
    if kind == "store":
        return f"the slot holds state {held[slot]}" if slot in held else ""
    if slot not in held:
        return "the slot holds nothing"
    return "" if held[slot] == step else f"the slot holds state {held[slot]}"


def whole_number(n: int, name: str, smallest: int) -> int:
    """A number of things, or an error that names it."""
    try:
        n = operator.index(n)
    except TypeError:
        raise ScheduleError(f"{name} is a whole number, got {n!r}") from None
    if n < smallest:
        raise ScheduleError(f"{name} is at least {smallest}, got {n}")
    return n
