"""Schedules against the closed form, against brute force, and against another implementation."""

from functools import cache
from itertools import count
from math import comb, isqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapejit.checkpointing import (
    Action,
    Schedule,
    binomial,
    check,
    draw,
    fewest_advances,
    online,
    plot,
    two_level,
    uniform,
)
from tapejit.errors import ScheduleError


def beta(checkpoints, repetitions):
    """Steps that can be reversed if none is advanced more often than this (Griewank & Walther 2000)."""
    return comb(checkpoints + repetitions, checkpoints)


def repetitions(n_steps, checkpoints):
    return next(r for r in count() if beta(checkpoints, r) >= n_steps)


def closed_form(n_steps, checkpoints):
    r = repetitions(n_steps, checkpoints)
    return r * n_steps - beta(checkpoints + 1, r - 1) if n_steps > 1 else 0


@cache
def by_brute_force(n_steps, checkpoints):
    """Fewest advances by trying every place of the next snapshot; the first state is stored, and counted."""
    if n_steps <= 1:
        return 0
    if checkpoints == 1:
        return n_steps * (n_steps - 1) // 2
    return min(
        m + by_brute_force(m, checkpoints) + by_brute_force(n_steps - m, checkpoints - 1) for m in range(1, n_steps)
    )


def test_advances_of_the_binomial_schedule_equal_the_closed_form():
    for n_steps in range(1, 201):
        for checkpoints in range(1, 31):
            expected = closed_form(n_steps, checkpoints)
            assert binomial(n_steps, checkpoints).counts().advances == expected, (n_steps, checkpoints)
            assert fewest_advances(n_steps, checkpoints) == expected


@cache
def fewest_stores(n_steps, checkpoints):
    """Of all schedules with the fewest advances."""
    if n_steps <= 1 or checkpoints == 1:
        return 1
    return min(
        fewest_stores(m, checkpoints) + (fewest_stores(n_steps - m, checkpoints - 1) if n_steps - m > 1 else 0)
        for m in range(1, n_steps)
        if m + closed_form(m, checkpoints) + closed_form(n_steps - m, checkpoints - 1)
        == closed_form(n_steps, checkpoints)
    )


def test_binomial_schedule_stores_as_seldom_as_an_optimal_one_can():
    for n_steps in range(2, 61):
        for checkpoints in range(1, 9):
            assert binomial(n_steps, checkpoints).counts().stores == fewest_stores(n_steps, checkpoints)


def test_closed_form_is_what_brute_force_finds():
    for n_steps in range(1, 41):
        for checkpoints in range(1, 9):
            assert closed_form(n_steps, checkpoints) == by_brute_force(n_steps, checkpoints)


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 7, 30])
def test_no_step_is_repeated_more_often_than_the_theorem_says(checkpoints):
    for n_steps in range(2, 201):
        assert binomial(n_steps, checkpoints).counts().most_repeated <= repetitions(n_steps, checkpoints)


@pytest.mark.parametrize("n_steps", [0, 1, 2, 3, 10, 57])
@pytest.mark.parametrize("slots", [1, 2, 5, 100])
def test_schedules_reverse_every_step(n_steps, slots):
    for schedule in (binomial(n_steps, slots), two_level(n_steps, slots, 3), two_level(n_steps, 0, slots)):
        assert check(schedule).reverses == n_steps
    assert check(online(slots).stopped(n_steps)).most_held <= slots
    assert check(uniform(n_steps)).most_held == (uniform(n_steps).n_slots if n_steps > 1 else 0)
    assert check(uniform(n_steps, slots)).most_repeated <= 2


def test_million_steps_are_scheduled_as_the_closed_form_says():
    counts = binomial(1_000_000, 80_000).counts()
    assert counts.advances == fewest_advances(1_000_000, 80_000) == 2 * 1_000_000 - 80_001 - 1
    assert (counts.most_held, counts.most_repeated, counts.reverses) == (80_000, 2, 1_000_000)


