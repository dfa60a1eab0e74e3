"""Checkpointing: less memory for more time, in loops whose steps are computed again in the reverse sweep."""

from tapejit.checkpointing.drawing import draw, plot
from tapejit.checkpointing.online import OnlineSchedule, online
from tapejit.checkpointing.schedules import (
    Action,
    Counts,
    Schedule,
    binomial,
    check,
    fewest_advances,
    two_level,
    uniform,
)

__all__ = [
    "Action",
    "Counts",
    "OnlineSchedule",
    "Schedule",
    "binomial",
    "check",
    "draw",
    "fewest_advances",
    "online",
    "plot",
    "two_level",
    "uniform",
]
