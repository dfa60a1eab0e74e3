"""The schedule for loops that end when they have come to an end: snapshots are replaced on the way, so that they are always well placed.

References
----------
Ph. Stumm and A. Walther, New algorithms for optimal online checkpointing, SIAM Journal on Scientific Computing 32(2), 2010.
Q. Wang, P. Moin and G. Iaccarino, Minimal repetition dynamic checkpointing algorithm for unsteady adjoint calculation, SIAM Journal on Scientific
Computing 31(4), 2009.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tapejit.checkpointing.schedules import BLOCK, Action, Schedule, as_action, generated, whole_number
from tapejit.checkpointing.streams import next_online

__all__ = ["OnlineRun", "OnlineSchedule", "online"]


def online(checkpoints: int) -> OnlineSchedule:
    """A schedule for a number of steps that turns out in the end: snapshots are replaced on the way so that they are always well placed.

    Up to ``beta(c, 2) = (c + 1) (c + 2) / 2`` steps it needs as few advances as the binomial schedule, which knows the end. Whatever the number of
    steps, none of at most ``beta(c, r)`` steps is advanced more than `r` times, as in the binomial schedule.

    Parameters
    ----------
    checkpoints : int
        Snapshots, the initial state included.

    Returns
    -------
    OnlineSchedule

    Examples
    --------
    >>> from tapejit.checkpointing import fewest_advances, online
    >>> schedule = online(10)
    >>> schedule.stopped(66).counts().advances, fewest_advances(66, 10)
    (120, 120)
    >>> schedule.stopped(200).counts().advances, fewest_advances(200, 10)
    (524, 522)
    """
    return OnlineSchedule(checkpoints)


class OnlineSchedule:
    """What `online` returns: the actions of the way forward as long as it lasts, then those of the way back.

    Between two calls, the state at hand has only been compared with what ends the loop: it is stored when it is clear that a step follows.

    Attributes
    ----------
    n_slots : int

    Examples
    --------
    >>> from tapejit.checkpointing import online
    >>> run = online(2).start()
    >>> [str(action) for action in run.advance_to(1)], [str(action) for action in run.advance_to(2)]
    (['store 0 in slot 0', 'advance 0 to 1'], ['store 1 in slot 1', 'advance 1 to 2'])
    >>> print(run.back())  # state 3 ended the loop, so step 2 is the last one
    reverse 2
    restore 1 in slot 1
    reverse 1
    free 1 in slot 1
    restore 0 in slot 0
    reverse 0
    free 0 in slot 0
    """

    def __init__(self, checkpoints: int) -> None:
        self.n_slots = whole_number(checkpoints, "checkpoints", 1)

    def __repr__(self) -> str:
        return f"<online schedule: {self.n_slots} snapshot{'s' if self.n_slots != 1 else ''}>"

    def start(self) -> OnlineRun:
        """Begin one run of the loop."""
        return OnlineRun(self.n_slots)

    def stopped(self, n_steps: int) -> Schedule:
        """All actions of a run that has turned out to have this many steps.

        Parameters
        ----------
        n_steps : int

        Returns
        -------
        Schedule
        """
        n_steps = whole_number(n_steps, "n_steps", 0)

        def blocks() -> Iterator[np.ndarray]:
            run = self.start()
            if n_steps:
                yield from run.blocks_to(n_steps - 1)
                yield from run.back().blocks()

        return Schedule.of_blocks(n_steps, self.n_slots, "online", blocks)


class OnlineRun:
    """One run under an `OnlineSchedule`."""

    def __init__(self, n_slots: int) -> None:
        self.n_slots = n_slots
        self._state = np.zeros(4, np.int64)
        self._stack = tuple(np.zeros(n_slots, np.int64) for _ in range(3))
        self._queue = tuple(np.zeros(n_slots, np.int64) for _ in range(2))
        self._rows = np.empty((BLOCK, 3), np.int64)

    def blocks_to(self, state: int) -> Iterator[np.ndarray]:
        """As `advance_to`, in blocks of rows."""
        while self._state[0] < state:
            n = next_online(self._rows, self._state, *self._stack, *self._queue, state)
            yield self._rows[:n]

    def advance_to(self, state: int) -> list[Action]:
        """What to do on the way to this state, now that it is clear that the loop comes so far.

        Parameters
        ----------
        state : int

        Returns
        -------
        list of Action
        """
        return [as_action(*row) for rows in self.blocks_to(state) for row in rows.tolist()]

    def back(self) -> Schedule:
        """The way back: the step that begins with the state at hand is the last one, and the first to be reversed."""
        at_hand, n_held, first, end = self._state.tolist()
        steps, slots = (
            np.concatenate([held[:n_held], waiting[first:end]])
            for held, waiting in zip(self._stack, self._queue, strict=False)
        )
        order = np.argsort(steps)
        held = steps[order], slots[order]
        n_slots = self.n_slots
        return Schedule.of_blocks(
            at_hand + 1, n_slots, "way back", lambda: generated(at_hand + 1, n_slots, held=held, at_hand=at_hand)
        )
