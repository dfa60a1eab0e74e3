"""A call of a compiled function from Python, recorded: arguments become cells, results become values on the tape.

For each combination of argument types a small *driver* is compiled that takes plain arrays and numbers, calls the active version and takes
its result apart; Numba's own conversions do the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.core.dispatcher import Dispatcher

from tapejit.recording.native.arguments import Leaves
from tapejit.recording.native.drivers import driver_for
from tapejit.recording.native.plans import plan_for
from tapejit.recording.native.refusals import refuse_function, translated
from tapejit.recording.native.session import Session, Stopped
from tapejit.recording.native.words import array_of_words, scalar_of_word
from tapejit.recording.recorder import Tape

__all__ = ["call"]


def call(
    tape: Tape,
    f: Dispatcher,
    arguments: Sequence[Any],
    keywords: dict[str, Any],
    originals: Sequence[Any] = (),
    keeps_guards: bool = True,
    owns_arguments: bool = False,
) -> Any:
    """Call a compiled function and record it.

    Parameters
    ----------
    tape : Tape
        An open tape.
    f : Dispatcher
        The user's function.
    arguments, keywords
        Its arguments: active values (`Variable`, `Array`) and plain ones.
    originals : sequence
        What the user passed for each argument: where in-place changes are written back to, and whose layout is kept.
    keeps_guards : bool
        Whether the recording may be replayed, so that decisions are kept.
    owns_arguments : bool
        Whether plain arrays may be changed in place without the caller's noticing.

    Returns
    -------
    object
        As the function returns it, with active values where they are.
    """
    refuse_function(f)
    inspect.signature(f.py_func).bind(*arguments, **keywords)  # a TypeError as Python words it
    leaves = Leaves(tape, owns_arguments)
    sources = list(originals) + list(arguments[len(originals) :])
    structure = [leaves.add(given, source) for given, source in zip(arguments, sources, strict=True)]
    named = {name: leaves.add(given, given) for name, given in keywords.items()}
    kinds = leaves.kinds()
    with translated(f, _positional(structure, named, kinds)):
        plan = plan_for(f, structure, named, leaves, kinds)
        driver = driver_for(f, structure, named, leaves.kinds(plan.active) if plan.activates else kinds)
    cells: list[Any] = []
    try:
        with Session(tape, keeps_guards, f"compiled function {f.py_func.__name__}") as session:
            cells = leaves.buffers(plan, session.number)
            try:
                result = driver.entry(*cells)
            except Stopped:
                result = None
    finally:
        leaves.write_back(plan, cells)
    return _recorded(tape, result)


def _positional(
    structure: Sequence[Any], named: dict[str, Any], kinds: Sequence[types.Type]
) -> list[types.Type] | None:
    """The types of the arguments where all are positional leaves; None otherwise."""
    if named or not all(isinstance(part, int) for part in structure):
        return None
    return [kinds[part] for part in structure]


def _recorded(tape: Tape, result: Any) -> Any:
    """What the driver returned, with active values where there are words."""
    if isinstance(result, tuple) and len(result) == 4 and result[2] is None and result[3] is None:
        values, words = result[:2]
        return (
            array_of_words(tape, values, words)
            if isinstance(values, np.ndarray)
            else scalar_of_word(tape, values, words)
        )
    if isinstance(result, tuple):
        return tuple(_recorded(tape, part) for part in result)
    return result
