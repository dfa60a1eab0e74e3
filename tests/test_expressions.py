"""Expression trees: parsing and what it refuses, simplification, derivatives, Python text, straight-line programs."""

import math

import mpmath
import numpy as np
import oracle
import pytest
from mpmath import mpf
from tolerances import EPS

from tapejit.expressions import (
    CONSTANTS,
    Program,
    compile_program,
    differentiate,
    names,
    parse,
    simplified,
    source,
    substitute,
)
from tapejit.ops import partial_trees
from tapejit.sweeps.special import NAMESPACE


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("x", "x"),
        ("3", 3.0),
        ("1e-3", 1e-3),
        ("pi", math.pi),
        ("x + y", ("add", "x", "y")),
        ("x - y", ("sub", "x", "y")),
        ("x * y", ("mul", "x", "y")),
        ("x / v", ("div", "x", "v")),
        ("-x", ("neg", "x")),
        ("-1", -1.0),
        ("x - y - v", ("sub", ("sub", "x", "y"), "v")),
        ("x / (y / v)", ("div", "x", ("div", "y", "v"))),
        ("-v / y", ("div", ("neg", "v"), "y")),
        ("x < y", ("less", "x", "y")),
        ("x <= y", ("less_equal", "x", "y")),
        ("x > y", ("greater", "x", "y")),
        ("x >= y", ("greater_equal", "x", "y")),
        ("x == 0", ("equal", "x", 0.0)),
        ("x != y", ("not_equal", "x", "y")),
        ("exp(-x)", ("exp", ("neg", "x"))),
        ("hypot(x, 1)", ("hypot", "x", 1.0)),
        ("select(x < 0, -x, x)", ("select", ("less", "x", 0.0), ("neg", "x"), "x")),
        ("  x\t", "x"),
    ],
)
def test_parse(text, tree):
    assert parse(text) == tree


@pytest.mark.parametrize(
    "text",
    [
        "x ** 2",
        "x % y",
        "x // y",
        "x @ y",
        "+x",
        "~x",
        "not x",
        "x and y",
        "x < y < v",
        "x is y",
        "x in y",
        "x if y else v",
        "z",
        "True",
        "None",
        "'x'",
        "1j",
        "x.real",
        "x[0]",
        "(x, y)",
        "[x]",
        "lambda: x",
        "math.exp(x)",
        "exp(x)(y)",
        "exp(*x)",
        "exp(x=1)",
        "(x := 1)",
        "__import__('os')",
    ],
)
def test_parse_refuses_what_is_not_in_the_vocabulary(text):
    with pytest.raises(ValueError, match="is not in the vocabulary of expressions") as refusal:
        parse(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("text", ["", "x +", "x y", "x = 1", "import os", "x; y", "exp(x"])
def test_parse_refuses_what_is_not_an_expression(text):
    with pytest.raises(ValueError, match="not an expression"):
        parse(text)


def test_refusal_names_the_part_that_is_wrong():
    with pytest.raises(ValueError, match=r"'x \*\* 2' in '1 \+ x \*\* 2' is not in the vocabulary"):
        parse("1 + x ** 2")


def test_constants_are_correctly_rounded():
    for name in set(CONSTANTS) - {"inf", "nan", "pi"}:
        with mpmath.workdps(50):
            exact = oracle.evaluate(CONSTANTS[name], {})
            assert abs(mpf(CONSTANTS[name]) - exact) <= EPS * abs(exact), name
            assert abs(mpf(CONSTANTS[name]) - exact) > 0, (
                name
            )  # the oracle knows the number itself, not the rounded one


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("0 + x", "x"),
        ("x + 0", "x"),
        ("x - 0", "x"),
        ("0 - x", ("neg", "x")),
        ("0 * x", 0.0),
        ("x * 0", 0.0),
        ("1 * x", "x"),
        ("x * 1", "x"),
        ("-1 * x", ("neg", "x")),
        ("x * -1", ("neg", "x")),
        ("-x * y", ("neg", ("mul", "x", "y"))),
        ("x * -y", ("neg", ("mul", "y", "x"))),
        ("-x * -y", ("mul", "y", "x")),
        ("0 / x", 0.0),
        ("x / 1", "x"),
        ("--x", "x"),
        ("2 + 3 * 4 - 1", 13.0),
        ("select(x < 0, y, y)", "y"),
        # What rounds, or what is not known, stays.
        ("1 / 3", ("div", 1.0, 3.0)),
        ("x - x", ("sub", "x", "x")),
        ("x / x", ("div", "x", "x")),
        ("select(x < 0, nan, nan)", ("select", ("less", "x", 0.0), CONSTANTS["nan"], CONSTANTS["nan"])),
    ],
)
def test_simplified(text, tree):
    assert repr(parse(text)) == repr(tree)


def test_zero_times_anything_is_zero():
    # A partial that is identically zero contributes nothing, not even where it meets infinity.
    assert simplified("mul", 0.0, ("div", 1.0, "x")) == 0.0
    assert simplified("mul", CONSTANTS["inf"], 0.0) == 0.0


def test_substitute_replaces_operands_and_simplifies():
    assert substitute(parse("x * y + v"), {"x": 1.0, "y": "x", "v": 0.0}) == "x"
    assert substitute(parse("exp(x) / y"), {"x": ("sin", "x"), "y": "v"}) == ("div", ("exp", ("sin", "x")), "v")


def test_names_lists_calls_and_operands():
    assert set(names(parse("select(x < 0, exp(y), 1) + v"))) == {"add", "select", "less", "x", "exp", "y", "v"}
    assert list(names(2.0)) == []