def test_more_checkpoints_than_steps_advance_each_step_once():
    assert check(binomial(10, 99)).advances == 9
    assert binomial(10, 99).n_slots == 9


# The online schedule.


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 4, 5, 8])
def test_online_schedule_is_optimal_for_two_repetitions(checkpoints):
    for n_steps in range(1, beta(checkpoints, 2) + 1):
        assert online(checkpoints).stopped(n_steps).counts().advances == closed_form(n_steps, checkpoints)


@pytest.mark.parametrize(
    "checkpoints, most", [(1, 30), (2, beta(2, 9)), (3, beta(3, 6)), (4, beta(4, 4)), (7, beta(7, 3))]
)
def test_online_schedule_repeats_no_step_more_often_than_the_binomial_one_may(checkpoints, most):
    for n_steps in range(1, most + 1):
        counts = check(online(checkpoints).stopped(n_steps))
        assert counts.most_repeated <= repetitions(n_steps, checkpoints)
        assert counts.most_held <= checkpoints


def test_online_schedule_does_the_same_whatever_comes_later():
    run = online(4).start()
    so_far = []
    for n_steps in range(1, 60):
        so_far += run.advance_to(n_steps - 1)
        assert list(online(4).stopped(n_steps))[: len(so_far)] == so_far
        assert list(online(4).stopped(n_steps))[len(so_far) :] == list(run.back())


@given(n_steps=st.integers(0, 300), checkpoints=st.integers(1, 40))
def test_online_run_comes_in_blocks_of_any_size(n_steps, checkpoints):
    check(online(checkpoints).stopped(n_steps))


# Two levels.


@given(n_steps=st.integers(2, 300), memory=st.integers(0, 12), disk=st.integers(0, 12))
def test_slots_on_disk_are_those_that_are_accessed_least(n_steps, memory, disk):
    if memory + disk == 0:
        return
    schedule = two_level(n_steps, memory, disk)
    assert check(schedule).advances == fewest_advances(n_steps, memory + disk)
    assert len(schedule.on_disk) == max(0, schedule.n_slots - memory)
    accesses = [0] * schedule.n_slots
    for action in schedule:
        if action.kind in ("store", "restore"):
            accesses[action.slot] += 1
    in_memory = [accesses[slot] for slot in range(schedule.n_slots) if slot not in schedule.on_disk]
    assert max((accesses[slot] for slot in schedule.on_disk), default=0) <= min(in_memory, default=10**9)
    counts = schedule.counts()
    assert counts.disk_writes + counts.disk_reads == sum(accesses[slot] for slot in schedule.on_disk)


def test_uniform_schedule_with_the_square_root():
    schedule = uniform(10_000)
    counts = check(schedule)
    assert schedule.n_slots <= 2 * isqrt(10_000)
    assert counts.advances <= 2 * 10_000


# Another implementation: the package `checkpoint-schedules` (pip install checkpoint-schedules), where it is installed.


def theirs_advances(schedule, n_steps):
    """Advances of one of its schedules, without the recordings."""
    checkpoint_schedules = pytest.importorskip("checkpoint_schedules")
    total = 0
    for action in schedule:
        if isinstance(action, checkpoint_schedules.Forward) and not action.write_adj_deps:
            total += action.n1 - action.n0
        if isinstance(action, checkpoint_schedules.EndReverse):
            return total
    raise AssertionError(n_steps)


def test_binomial_schedule_advances_like_checkpoint_schedules():
    theirs = pytest.importorskip("checkpoint_schedules")
    for n_steps in (2, 3, 7, 20, 55, 100):
        for checkpoints in (1, 2, 3, 6):
            if checkpoints < n_steps:
                expected = theirs_advances(theirs.MultistageCheckpointSchedule(n_steps, checkpoints, 0), n_steps)
                assert binomial(n_steps, checkpoints).counts().advances == expected


