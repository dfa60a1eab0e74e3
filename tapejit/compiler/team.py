"""Threads that help a kernel with the chunks of its loops.

A team has a board in memory, on which the kernel posts a function and how many chunks there are; whoever is there takes chunks from it, the
calling thread too, until none is left. So a kernel never waits for a helper to come: one that sleeps, or that the system does not run, only
does fewer chunks.

Helpers are Python threads that stay in compiled code, without the GIL: while there is work, and for some time after it; then they sleep.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import suppress
from functools import cache

import llvmlite.binding as llvm
import numpy as np

from tapejit.compiler.link import Linked, link

__all__ = ["RUN", "Team", "register_team"]

RUN = "tapejit_team_run"
SPINS = 20_000  # looks at the board before a helper goes to sleep: about half a millisecond
_WORDS = 128  # of the board; those that several threads write stand in cache lines of their own

# What a processor is told that only waits: the call, and its declaration.
_X86 = "call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()\n"
_ARM = "call void @llvm.aarch64.hint(i32 1)", "declare void @llvm.aarch64.hint(i32)\n"
_PAUSES = {"x86_64": _X86, "aarch64": _ARM, "arm64": _ARM}

# The board: word 0 the ticket, 8 a bit for each chunk that waits to be added, 16 how many are done, 24 and 25 the lock of adding and whose
# turn it is, 26 how many sleep, 32 status, 48 to 51 both functions, context and first chunk, 64 and 96 a mutex and a condition variable.
# A ticket is generation << 32 | number of chunks << 16 | next chunk. Function and context change only while no chunk is left, so
# whoever takes a chunk by exchanging the ticket has read those of its generation.
_IR = r"""
define private void @wait() alwaysinline nounwind {
  %PAUSE%
  ret void
}

; Adds chunks that are computed and whose turn it is; another thread may be at it, which then goes on with them.
define private void @add(ptr %board, ptr %g, ptr %context) nounwind {
entry:
  %lock_at = getelementptr i64, ptr %board, i64 24
  %ready_at = getelementptr i64, ptr %board, i64 8
  %turn_at = getelementptr i64, ptr %board, i64 25
  br label %try
try:
  %pair = cmpxchg ptr %lock_at, i64 0, i64 1 seq_cst seq_cst
  %is_ours = extractvalue { i64, i1 } %pair, 1
  br i1 %is_ours, label %look, label %end
look:
  %turn = load atomic i64, ptr %turn_at monotonic, align 8
  %ready = load atomic i64, ptr %ready_at acquire, align 8
  %bits = lshr i64 %ready, %turn
  %is_ready = trunc i64 %bits to i1
  br i1 %is_ready, label %next, label %unlock
next:
  %status = call i64 %g(ptr %context, i64 %turn)
  call void @note(ptr %board, i64 %status)
  %following = add i64 %turn, 1
  store atomic i64 %following, ptr %turn_at monotonic, align 8
  br label %look
unlock:
  store atomic i64 0, ptr %lock_at seq_cst, align 8
  %again = load atomic i64, ptr %ready_at seq_cst, align 8
  %again_bits = lshr i64 %again, %turn
  %is_now = trunc i64 %again_bits to i1
  br i1 %is_now, label %try, label %end
end:
  ret void
}

define private void @note(ptr %board, i64 %status) nounwind {
  %status_at = getelementptr i64, ptr %board, i64 32
  %old = atomicrmw or ptr %status_at, i64 %status monotonic
  ret void
}

; Takes one chunk and computes it; 0 if there was none. A chunk is done when its thread has left: then none can act for an earlier job.
define private i1 @help(ptr %board) nounwind {
entry:
  %ticket = load atomic i64, ptr %board acquire, align 8
  %next = and i64 %ticket, 65535
  %shifted = lshr i64 %ticket, 16
  %n = and i64 %shifted, 65535
  %is_left = icmp ult i64 %next, %n
  br i1 %is_left, label %take, label %none
take:
  %f_at = getelementptr i64, ptr %board, i64 48
  %f = load atomic ptr, ptr %f_at monotonic, align 8
  %g_at = getelementptr i64, ptr %board, i64 49
  %g = load atomic ptr, ptr %g_at monotonic, align 8
  %context_at = getelementptr i64, ptr %board, i64 50
  %context = load atomic ptr, ptr %context_at monotonic, align 8
  %first_at = getelementptr i64, ptr %board, i64 51
  %first = load atomic i64, ptr %first_at monotonic, align 8
  %following = add i64 %ticket, 1
  %pair = cmpxchg ptr %board, i64 %ticket, i64 %following acq_rel monotonic
  %taken = extractvalue { i64, i1 } %pair, 1
  br i1 %taken, label %run, label %again
run:
  %k = add i64 %first, %next
  %status = call i64 %f(ptr %context, i64 %k)
  call void @note(ptr %board, i64 %status)
  %is_all = icmp eq ptr %g, null
  br i1 %is_all, label %done, label %more
more:
  %bit = shl i64 1, %k
  %ready_at = getelementptr i64, ptr %board, i64 8
  %before = atomicrmw or ptr %ready_at, i64 %bit seq_cst
  call void @add(ptr %board, ptr %g, ptr %context)
  br label %done
done:
  %done_at = getelementptr i64, ptr %board, i64 16
  %n_before = atomicrmw add ptr %done_at, i64 1 release
  ret i1 1
again:
  ret i1 1
none:
  ret i1 0
}