# Trees that contain every construct: derivatives of partials, evaluated both ways.
SAMPLES = [
    "x * x * x",
    "x / (1 + x * x)",
    "-(x - 2) * (y + 3)",
    "exp(-(x * x)) * sin(x * y)",
    "select(x < 1, x * y, log(x) / y)",
    "select(x < 1, select(y < 1, x, y), x * y)",
    "hypot(x, y) + arctan2(y, x)",
    "power(x, y)",
    "sqrt(square(x) + square(y))",
    "expit(x - y) * softplus(x) + log_expit(y)",
    "maximum(x, y) + minimum(x, 2 * y) + abs(x - y)",
    "logaddexp(x, y) + xlogy(x, y)",
    "gammaln(x) + digamma(y) + polygamma(2, x)",
    "remainder(x, y) + fmod(x, y) + copysign(x, -y)",
    "erf(x) * ndtr(y) + cbrt(x)",
    "tanh(x) / cosh(y) + arcsinh(x * y)",
]


@pytest.mark.parametrize("text", SAMPLES)
@pytest.mark.parametrize("operand", ["x", "y"])
def test_differentiate_matches_numerical_derivative(text, operand, rng):
    tree = parse(text)
    derivative = differentiate(tree, operand, partial_trees, v_dot=0.0)
    for _ in range(5):
        point = dict(zip("xy", rng.uniform(0.2, 2.0, 2).tolist(), strict=True))
        with mpmath.workdps(50):
            exactly = {name: mpf(number) for name, number in point.items()}
            expected = mpmath.diff(lambda t, at=exactly: oracle.evaluate(tree, {**at, operand: t}), exactly[operand])
            # The tree of the derivative in the same arithmetic. Where a partial reads `v`, that is the subtree's own value.
            assert mpmath.almosteq(oracle.evaluate(derivative, exactly), expected, rel_eps=1e-15, abs_eps=1e-15)


def test_differentiate_follows_the_result():
    # d/dx of v * v, where v has the derivative y.
    assert differentiate(parse("v * v"), "x", partial_trees, v_dot="y") == ("add", ("mul", "v", "y"), ("mul", "v", "y"))
    assert differentiate("v", "x", partial_trees, v_dot=2.0) == 2.0


def test_differentiate_of_what_does_not_depend_is_zero():
    assert differentiate(parse("exp(y) * 3"), "x", partial_trees, v_dot=0.0) == 0.0
    assert differentiate(parse("floor(x) + sign(x)"), "x", partial_trees, v_dot=0.0) == 0.0
    assert differentiate(5.0, "x", partial_trees, v_dot=0.0) == 0.0
    # A condition is not differentiated.
    assert differentiate(parse("select(x < 0, y, 1)"), "x", partial_trees, v_dot=0.0) == 0.0


def test_differentiate_keeps_nan_outside_the_domain():
    second = differentiate(parse("select(x < 0, nan, 1 / x)"), "x", partial_trees, v_dot=0.0)
    assert second[0] == "select"
    assert math.isnan(second[2])


@pytest.mark.parametrize("text", [text for text in SAMPLES if "ndtr" not in text])
def test_source_is_python_text_of_the_tree(text, rng):
    tree = parse(text)
    # Primitives without a function of their own are called by name all the same.
    scope = {
        **NAMESPACE,
        **{name: lambda *args, name=name: _by_value(name, *args) for name in set(names(tree)) - set(NAMESPACE)},
    }
    x, y = rng.uniform(0.2, 2.0, 2).tolist()
    got = eval(source(tree), {**scope, "x": x, "y": y})
    with mpmath.workdps(50):
        expected = float(oracle.evaluate(tree, {"x": mpf(x), "y": mpf(y)}))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def _by_value(name, *args):
    with mpmath.workdps(30):
        return float(oracle.evaluate((name, "x", "y")[: 1 + len(args)], dict(zip("xy", map(mpf, args), strict=False))))


@pytest.mark.parametrize(
    ("number", "text"), [(1.5, "1.5"), (math.inf, "inf"), (-math.inf, "(-inf)"), (math.nan, "nan")]
)
def test_source_of_numbers(number, text):
    assert source(number) == text


@pytest.mark.parametrize("number", [-2.0, -0.0, -math.inf, 1e-300])
def test_source_of_a_number_stands_in_any_place(number):
    for tree in [("mul", number, number), ("sub", "x", number), ("neg", number), ("div", number, "x")]:
        assert math.isfinite(eval(source(tree), {"x": 1.0, "inf": math.inf})) or math.isinf(number)


def test_program_computes_equal_subtrees_once():
    program = compile_program(parse("exp(x) * exp(x) + exp(x)"))
    assert program.steps == (("exp", "x"), ("mul", 0, 0), ("add", 1, 0))
    assert program.result == 2


def test_program_orders_steps_by_dependence():
    program = compile_program(parse("select(x < y, sin(x + y), cos(x + y))"))
    for position, (_, *arguments) in enumerate(program.steps):
        assert all(argument < position for argument in arguments if isinstance(argument, int))
    assert sum(step[0] == "add" for step in program.steps) == 1


@pytest.mark.parametrize("tree", [1.0, "y", "v"])
def test_program_of_a_plain_argument_has_no_steps(tree):
    assert compile_program(tree) == Program((), tree)


def test_program_tells_the_two_zeros_apart():
    program = compile_program(("add", ("copysign", "x", 0.0), ("copysign", "x", -0.0)))
    assert [math.copysign(1.0, step[2]) for step in program.steps[:2]] == [1.0, -1.0]