def test_two_level_schedule_goes_to_disk_no_more_than_checkpoint_schedules():
    theirs = pytest.importorskip("checkpoint_schedules")
    for n_steps, memory, disk in [(10, 1, 2), (50, 3, 3), (100, 2, 8), (100, 8, 2)]:
        accesses = 0
        for action in theirs.MultistageCheckpointSchedule(n_steps, memory, disk):
            if isinstance(action, theirs.Forward):
                accesses += action.write_ics and action.storage == theirs.StorageType.DISK
            elif isinstance(action, theirs.Copy | theirs.Move):
                accesses += action.from_storage == theirs.StorageType.DISK
            elif isinstance(action, theirs.EndReverse):
                break
        counts = two_level(n_steps, memory, disk).counts()
        assert counts.disk_writes + counts.disk_reads <= accesses, (n_steps, memory, disk)


# What `check` finds.

STORE, FREE = Action("store", 0, slot=0), Action("free", 0, slot=0)


@pytest.mark.parametrize(
    "n_steps, actions, message",
    [
        (1, [], "1 of 1 steps are not reversed"),
        (2, [Action("reverse", 0)], "action 0, reverse 0: the next step to reverse is 1"),
        (
            2,
            [Action("advance", 0, to=2)],
            "action 0, advance 0 to 2: an advance from here leads to one of the states 1 to 1",
        ),
        (1, [Action("restore", 0, slot=0)], "restore 0 in slot 0: the slot holds nothing"),
        (1, [Action("store", 0, slot=1)], "there are 1 slots, numbered from 0"),
        (1, [STORE, STORE], "action 1, store 0 in slot 0: the slot holds state 0"),
        (1, [STORE, Action("reverse", 0)], r"the snapshots in slots \[0\] are not freed"),
        (
            2,
            [STORE, Action("advance", 0, to=1), Action("reverse", 1), Action("reverse", 0)],
            "no state is at hand; restore one",
        ),
        (2, [Action("store", 1, slot=0)], "state 0 is at hand, not state 1"),
        (2, [STORE, Action("restore", 1, slot=0)], "the slot holds state 0"),
    ],
)
def test_check_names_the_first_wrong_action(n_steps, actions, message):
    with pytest.raises(ScheduleError, match=message):
        check(Schedule(n_steps, 1, actions))


def test_every_schedule_without_one_of_its_actions_is_refused():
    whole = list(binomial(12, 3))
    for k in range(len(whole)):
        with pytest.raises(ScheduleError):
            check(Schedule(12, 3, whole[:k] + whole[k + 1 :]))
    with pytest.raises(ScheduleError):
        check(Schedule(12, 2, whole))


def test_wrong_numbers_are_refused_by_name():
    for wrong, message in [
        (lambda: binomial(-1, 3), "n_steps is at least 0, got -1"),
        (lambda: binomial(3, 0), "checkpoints is at least 1, got 0"),
        (lambda: binomial(2.5, 3), "n_steps is a whole number, got 2.5"),
        (lambda: online(0), "checkpoints is at least 1"),
        (lambda: uniform(3, 0), "period is at least 1"),
        (lambda: two_level(3, 0, 0), "at least 1 snapshot"),
        (lambda: Schedule(1, 1, [Action("jump", 0)]), "no action 'jump'; there are advance, store"),
        (lambda: draw(binomial(1000, 3)), "at most 150 steps, got 1000; see plot"),
    ]:
        with pytest.raises(ScheduleError, match=message):
            wrong()


# Pictures.


def test_drawing_shows_what_is_held():
    assert draw(two_level(4, 1, 1)).splitlines() == ["oo-<", ":o<", ":<", "<"]
    assert draw(binomial(0, 1)) == ""


def test_plot_draws_a_line_for_each_snapshot():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    schedule = two_level(30, 2, 2)
    axes = plot(schedule)
    drawn = {lines.get_label(): len(lines.get_segments()) for lines in axes.collections}
    counts = schedule.counts()
    assert drawn["snapshot"] + drawn["snapshot on disk"] == counts.stores
    assert len(axes.lines[0].get_xdata()) == 30
    assert plot(binomial(0, 1), axes) is axes
    pyplot.close("all")
