"""The state machines behind the schedules, as kernels that write the next actions into a block of rows.

A row is an action: its code, a step, and where it leads (`ADVANCE`) or the slot it is about (`STORE`, `RESTORE`, `FREE`). A schedule of 1e6
steps has some millions of actions and comes in blocks, so that neither the list of them nor Python stands between two steps.

The snapshots that are held form a stack, the latest on top. A reverse sweep always restores the top: the step that comes next is the last one
not yet reversed, and nothing lies between it and the top but steps to advance again.
"""

from __future__ import annotations

import numpy as np

from tapejit.sweeps.kernel import kernel

__all__ = ["ADVANCE", "FREE", "RESTORE", "REVERSE", "STORE", "list_free", "next_actions", "next_online", "stride"]

ADVANCE, STORE, RESTORE, REVERSE, FREE = range(5)
MOST_PER_DECISION = 3  # rows


@kernel
def stride(n_steps, n_slots):
    """How far to advance from a stored state when `n_steps` are to be reversed and `n_slots` snapshots may be held, this one included.

    Many choices are optimal: the two parts, of `m` and ``n_steps - m`` steps, must lie between neighbouring binomial coefficients, where the count of
    advances is linear. This is the one of Griewank & Walther (2000), section 4, for which the fewest snapshots are written.
    """
    if n_slots <= 1:
        return n_steps - 1
    if n_steps <= n_slots + 1:
        return 1
    # With beta(s, r) = (s + r)! / (s! r!): the smallest r with n_steps <= beta(s, r), and beta(s, r - 2), beta(s, r - 1).
    s, r, two_less, one_less = n_slots, 2, 1, n_slots + 1
    while True:
        here = one_less * (s + r) // r
        if n_steps <= here:
            break
        two_less, one_less = one_less, here
        r += 1
    right = one_less * s // (s + r - 1)  # beta(s - 1, r - 1)
    further_right = right * (s - 1) // (s + r - 2)  # beta(s - 2, r - 1)
    return min(max(two_less, n_steps - right - further_right), one_less)


@kernel
def next_actions(rows, state, steps, slots, free, period):
    """Write the next actions of a schedule whose end is known.

    Parameters
    ----------
    rows : (k, 3) int64 ndarray
        Written.
    state : (4,) int64 ndarray
        The state at hand; how many steps are not yet reversed; snapshots held; slots free. Updated.
    steps, slots : int64 ndarray
        The stack of snapshots: of which state, and where. Updated.
    free : int64 ndarray
        The free slots, the next to use last. Updated.
    period : int
        0: binomial. Else every state whose number divides by it is stored on the way forward, and all states of a period on the way back.

    Returns
    -------
    int
        Rows written; 0 at the end.
    """
    at_hand, left, n_held, n_free = state
    n = 0
    while left > 0 and n + MOST_PER_DECISION <= rows.shape[0]:
        if at_hand < left - 1:
            is_stored = n_held > 0 and steps[n_held - 1] == at_hand
            if not is_stored and n_free > 0:
                n_free -= 1
                steps[n_held], slots[n_held] = at_hand, free[n_free]
                rows[n] = STORE, at_hand, free[n_free]
                n += 1
                n_held += 1
            if period == 0:
                ahead = stride(left - at_hand, n_free + 1)
            elif at_hand % period == 0 and left > at_hand + period:
                ahead = period
            else:
                ahead = 1
            rows[n] = ADVANCE, at_hand, at_hand + ahead
            n += 1
            at_hand += ahead
        else:
            left -= 1
            rows[n] = REVERSE, left, 0
            n += 1
            if n_held > 0 and steps[n_held - 1] == left:
                n_held -= 1
                rows[n] = FREE, left, slots[n_held]
                n += 1
                free[n_free] = slots[n_held]
                n_free += 1
            if left > 0:
                at_hand = steps[n_held - 1]
                rows[n] = RESTORE, at_hand, slots[n_held - 1]
                n += 1
    state[0], state[1], state[2], state[3] = at_hand, left, n_held, n_free
    return n


@kernel
def list_free(free, slots, n_held):
    """Write the slots that hold none of the first `n_held` snapshots, in falling order; gives their number. No array as long is made on the way."""
    is_held = np.zeros(free.size, np.bool_)
    for i in range(n_held):
        is_held[slots[i]] = True
    n = 0
    for slot in range(free.size - 1, -1, -1):
        if not is_held[slot]:
            free[n] = slot
            n += 1
    return n


# An unknown number of steps.


@kernel
def next_online(rows, state, steps, slots, levels, waiting, waiting_slots, last):
    """Write the next actions on the way forward, up to where state `last` is at hand, or until `rows` is full.

    Every snapshot has a level. The level of the first is above all others, and a new one has level 0. One that has a higher level behind it can
    be done without: these wait in a queue, in the order of their steps, and new snapshots take their slots. If none waits, the latest snapshot
    is moved on instead and raised by one level, which makes all snapshots of lower levels dispensable (Wang, Moin & Iaccarino 2009). It is moved
    on as far as possible without another repetition, so that up to beta(c, 2) steps the count of advances is the optimum, as with the first
    algorithm of Stumm & Walther (2010).

    Parameters
    ----------
    rows : (k, 3) int64 ndarray
        Written.
    state : (4,) int64 ndarray
        The state at hand; snapshots on the stack; where the queue begins and ends. Updated.
    steps, slots, levels : (c,) int64 ndarray
        The stack of snapshots that are needed. Updated.
    waiting, waiting_slots : (c,) int64 ndarray
        The queue of the others: of which state, and where. Updated.
    last : int
        The number of a state.

    Returns
    -------
    int
        Rows written.
    """
    at_hand, n_held, first, end = state
    n = 0
    while at_hand < last and n + MOST_PER_DECISION <= rows.shape[0]:
        slot = -1
        level = 0
        if n_held + end - first < steps.size:
            slot = n_held
        elif first < end:
            slot = waiting_slots[first]
            rows[n] = FREE, waiting[first], slot
            n += 1
            first += 1
        elif n_held > 1 and at_hand == steps[n_held - 1] + levels[n_held - 1] + 2:
            n_held -= 1
            slot, level = slots[n_held], levels[n_held] + 1
            rows[n] = FREE, steps[n_held], slot
            n += 1
            keep = n_held
            while keep > 1 and levels[keep - 1] < level:
                keep -= 1
            first, end = 0, n_held - keep
            for i in range(end):
                waiting[i], waiting_slots[i] = steps[keep + i], slots[keep + i]
            n_held = keep
        if slot >= 0:
            steps[n_held], slots[n_held], levels[n_held] = at_hand, slot, level
            n_held += 1
            rows[n] = STORE, at_hand, slot
            n += 1
        rows[n] = ADVANCE, at_hand, at_hand + 1
        n += 1
        at_hand += 1
    state[0], state[1], state[2], state[3] = at_hand, n_held, first, end
    return n
