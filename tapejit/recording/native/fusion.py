"""Numba's rewrites after type inference, less one: expressions of active arrays are not fused.

Numba compiles ``a + b * c`` on arrays as one loop around a function of its own. On active arrays the loops of
`tapejit.recording.native.arrays` are faster to compile, and Numba's loop knows no active scalars.
"""

from __future__ import annotations

from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.postproc import PostProcessor
from numba.core.rewrites import registry
from numba.np.ufunc.array_exprs import RewriteArrayExprs

from tapejit.recording.native.active import is_active

__all__ = ["PassiveFusion"]


class PassiveArrayExprs(RewriteArrayExprs):
    """Fuses expressions of plain arrays only."""

    def _match_array_expr(self, instr, expr, target_name):
        if not any(is_active(self.typemap[var.name]) for var in expr.list_vars()):
            super()._match_array_expr(instr, expr, target_name)


_REWRITES = registry.RewriteRegistry()
_REWRITES.rewrites["after-inference"] = [
    PassiveArrayExprs if rewrite is RewriteArrayExprs else rewrite
    for rewrite in registry.rewrite_registry.rewrites["after-inference"]
]


@register_pass(mutates_CFG=True, analysis_only=False)
class PassiveFusion(FunctionPass):
    """Stands where `numba.core.typed_passes.NopythonRewrites` stands in Numba's pipeline."""

    _name = "tapejit_fusion"

    def __init__(self):
        super().__init__()

    def run_pass(self, state):
        post = PostProcessor(state.func_ir)
        post.run(True)  # the rewrites expect to see where variables die
        _REWRITES.apply("after-inference", state)
        post.remove_dels()
        return True
