"""Expressions as LLVM IR, against the kernels of the sweeps: the same bits, one element at a time and in vectors."""

import ctypes

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from table import ROWS, interior_points, kernel_partial, kernel_second, kernel_value

from tapejit.compiler.functions import Functions, register
from tapejit.expressions import parse
from tapejit.ops import BY_NAME, partial_trees, second_partial_trees
from tapejit.sweeps.elementary import FUNCTIONS, LARGEST_ANGLE

DOUBLE, INT, BOOL = ir.DoubleType(), ir.IntType(64), ir.IntType(1)
OPERANDS = ("x", "y", "v")

# A huge angle is for the interpreter; here they stay out of the points.
SPECIAL = [0.0, 0.3, 0.5, 1.0, 2.0, 3.0, 20.0, 400.0, 745.0, 1e-8, 1e-160, 1e-300, 5e-324, 1e7, np.inf]
SPECIAL = np.array([*SPECIAL, *np.negative(SPECIAL), np.nan])


class Kernels:
    """Loops ``out[i] = tree`` in one module; each returns whether some operand was out of range."""

    def __init__(self):
        self.module = ir.Module("kernels")
        self.module.triple = llvm.get_process_triple()
        self.functions = Functions(self.module)

    def add(self, name, tree, vectorise):
        pointer = DOUBLE.as_pointer()
        function = ir.Function(self.module, ir.FunctionType(INT, [INT, *[pointer] * 4]), name)
        for argument in function.args[1:]:
            argument.attributes.add("noalias")
        size, *arrays, out = function.args
        entry, loop, done = (function.append_basic_block(label) for label in ("entry", "loop", "done"))
        ir.IRBuilder(entry).branch(loop)
        builder = ir.IRBuilder(loop)
        i, outside = builder.phi(INT), builder.phi(BOOL)
        i.add_incoming(INT(0), entry)
        outside.add_incoming(BOOL(0), entry)
        operands = {
            letter: builder.load(builder.gep(array, [i])) for letter, array in zip(OPERANDS, arrays, strict=True)
        }
        in_range = []
        builder.store(self.functions.expression(builder, tree, operands, in_range), builder.gep(out, [i]))
        now = outside
        for condition in in_range:
            now = builder.or_(now, builder.not_(condition))
        following = builder.add(i, INT(1))
        i.add_incoming(following, loop)
        outside.add_incoming(now, loop)
        branch = builder.cbranch(builder.icmp_signed("<", following, size), loop, done)
        if not vectorise:
            width = [ir.MetaDataString(self.module, "llvm.loop.vectorize.width"), ir.IntType(32)(1)]
            count = [ir.MetaDataString(self.module, "llvm.loop.interleave.count"), ir.IntType(32)(1)]
            hints = [self.module.add_metadata(hint) for hint in (width, count)]
            branch.set_metadata("llvm.loop", self.module.add_metadata(hints))
        builder = ir.IRBuilder(done)
        builder.ret(builder.zext(now, INT))

    def compile(self):
        register(self.functions.externals)
        module = llvm.parse_assembly(str(self.module))
        module.verify()
        target = llvm.Target.from_triple(llvm.get_process_triple())
        machine = target.create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = True
        passes = llvm.create_pass_builder(machine, options)
        passes.getModulePassManager().run(module, passes)
        self.text = str(module)
        self.engine = llvm.create_mcjit_compiler(module, machine)
        self.engine.finalize_object()

    def __call__(self, name, *operands):
        arrays = [np.ascontiguousarray(operand, dtype=np.float64) for operand in operands]
        out = np.empty(arrays[0].size)
        pointers = [array.ctypes.data for array in (*arrays, *arrays[:1] * (3 - len(arrays)), out)]
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 4)
        outside = kind(self.engine.get_function_address(name))(out.size, *pointers)
        return out, bool(outside)


@pytest.fixture(scope="module")
def native():
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def trees(op, kind):
    return {"value": lambda: (parse(op.value),), "partial": lambda: partial_trees(op.name)}.get(
        kind, lambda: second_partial_trees(op.name)
    )()


def assert_same_bits(got, expected):
    assert_array_equal(got, expected)
    numbers = ~np.isnan(expected)
    assert_array_equal(np.signbit(got[numbers]), np.signbit(expected[numbers]))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("vectorise", [False, True], ids=["scalar", "vector"])
