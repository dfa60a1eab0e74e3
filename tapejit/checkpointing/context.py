"""What the loops of a thread have to know of each other: whether a plan is being made, and the last report."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapejit.checkpointing.budget import LoopPlan
    from tapejit.checkpointing.plans import MemoryReport

__all__ = ["local"]


class _Local(threading.local):
    def __init__(self) -> None:
        self.planned: list[LoopPlan] | None = None  # while a plan is being made
        self.memory: int | str | None = None  # meanwhile, for loops without a budget
        self.report: MemoryReport | None = None


local = _Local()
