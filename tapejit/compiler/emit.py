"""The fifth stage: LLVM IR for the forward and the reverse kernel of a planned nest.

``forward(inputs, memory, tables)`` computes all values and returns 0; not 0 if a decision changed, or an argument left the range in which the
inlined functions are right. ``reverse(inputs, memory, input_adjoints, adjoints, tables)`` then hands the adjoints of the outputs, which stand in
`adjoints`, back to the inputs, and clears what it has handed on. Unless `Plan.inputs_apart`, inputs stand at the beginning of `memory`, their
adjoints at that of `adjoints`, and the arguments for them are not used. Loops count through all iterations of all entries, so that one counter
finds every place in memory.

Every loop runs at least once when it is entered. So what its last iteration computed is defined where it is left, and a
`Result` is the register itself.
"""

from __future__ import annotations

import re

import llvmlite.ir as ir

from tapejit.compiler.emitter import DOUBLE
from tapejit.compiler.forward import Forward
from tapejit.compiler.functions import Functions
from tapejit.compiler.plan import Plan
from tapejit.compiler.reverse import Reverse

__all__ = ["emit"]


def emit(plan: Plan, lanes: int = 1) -> tuple[str, set[str]]:
    """The module as text, and the external functions that it calls.

    With more than one of `lanes`, the kernels work on that many independent inputs at once: every number in `memory` and `adjoints` is that many
    numbers side by side, and so are the inputs, which are never apart.
    """
    module = ir.Module("tapejit")
    functions = Functions(module, ir.VectorType(DOUBLE, lanes) if lanes > 1 else DOUBLE)
    Forward(plan, module, functions).build()
    Reverse(plan, module, functions).build()
    # llvmlite writes no distinct or self-referential metadata.
    text = re.sub(r'!{ !"group \d+" }', "distinct !{}", str(module))
    text = re.sub(r'(!\d+) = !{ !"self \d+", ', r"\1 = distinct !{ \1, ", text)
    return text, functions.externals