@pytest.mark.parametrize("kind", ["value", "partial", "second"])
def test_expressions_have_the_bits_of_the_kernels(kind, vectorise, rng):
    kernels = Kernels()
    for op in ROWS:
        for which, tree in enumerate(trees(op, kind)):
            kernels.add(f"{op.name}_{which}", tree, vectorise)
    kernels.compile()
    for op in ROWS:
        grids = [SPECIAL] if op.arity == 1 else [grid.ravel() for grid in np.meshgrid(SPECIAL, SPECIAL)]
        points = [np.concatenate(parts) for parts in zip(grids, interior_points(op, rng, 1003), strict=True)]
        v = kernel_value(op, *points)
        for which in range(len(trees(op, kind))):
            got, outside = kernels(f"{op.name}_{which}", points[0], points[-1], v)
            expected = {
                "value": lambda *_: v,  # noqa: B023
                "partial": kernel_partial,
                "second": kernel_second,
            }[kind](op, which, *points)
            assert_same_bits(got, expected)
            assert not outside, op.name


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", [name for name, (_, arity) in FUNCTIONS.items() if arity == 1])
def test_loops_over_elementary_functions_vectorise(name):
    kernels = Kernels()
    kernels.add(name, (name, "x"), vectorise=True)
    kernels.compile()
    assert "x double>" in kernels.text


@pytest.mark.usefixtures("native")
def test_huge_angles_are_reported():
    kernels = Kernels()
    kernels.add("sine", parse("x * sin(y)"), vectorise=True)
    kernels.compile()
    x = np.linspace(1.0, 2.0, 100)
    assert kernels("sine", x, x, x)[1] is False
    for angle in (LARGEST_ANGLE, np.inf, np.nan):
        assert kernels("sine", x, np.where(x > 1.5, angle, x), x)[1] is False
    for place in (0, 50, 99):
        y = x.copy()
        y[place] = -1.001 * LARGEST_ANGLE
        assert kernels("sine", x, y, x)[1] is True


def test_equal_subexpressions_are_computed_once():
    module = ir.Module("once")
    function = ir.Function(module, ir.FunctionType(DOUBLE, [DOUBLE, DOUBLE]), "once")
    builder = ir.IRBuilder(function.append_basic_block())
    functions = Functions(module)
    operands = dict(zip("xy", function.args, strict=True))
    first = functions.expression(builder, parse("exp(x) * digamma(y)"), operands)
    count = len(builder.block.instructions)
    assert functions.expression(builder, parse("exp(x) * digamma(y)"), operands) is first
    assert len(builder.block.instructions) == count
    assert functions.externals == {"digamma"}


def test_a_range_is_reported_to_everyone_who_asks():
    module = ir.Module("ranges")
    function = ir.Function(module, ir.FunctionType(DOUBLE, [DOUBLE]), "ranges")
    builder = ir.IRBuilder(function.append_basic_block())
    functions = Functions(module)
    first, second = [], []
    functions.expression(builder, parse("sin(x)"), {"x": function.args[0]})
    functions.expression(builder, parse("2 * sin(x)"), {"x": function.args[0]}, first)
    functions.expression(builder, parse("3 * sin(x)"), {"x": function.args[0]}, first)
    functions.expression(builder, parse("cos(x) - sin(x)"), {"x": function.args[0]}, second)
    assert len(first) == 1
    assert len(second) == 2
    assert any(condition is first[0] for condition in second)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(x < y) + (x < 2)", [2.0, 0.0, 0.0]),
        ("-(x < y)", [-1.0, 0.0, 0.0]),
        ("select(y - 2, x, y)", [2.0, 2.0, 3.0]),
        ("select(x < y, x == 1, 7)", [1.0, 7.0, 7.0]),
        ("select(isnan(y / (x - 2) - y / (x - 2)), 5, x)", [1.0, 5.0, 3.0]),
        ("copysign(0, -0.0) + x", [1.0, 2.0, 3.0]),
    ],
)
def test_truth_values_are_numbers_and_numbers_conditions(text, expected):
    kernels = Kernels()
    kernels.add("f", parse(text), vectorise=False)
    kernels.compile()
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.5])
    got, _ = kernels("f", x, y)
    assert_array_equal(got, expected)


def test_registering_again_is_free():
    register({"digamma"})
    register({"digamma"})
    assert BY_NAME["digamma"].arity == 1
