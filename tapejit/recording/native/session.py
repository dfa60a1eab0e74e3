"""A tape while compiled code appends to it: its header, its growth, and what stops it.

Compiled code knows addresses only, so the tape's arrays may move when they grow; nobody holds a view of them meanwhile. Where the tape is
full, compiled code calls back into Python. An error there cannot be raised through compiled code: it is kept, nothing more is recorded, the
loops of the user's function leave at their next round (`poll`), and `Session` raises it.

Python runs the handlers of signals between any two of its instructions. A handler that raises (Ctrl-C, a timeout) could do so in the middle
of a callback, where the exception would be lost and a slot with it. So signals are noted during a session, and their handlers called where
the tape has grown and at the end.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # without the conversions to enums, several times the cost of the call
import ctypes
import signal
import threading
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tapejit import ops
from tapejit.errors import TapejitError, UninitializedError
from tapejit.recording.native import header as layout
from tapejit.recording.native import push
from tapejit.recording.native.active import call_named
from tapejit.recording.native.domains import check_domains
from tapejit.recording.native.header import FLAGS, HEADERS, LATEST, MAX_TAPES, NO_TAPE, STOPPING, WATCHING
from tapejit.recording.native.memory import symbol
from tapejit.recording.recorder import Tape

__all__ = ["Session", "Stopped", "poll"]

_lock = threading.Lock()
_spare: list[np.ndarray] = []  # headers of sessions that have ended
_local = threading.local()
_FIRST_ROOM = 1 << 15  # slots
_DEFERRED = [
    int(getattr(signal, name))
    for name in ("SIGINT", "SIGALRM", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGPROF")
    if hasattr(signal, name)
]


class Stopped(Exception):
    """Leaves the user's compiled function after an error that `Session` raises in its own name."""


