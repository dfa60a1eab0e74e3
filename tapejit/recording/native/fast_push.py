"""The push that writes almost every slot, in LLVM IR: operands on the tape, or a constant that was used lately, and room for one slot more.

A slot costs some 30 instructions here and 10 around the call, so two things count that Numba's C functions have no means for:

- The header is found without waiting for an operand. Its word may come from the push before; were its upper half the way to the header, every
  push would wait for the one before through three loads. So the header of the latest recording is taken and its number compared.
- The functions change no vector register. A calling convention by which half of them outlive a call lets the user's loop keep its numbers there.

All else is left to `rare_one` and `rare_two` of `push`.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

import llvmlite.binding as llvm
from llvmlite import ir

from tapejit.recording.native.header import (
    CAPACITY,
    CONSTANT_SETS,
    CONSTANTS,
    LATEST,
    LHS,
    NEXT,
    NUMBER,
    OPCODE,
    RHS,
    SPREAD,
    VALUE,
)

__all__ = ["CONVENTION", "NAMES", "compile_fast_push"]

# Elsewhere the C convention keeps vector registers itself (ARM), or nothing does.
CONVENTION = "x86_regcallcc" if platform.machine() in ("x86_64", "AMD64") else ""
_BYTE, _INT32, _INT64, _DOUBLE = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.DoubleType()
NAMES = {
    "push_one": ir.FunctionType(_INT64, [_INT64, _INT64, _DOUBLE]),
    "push_two": ir.FunctionType(_INT64, [_INT64, _DOUBLE, _INT64, _DOUBLE, _INT64, _DOUBLE]),
}


def _int64(number: int) -> ir.Constant:
    return ir.Constant(_INT64, number)


def _load(builder: ir.IRBuilder, header: ir.Value, index: int, kind: ir.Type = _INT64) -> ir.Value:
    address = builder.gep(header, [_int64(index)])
    return builder.load(builder.bitcast(address, kind.as_pointer()))


def _found(builder: ir.IRBuilder, variables: Sequence[ir.Value], word: ir.Value, rare: ir.Block) -> ir.Value:
    """The header of the tape that a word is on."""
    flags, headers = variables
    pointer = _INT64.as_pointer()
    number = builder.lshr(word, _int64(32))
    latest = _load(builder, flags, LATEST, pointer)
    start = builder.block
    is_latest = builder.icmp_unsigned("==", number, _load(builder, latest, NUMBER))
    elsewhere, other, found = (builder.append_basic_block(name) for name in ("elsewhere", "other", "found"))
    builder.cbranch(is_latest, found, elsewhere).set_weights([1000, 1])
    builder.position_at_end(elsewhere)
    builder.cbranch(builder.icmp_signed(">", word, _int64(0)), other, rare)
    builder.position_at_end(other)
    another = builder.load(builder.bitcast(builder.gep(headers, [number]), pointer.as_pointer()))
    builder.branch(found)
    builder.position_at_end(found)
    header = builder.phi(pointer)
    header.add_incoming(latest, start)
    header.add_incoming(another, other)
    return header


def _room(builder: ir.IRBuilder, header: ir.Value, rare: ir.Block) -> ir.Value:
    """The word of the next slot."""
    word = _load(builder, header, NEXT)
    room = builder.append_basic_block("room")
    has_room = builder.icmp_signed("<", word, _load(builder, header, CAPACITY))
    builder.cbranch(has_room, room, rare).set_weights([1000, 1])
    builder.position_at_end(room)
    return word


def _slot(builder: ir.IRBuilder, header: ir.Value, number: ir.Value, word: ir.Value, rare: ir.Block) -> ir.Value:
    """The slot of an operand, which may be a constant: see `_constant` of `push`."""
    start = builder.block
    passive, known = builder.append_basic_block("passive"), builder.append_basic_block("known")
    builder.cbranch(builder.icmp_signed("!=", word, _int64(0)), known, passive)
    builder.position_at_end(passive)
    bits = builder.bitcast(number, _INT64)
    hashed = builder.lshr(builder.mul(bits, _int64(SPREAD)), _int64(40))
    first = builder.shl(builder.and_(hashed, _int64(CONSTANT_SETS - 1)), _int64(2))
    place = builder.gep(header, [builder.add(first, _int64(CONSTANTS))])
    constant = _load(builder, place, 1)
    builder.cbranch(builder.icmp_signed("==", builder.load(place), bits), known, rare).set_weights([1000, 1])
    builder.position_at_end(known)
    slot = builder.phi(_INT64)
    slot.add_incoming(word, start)
    slot.add_incoming(constant, passive)
    return slot


def _write(
    builder: ir.IRBuilder, header: ir.Value, word: ir.Value, fields: dict[int, tuple[ir.Value, ir.Type]]
) -> None:
    slot = builder.and_(word, _int64(0xFFFFFFFF))
    for index, (number, kind) in fields.items():
        stored = builder.trunc(number, kind) if number.type != kind else number
        builder.store(stored, builder.gep(_load(builder, header, index, kind.as_pointer()), [slot]))
    builder.store(builder.add(word, _int64(1)), builder.gep(header, [_int64(NEXT)]))
    builder.ret(word)


def _push(module: ir.Module, variables: Sequence[ir.Value], name: str) -> None:
    kind = NAMES[name]
    function = ir.Function(module, kind, f"tapejit_{name}")
    function.calling_convention = CONVENTION
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    rare = function.append_basic_block("rare")
    if name == "push_one":
        code, word, value = function.args
        header = _found(builder, variables, word, rare)
        next_word = _room(builder, header, rare)
        lhs, rhs = word, _int64(0)
    else:
        code, x, x_word, y, y_word, value = function.args
        header = _found(builder, variables, builder.or_(x_word, y_word), rare)
        next_word = _room(builder, header, rare)
        lhs = _slot(builder, header, x, x_word, rare)
        rhs = _slot(builder, header, y, y_word, rare)
    fields = {OPCODE: (code, _BYTE), LHS: (lhs, _INT32), RHS: (rhs, _INT32), VALUE: (value, _DOUBLE)}
    _write(builder, header, next_word, fields)

    # By way of a function of the same convention, which saves what a C function changes: the common case saves nothing.
    c_function = ir.Function(module, kind, f"tapejit_{name.replace('push', 'rare')}")
    saving = ir.Function(module, kind, f"saving_{name}")
    saving.calling_convention = CONVENTION
    saving.linkage = "internal"
    saving.attributes.add("noinline")
    builder.position_at_end(rare)
    builder.ret(builder.call(saving, function.args, cconv=CONVENTION, tail=True))
    builder = ir.IRBuilder(saving.append_basic_block())
    builder.ret(builder.call(c_function, saving.args))


def compile_fast_push() -> llvm.ExecutionEngine:
    """Compile the functions, in some milliseconds, and give their names the addresses; they live as long as what is returned."""
    module = ir.Module("tapejit_fast_push")
    variables = [ir.GlobalVariable(module, _INT64, name) for name in ("tapejit_flags", "tapejit_headers")]
    for name in NAMES:
        _push(module, variables, name)
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
        codemodel="jitdefault",
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    for name in NAMES:
        llvm.add_symbol(f"tapejit_{name}", engine.get_function_address(f"tapejit_{name}"))
    return engine