define i64 @tapejit_team_run(ptr %board, ptr %f, ptr %g, ptr %context, i64 %first, i64 %n) nounwind {
entry:
  %is_alone = icmp eq ptr %board, null
  %is_all = icmp eq ptr %g, null
  br i1 %is_alone, label %alone, label %post
alone:
  %i = phi i64 [ 0, %entry ], [ %i_next, %alone_next ]
  %so_far = phi i64 [ 0, %entry ], [ %joined, %alone_next ]
  %is_more = icmp ult i64 %i, %n
  br i1 %is_more, label %alone_compute, label %alone_done
alone_compute:
  %own = add i64 %first, %i
  %computed = call i64 %f(ptr %context, i64 %own)
  br i1 %is_all, label %alone_next, label %alone_add
alone_add:
  %added = call i64 %g(ptr %context, i64 %own)
  br label %alone_next
alone_next:
  %own_added = phi i64 [ 0, %alone_compute ], [ %added, %alone_add ]
  %own_status = or i64 %computed, %own_added
  %joined = or i64 %so_far, %own_status
  %i_next = add i64 %i, 1
  br label %alone
alone_done:
  ret i64 %so_far
post:
  %done_at = getelementptr i64, ptr %board, i64 16
  store atomic i64 0, ptr %done_at monotonic, align 8
  %status_at = getelementptr i64, ptr %board, i64 32
  store atomic i64 0, ptr %status_at monotonic, align 8
  %ready_at = getelementptr i64, ptr %board, i64 8
  store atomic i64 0, ptr %ready_at monotonic, align 8
  %turn_at = getelementptr i64, ptr %board, i64 25
  store atomic i64 %first, ptr %turn_at monotonic, align 8
  %f_at = getelementptr i64, ptr %board, i64 48
  store atomic ptr %f, ptr %f_at monotonic, align 8
  %g_at = getelementptr i64, ptr %board, i64 49
  store atomic ptr %g, ptr %g_at monotonic, align 8
  %context_at = getelementptr i64, ptr %board, i64 50
  store atomic ptr %context, ptr %context_at monotonic, align 8
  %first_at = getelementptr i64, ptr %board, i64 51
  store atomic i64 %first, ptr %first_at monotonic, align 8
  %old = load atomic i64, ptr %board monotonic, align 8
  %generation = lshr i64 %old, 32
  %newer = add i64 %generation, 1
  %high = shl i64 %newer, 32
  %middle = shl i64 %n, 16
  %ticket = or i64 %high, %middle
  store atomic i64 %ticket, ptr %board seq_cst, align 8
  call void @rouse(ptr %board)
  br label %work
work:
  %some = call i1 @help(ptr %board)
  br i1 %some, label %work, label %look
look:
  %done = load atomic i64, ptr %done_at acquire, align 8
  %is_done = icmp uge i64 %done, %n
  br i1 %is_done, label %end, label %pause
pause:
  call void @wait()
  br label %look
end:
  %status = load atomic i64, ptr %status_at monotonic, align 8
  ret i64 %status
}

; Helps for ever: looks at the board all the time at first, then sleeps until a kernel wakes it.
define void @tapejit_team_attend(ptr %board, i64 %spins) nounwind {
entry:
  br label %work
work:
  %idle = phi i64 [ 0, %entry ], [ 0, %work ], [ %longer, %spin ], [ 0, %slept ]
  %some = call i1 @help(ptr %board)
  br i1 %some, label %work, label %rest
rest:
  %longer = add i64 %idle, 1
  %is_short = icmp ult i64 %longer, %spins
  br i1 %is_short, label %spin, label %tired
spin:
  call void @wait()
  br label %work
tired:
  %is_over = call i1 @sleep(ptr %board)
  br i1 %is_over, label %end, label %slept
slept:
  br label %work
end:
  ret void
}
"""


# Where the system has POSIX threads, helpers sleep without Python: a thread that wakes up in Python waits for the GIL, for milliseconds beside
# short calls. Whoever sleeps has been counted before it looks at the ticket a last time, and a kernel looks at the count after it has posted one.
# Woken, a helper stays up: its work may be done by then, but the next call is near.
_POSIX = r"""
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)

