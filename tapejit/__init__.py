"""tapejit: exact gradients of large flat computations, from a flat tape swept by Numba."""

from tapejit.recording.array import Array
from tapejit.recording.numpy_rules import value
from tapejit.recording.recorder import Tape, debug
from tapejit.recording.variable import Variable
from tapejit.derivatives import Recording, grad, hessian, hvp, jacobian, jvp, record, value_and_grad, vjp
