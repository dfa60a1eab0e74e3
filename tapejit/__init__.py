"""tapejit: exact gradients of large flat computations, from a flat tape swept by Numba."""

from tapejit import checkpointing, errors, testing
from tapejit.checkpointing.loop import loop, while_loop
from tapejit.checkpointing.plans import memory_report, plan
from tapejit.checkpointing.region import checkpoint
from tapejit.compiled import Compiled, compile
from tapejit.derivatives import grad, hessian, hvp, jacobian, jvp, value_and_grad, vjp
from tapejit.minimize import minimize
from tapejit.native import native
from tapejit.ops import Interval
from tapejit.primitives import Primitive, primitive
from tapejit.recording.array import Array
from tapejit.recording.numpy_rules import value
from tapejit.recording.recorder import Tape, debug
from tapejit.recording.variable import Variable
from tapejit.replays import Recording, record

__version__ = "0.1.0"

__all__ = [
    "Array",
    "Compiled",
    "Interval",
    "Primitive",
    "Recording",
    "Tape",
    "Variable",
    "checkpoint",
    "checkpointing",
    "compile",
    "debug",
    "errors",
    "grad",
    "hessian",
    "hvp",
    "jacobian",
    "jvp",
    "loop",
    "memory_report",
    "minimize",
    "native",
    "plan",
    "primitive",
    "record",
    "testing",
    "value",
    "value_and_grad",
    "vjp",
    "while_loop",
]