class Session:
    """Compiled code appends to `tape` within the ``with`` block.

    Parameters
    ----------
    tape : Tape
        An open tape.
    keeps_guards : bool
        Whether decisions are recorded, for replays.
    line : str
        What guards say about their place in the source.
    """

    def __init__(self, tape: Tape, keeps_guards: bool, line: str) -> None:
        self.tape = tape
        self.keeps_guards = keeps_guards
        self.line = line
        self.error: BaseException | None = None
        self._guard_slot = np.zeros(0, np.int32)
        self._guard_expected = np.zeros(0)
        self._handlers: dict[int, Any] = {}  # of signals that are noted instead
        self._pending: list[tuple[int, Any]] = []

    def __enter__(self) -> Session:
        push.install(_CALLBACK_ADDRESS)
        with _lock:
            free = np.flatnonzero(HEADERS[1:] == 0)
            if not free.size:
                raise TapejitError(f"{MAX_TAPES - 1} native recordings are open already; end one of them first")
            self.number = 1 + int(free[0])
            self._header = _spare.pop() if _spare else np.empty(layout.HEADER_WORDS, np.int64)
            self._header[:] = 0
            FLAGS[LATEST] = HEADERS[self.number] = self._header.ctypes.data
            FLAGS[WATCHING] += self.keeps_guards
        self._first = self.tape.n_slots
        self._header[layout.NUMBER] = self.number
        self._header[layout.KEEPS_GUARDS] = self.keeps_guards
        _sessions().append(self)
        try:
            self._defer_signals()
            self._publish(_FIRST_ROOM)
        except BaseException:
            self._leave()
            self._handle_signals()
            raise
        return self

    def _defer_signals(self) -> None:
        """Note signals instead of calling their handlers, which Python does in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            for number in _DEFERRED:
                handler = _signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    _signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, frame: Any) -> None:
        self._pending.append((number, frame))

    def _call_handlers(self) -> None:
        """Call the handlers of the signals that have come; they may raise."""
        while self._pending:
            number, frame = self._pending.pop(0)
            self._handlers[number](number, frame)

    def _handle_signals(self) -> None:
        """Give the signals their handlers back, and call those of the signals that have come."""
        for number, handler in self._handlers.items():
            if _signal.getsignal(number) == self._note_signal:
                _signal.signal(number, handler)
        self._call_handlers()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        n_slots = self._n_slots()
        n_guards = int(self._header[layout.N_GUARDS])
        self._leave()
        opcode = self.tape._opcode[self._first : n_slots]  # before that, inside of blocks, there may be anything
        n_user = max(0, int(opcode.max()) - ops.FIRST_USER + 1) if ops.USER and opcode.size else 0
        del opcode
        self.tape.took_room(n_slots, n_user)
        self._handle_signals()
        if self.error is not None:
            raise self.error from None
        if self.tape.careful:
            check_domains(self.tape, self._first, self.line)
        if n_guards:
            self.tape.guards.append(self._guard_slot[:n_guards], self._guard_expected[:n_guards], self.line)

    def _leave(self) -> None:
        _sessions().remove(self)
        with _lock:
            HEADERS[self.number] = 0
            # No header in `HEADERS` carries the number of another, or of one that has ended: compiled code relies on the number.
            self._header[layout.NUMBER] = 0
            FLAGS[LATEST] = HEADERS.max() or NO_TAPE.ctypes.data
            FLAGS[WATCHING] -= self.keeps_guards
            FLAGS[STOPPING] -= self.error is not None
            _spare.append(self._header)

    def _n_slots(self) -> int:
        return int(self._header[layout.NEXT]) & 0xFFFFFFFF

    def _publish(self, n_more: int) -> None:
        """Make room, and tell compiled code where."""
        arrays = self.tape.room(n_more)
        header = self._header
        upper = self.number << 32
        header[layout.NEXT] = upper | self.tape.n_slots
        header[layout.OPCODE : layout.VALUE + 1] = [array.ctypes.data for array in arrays]
        header[layout.CAPACITY] = upper | min(min(array.size for array in arrays), self.tape.max_slots)

    # What compiled code asks for.

    def answer(self, what: int) -> int:
        if what == push.STOPPED:
            return int(self.error is not None)
        if self.error is not None:
            return 0
        try:
            self._call_handlers()
            if what == push.READ_POISON:
                raise UninitializedError(
                    f"{self.line} reads memory that was allocated (np.empty, np.empty_like) and never written; write it first, or "
                    "allocate with np.zeros"
                )
            if what == push.GROW_TAPE:
                self.tape.took_room(self._n_slots())
                self._publish(1)
            else:
                self._grow_guards()
        except BaseException as error:  # Ctrl-C among them: it is raised when compiled code has returned
            self._stop(error)
            return 0
        return 1

    def _grow_guards(self) -> None:
        n = int(self._header[layout.N_GUARDS])
        size = max(1024, 2 * n)
        slot, expected = np.empty(size, np.int32), np.empty(size)
        slot[:n], expected[:n] = self._guard_slot[:n], self._guard_expected[:n]
        self._guard_slot, self._guard_expected = slot, expected
        self._header[layout.GUARD_SLOT : layout.GUARD_EXPECTED + 1] = slot.ctypes.data, expected.ctypes.data
        self._header[layout.GUARD_CAPACITY] = size

    def _stop(self, error: BaseException) -> None:
        self._header[layout.CAPACITY] = layout.DEAD
        with _lock:
            self.error = error
            FLAGS[STOPPING] += 1


def _sessions() -> list[Session]:
    if not hasattr(_local, "sessions"):
        _local.sessions = []
    return _local.sessions


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
def _callback(what: int, number: int) -> int:
    sessions = _sessions()
    return sessions[-1].answer(what) if sessions else 0


_CALLBACK_ADDRESS = ctypes.cast(_callback, ctypes.c_void_p).value


@intrinsic
def poll(typingctx):
    """Leave the function if its recording must stop."""

    def generate(context, builder, signature, args):
        flags = symbol(builder.module, "tapejit_flags", ir.IntType(64))
        zero = ir.Constant(ir.IntType(64), 0)
        stopping = builder.load(builder.gep(flags, [ir.Constant(ir.IntType(64), STOPPING)]))
        with builder.if_then(builder.icmp_signed("!=", stopping, zero), likely=False):
            stopped = call_named(builder, "stopped", [])
            with builder.if_then(builder.icmp_signed("!=", stopped, zero), likely=False):
                context.call_conv.return_user_exc(builder, Stopped, ())
        return context.get_dummy_value()

    return types.void(), generate