define private i1 @sleep(ptr %board) nounwind {
entry:
  %n_at = getelementptr i64, ptr %board, i64 26
  %mutex = getelementptr i64, ptr %board, i64 64
  %condition = getelementptr i64, ptr %board, i64 96
  %locked = call i32 @pthread_mutex_lock(ptr %mutex)
  %n_before = atomicrmw add ptr %n_at, i64 1 seq_cst
  %ticket = load atomic i64, ptr %board seq_cst, align 8
  %next = and i64 %ticket, 65535
  %shifted = lshr i64 %ticket, 16
  %n = and i64 %shifted, 65535
  %is_left = icmp ult i64 %next, %n
  br i1 %is_left, label %up, label %lie
lie:
  %woken = call i32 @pthread_cond_wait(ptr %condition, ptr %mutex)
  br label %up
up:
  %n_after = atomicrmw sub ptr %n_at, i64 1 seq_cst
  %unlocked = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret i1 0
}

define private void @rouse(ptr %board) nounwind {
entry:
  %n_at = getelementptr i64, ptr %board, i64 26
  %n = load atomic i64, ptr %n_at seq_cst, align 8
  %is_none = icmp eq i64 %n, 0
  br i1 %is_none, label %end, label %call
call:
  %mutex = getelementptr i64, ptr %board, i64 64
  %condition = getelementptr i64, ptr %board, i64 96
  %locked = call i32 @pthread_mutex_lock(ptr %mutex)
  %sent = call i32 @pthread_cond_broadcast(ptr %condition)
  %unlocked = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %end
end:
  ret void
}
"""

# Elsewhere they go back to Python, which wakes them.
_OTHER = r"""
define private i1 @sleep(ptr %board) nounwind {
  ret i1 1
}

define private void @rouse(ptr %board) nounwind {
  ret void
}
"""


@cache
def _has_posix() -> bool:
    names = ("mutex_init", "mutex_lock", "mutex_unlock", "cond_init", "cond_wait", "cond_broadcast")
    return all(llvm.address_of_symbol(f"pthread_{name}") for name in names)


@cache
def _code() -> Linked:
    """The functions above, for the life of the process."""
    processor = llvm.get_process_triple().split("-")[0]
    pause, declaration = _PAUSES.get(processor, ("", ""))
    sleeping = _POSIX if _has_posix() else _OTHER
    return link(declaration + sleeping + _IR.replace("%PAUSE%", pause)).pin()


@cache
def register_team() -> None:
    """Make `RUN` known to LLVM."""
    llvm.add_symbol(RUN, _code().address(RUN))


class Team:
    """Threads that help one call of a kernel at a time. Made and kept by `Team.take`; `give` hands it back.

    Attributes
    ----------
    address : int
        Of the board: what a kernel finds in its memory.
    """

    _idle: dict[int, list[Team]] = {}

    def __init__(self, n_helpers: int) -> None:
        raw = np.zeros(_WORDS + 8, np.int64)
        first = (-raw.ctypes.data % 64) // 8
        self._board = raw[first : first + _WORDS]
        self.address = self._board.ctypes.data
        self.n_helpers = n_helpers
        self._attend = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(_code().address("tapejit_team_attend"))
        if _has_posix():
            for name, word in (("mutex", 64), ("cond", 96)):
                start = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
                start(llvm.address_of_symbol(f"pthread_{name}_init"))(self.address + 8 * word, None)
        self._beds = [threading.Semaphore(0) for _ in range(n_helpers)]
        self._sleeping = [True] * n_helpers
        # Fewer helpers if the system has no more threads, or the interpreter ends.
        with suppress(RuntimeError):
            for i in range(n_helpers):
                threading.Thread(target=self._help, args=(i,), name="tapejit helper", daemon=True).start()

    def _help(self, i: int) -> None:
        while True:
            self._beds[i].acquire()
            self._attend(self.address, SPINS)  # for ever, where helpers sleep without Python
            self._sleeping[i] = True

    def wake(self) -> None:
        """Have the helpers look at the board."""
        for i, is_sleeping in enumerate(self._sleeping):
            if is_sleeping:
                self._sleeping[i] = False
                self._beds[i].release()

    @classmethod
    def take(cls, n_threads: int) -> Team:
        """A team that nobody uses, of this many threads with the calling one."""
        register_team()
        try:
            return cls._idle.setdefault(n_threads - 1, []).pop()
        except IndexError:
            return cls(n_threads - 1)

    def give(self) -> None:
        self._idle.setdefault(self.n_helpers, []).append(self)

    @classmethod
    def _forget_all(cls) -> None:
        """In a process that was forked the threads are gone."""
        cls._idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Team._forget_all)
