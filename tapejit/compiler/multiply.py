"""Matrix products that stay whole, in the kernels: calls of what the sweeps call, so that values have the same bits."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import llvmlite.binding
import llvmlite.ir as ir

from tapejit.compiler.emitter import I32, I64, Emitter, number
from tapejit.compiler.nest import Product, Site
from tapejit.compiler.operands import Data, Factor
from tapejit.compiler.places import Address
from tapejit.compiler.products import Standing, takes_adjoints
from tapejit.sweeps import blas_addresses
from tapejit.sweeps.blocks import multiply
from tapejit.sweeps.kernel import primitive_kernel

if TYPE_CHECKING:
    from tapejit.compiler.reverse import Reverse

__all__ = ["emit_adjoints", "emit_product", "register_products"]

_MULTIPLY, _GEMM = "tapejit_multiply", "tapejit_dgemm"
_N_ARGUMENTS = 13


def tapejit_multiply(gemm, m, k, n, a, a_rows, a_columns, b, b_rows, b_columns, adds, out, out_rows):
    """``out = a @ b``, or ``out += a @ b`` if `adds`; matrices as addresses with their strides."""
    multiply(gemm, m, k, n, a, a_rows, a_columns, b, b_rows, b_columns, 1.0 if adds else 0.0, out, out_rows)


@cache
def register_products() -> list[str]:
    """Make known to LLVM what the code below calls; gives the symbols."""
    compiled = primitive_kernel(f"void({', '.join(['int64'] * _N_ARGUMENTS)})", tapejit_multiply)
    _registered.append(compiled)
    llvmlite.binding.add_symbol(_MULTIPLY, compiled.address)
    llvmlite.binding.add_symbol(_GEMM, int(blas_addresses()[0]))
    return [_MULTIPLY, _GEMM]


_registered: list[Any] = []  # for the life of the process, as are the addresses


def emit_product(emitter: Emitter, product: Product) -> None:
    """Compute the results of a product."""
    m, k, n = product.shape
    a, b = (_read(emitter, operand, product) for operand in product.site.operands)
    _call(emitter, (m, k, n), a, b, False, emitter.pointer(_results(emitter, product, emitter.plan.stored)), n)


def emit_adjoints(reverse: Reverse, product: Product) -> None:
    """Hand the adjoints of the results on to the factors, and clear them."""
    b = reverse.b
    m, k, n = product.shape
    if product.site not in reverse.plan.active:
        return
    results = _results(reverse, product, reverse.plan.adjoints)
    g = b.ptrtoint(reverse.pointer(results, reverse.adjoints), I64)
    g_rows, g_columns = (g, n, 1), (g, 1, n)  # as it is, and transposed
    for which, factor in enumerate(product.site.operands):
        if not reverse.plan.is_active(factor):
            continue
        address, rows, columns = _read(reverse, product.site.operands[1 - which], product)
        straight, turned = (address, rows, columns), (address, columns, rows)
        if which == 0:
            shape, x, y = ((k, n, m), straight, g_columns) if factor.is_transposed else ((m, n, k), g_rows, turned)
        else:
            shape, x, y = ((n, m, k), g_columns, straight) if factor.is_transposed else ((k, m, n), turned, g_rows)
        if takes_adjoints(factor):
            first = reverse.place(factor.adjoint.address, factor.home)
            target = reverse.pointer(first, reverse.adjoints_of(factor))
            _call(reverse, shape, x, y, True, target, factor.adjoint.distance)
        else:
            scratch = reverse.pointer(number(reverse.plan.scratch[factor]))
            _call(reverse, shape, x, y, False, scratch, factor.n_columns)
            with reverse.counting(number(0), number(factor.size)) as i:
                target = reverse.pointer(_element(reverse, factor, factor.adjoint, i), reverse.adjoints_of(factor))
                so_far = b.load(target, typ=reverse.number)
                b.store(b.fadd(so_far, reverse.load(i, scratch)), target)
    with reverse.counting(number(0), number(m * n)) as i:
        reverse.store(reverse.zero, b.add(results, i), reverse.adjoints)


def _results(emitter: Emitter, product: Product, places: dict[Site, Address]) -> ir.Value:
    """Where the results of this iteration stand, or their adjoints; they are contiguous."""
    place = places[product.site]
    assert product.loop is not None and place.stride == 1
    m, _, n = product.shape
    return emitter.b.add(number(place.base), emitter.b.mul(emitter.t[product.loop], number(m * n)))


def _read(emitter: Emitter, operand: Factor | Data, product: Product) -> tuple[ir.Value, int, int]:
    """Address and strides of a factor, which is copied first if BLAS cannot read it in place."""
    b = emitter.b
    if isinstance(operand, Data):
        assert product.loop is not None
        at = b.add(number(operand.table), b.mul(emitter.t[product.loop], number(operand.table_stride)))
        pointer = b.gep(emitter.tables, [at], inbounds=True, source_etype=I32)
        return b.load(pointer, align=4, typ=I64), *operand.strides
    if operand.address.distance:
        first = emitter.place(operand.address.address, operand.home)
        pointer = emitter.pointer(first, emitter.array_of(operand))
        distance = operand.address.distance
    else:
        pointer, distance = emitter.pointer(number(emitter.plan.scratch[operand])), operand.n_columns
        with emitter.counting(number(0), number(operand.size)) as i:
            value = emitter.load(_element(emitter, operand, operand.address, i), emitter.array_of(operand))
            emitter.store(value, i, pointer)
    strides = (1, distance) if operand.is_transposed else (distance, 1)
    return b.ptrtoint(pointer, I64), *strides


def _element(emitter: Emitter, factor: Factor, where: Standing, i: ir.Value) -> ir.Value:
    """Where element i of a factor stands; of one in place, which has one column then, too."""
    b = emitter.b
    first = emitter.place(where.address, factor.home)
    if where.distance:
        return b.add(first, b.mul(i, number(where.distance)))
    start = b.add(number(where.offsets), b.mul(emitter.t[factor.home], number(where.offsets_stride)))
    return b.add(first, emitter.table(b.add(start, i)))


def _call(emitter: Emitter, shape: tuple, a: tuple, b: tuple, adds: bool, out: ir.Value, out_rows: int) -> None:
    module = emitter.function.module
    functions = []
    for name, n_arguments in ((_MULTIPLY, _N_ARGUMENTS), (_GEMM, 0)):
        if name not in module.globals:
            ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * n_arguments), name)
        functions.append(module.globals[name])
    builder = emitter.b
    arguments = [builder.ptrtoint(functions[1], I64), *shape, *a, *b, adds, builder.ptrtoint(out, I64), out_rows]
    builder.call(functions[0], [x if isinstance(x, ir.Value) else number(x) for x in arguments])
