"""Random programs in the text of scalar code that Numba compiles: loops, branches, work arrays, views, tuples, lists, nested callees.

A program has the function ``f(x, y, w, t, k)`` of a vector, a number, a work array, a table and an integer array, and helpers that it and
they call. Arrays have four entries (``A``) or two (``H``, a half), matrices are four by four: every index and every assignment fits. What
makes a program worth running is who shares memory with whom: names are bound to other names, to views, to what a helper returns and to what
stands in a list or a tuple, on different paths, and swapped in loops. In the end every name in scope counts.

The same text runs as plain Python on active values (`from_python`), where allocators make arrays that can hold them.
"""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import numba
import numpy as np

import tapejit as tj

# Kinds of variables: number, integer, array of four, half of an array, matrix, integer array, list of arrays, list of numbers, tuple
# (array, number, array).
KINDS = "S I A H M K L N P".split()

UNARY = "np.sin({}) np.tanh({}) np.exp(-{}*{}) math.cos({}) abs({}) math.sqrt(1.5+np.sin({})) -{} float({})".split()
BINARY = [
    "0.5 * ({} + {})",
    "0.5 * ({} - {})",
    "np.tanh({}) * {}",
    "{} / (2.0 + np.cos({}))",
    "0.7 * {} + 0.4 * {}",
    "np.maximum({}, {} + 0.123)",
    "math.atan2({}, 1.5 + abs({}))",
    "np.tanh({}) ** 2 - 0.6 * {}",
]
HELPERS = ["AS", "AAS", "MI", "AA", "LS", "HA", "PS", "SS", "AAAAS", "M", "AK", "NS", "S"]
RESULTS = ["S", "A", "P", "", "A", "S"]


class Writer:
    """Writes one function, statement by statement.

    Parameters
    ----------
    rng : random.Random
    helpers : list
        Functions that may be called: name, kinds of parameters, kind of the result, number of defaults.
    """

    def __init__(self, rng: random.Random, helpers: list) -> None:
        self.rng = rng
        self.helpers = helpers
        self.lines: list[str] = []
        self.depth = 1
        self.loops = 0
        self.in_loop = False
        self.scope: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.fixed: set[str] = set()  # loop counters, which nobody else may change
        self.n_names = 0
        self.result = ""

    def write(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def new(self, kind: str) -> str:
        self.n_names += 1
        return f"{kind.lower()}{self.n_names}"

    def declare(self, kind: str, name: str) -> str:
        if name not in self.scope[kind]:
            self.scope[kind].append(name)
        return name

    def pick(self, kind: str) -> str | None:
        return self.rng.choice(self.scope[kind]) if self.scope[kind] else None

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    # Expressions.

    def number(self) -> str:
        return repr(round(self.rng.uniform(-1.5, 1.5), 3))

    def index(self, size: int) -> str:
        rng = self.rng
        if self.scope["I"] and self.chance(0.5):
            counter = self.pick("I")
            return f"({counter} + {rng.randrange(4)}) % {size}" if self.chance(0.5) else f"{counter} % {size}"
        if self.chance(0.07):
            return f"int(abs({self.scalar(1)}) * 7.0) % {size}"
        if self.chance(0.1) and self.scope["K"]:
            return f"{self.pick('K')}[{rng.randrange(4)}] % {size}"
        return str(rng.randrange(-size, size))

    def element(self) -> str | None:
        """A place that holds a number."""
        choices = []
        for kind, make in (
            ("A", lambda name: f"{name}[{self.index(4)}]"),
            ("H", lambda name: f"{name}[{self.index(2)}]"),
            ("M", lambda name: f"{name}[{self.index(4)}, {self.index(4)}]"),
            ("L", lambda name: f"{name}[{self.index_of_list(name)}][{self.index(4)}]"),
            ("N", lambda name: f"{name}[{self.index_of_list(name)}]"),
            ("P", lambda name: f"{name}[{self.rng.choice((0, 2))}][{self.index(4)}]"),
        ):
            if self.scope[kind]:
                choices += [(kind, make)] * (3 if kind == "A" else 1)
        if not choices:
            return None
        kind, make = self.rng.choice(choices)
        return make(self.pick(kind))

    def index_of_list(self, name: str) -> str:
        """Lists are never empty."""
        if self.scope["I"] and self.chance(0.4):
            return f"{self.pick('I')} % len({name})"
        return self.rng.choice(["0", "-1"])

    def scalar(self, depth: int = 2) -> str:
        rng = self.rng
        if depth == 0 or self.chance(0.3):
            choices = [self.number]
            choices += [lambda: self.pick("S")] * 3 * bool(self.scope["S"])
            choices += [self.element] * 4 * any(self.scope[kind] for kind in "AHMLNP")
            choices += [lambda: f"{self.pick('P')}[1]"] * bool(self.scope["P"])
            choices += [lambda: f"float({self.pick('I')})"] * bool(self.scope["I"] and self.chance(0.2))
            return rng.choice(choices)()
        if self.chance(0.2):
            call = self.call_of("S")
            if call is not None:
                return call
        if self.chance(0.4):
            form = rng.choice(UNARY)
            return form.format(*[f"({self.scalar(depth - 1)})"] * 2)
        if self.chance(0.1):
            return f"({self.scalar(depth - 1)} if {self.condition()} else {self.scalar(depth - 1)})"
        return "(" + rng.choice(BINARY).format(*(f"({self.scalar(depth - 1)})" for _ in range(2))) + ")"

    def condition(self) -> str:
        rng = self.rng
        if self.scope["I"] and self.chance(0.4):
            return f"{self.pick('I')} % 2 == {rng.randrange(2)}"
        comparison = f"{self.scalar(1)} {rng.choice(['<', '>', '<=', '>='])} {self.scalar(1)}"
        if self.chance(0.2):
            return f"({comparison}) {rng.choice(['and', 'or'])} {self.scalar(1)} > {self.number()}"
        return f"not ({comparison})" if self.chance(0.1) else comparison

    def call_of(self, kind: str) -> str | None:
        """A call of a helper with a result of this kind."""
        fitting = [helper for helper in self.helpers if helper[2] == kind]
        if not fitting:
            return None
        name, parameters, _, n_defaults = self.rng.choice(fitting)
        arguments = []
        for i, parameter in enumerate(parameters):
            if n_defaults and i == len(parameters) - 1 and self.chance(0.5):
                break
            argument = self.value(parameter)
            if argument is None:
                return None
            arguments.append(argument)
        return f"{name}({', '.join(arguments)})"

    def value(self, kind: str) -> str | None:
        """An expression for what exists already; None if there is nothing."""
        if kind == "S":
            return self.scalar(1)
        if kind == "I":
            return self.pick("I") if self.scope["I"] and self.chance(0.5) else str(self.rng.randrange(4))
        if kind == "A":
            return self.array()
        if kind == "H":
            return self.half()
        if kind == "P":
            return self.pick("P") if self.scope["P"] and self.chance(0.6) else self.pair()
        return self.pick(kind)

    def array(self) -> str | None:
        """An array of four that exists: a name or a view."""
        choices = [lambda: self.pick("A")] * 6 * bool(self.scope["A"])
        choices += [lambda: f"{self.pick('A')}[::-1]"] * bool(self.scope["A"])
        choices += [lambda: f"{self.pick('A')}[:]"] * bool(self.scope["A"])
        choices += [lambda: f"{self.pick('M')}[{self.index(4)}]"] * 2 * bool(self.scope["M"])
        choices += [lambda: f"{self.pick('M')}[:, {self.index(4)}]"] * bool(self.scope["M"])
        choices += [lambda: f"{self.pick('M')}.T[{self.index(4)}]"] * bool(self.scope["M"])
        choices += [self.list_item] * 2 * bool(self.scope["L"])
        choices += [lambda: f"{self.pick('P')}[{self.rng.choice((0, 2))}]"] * 2 * bool(self.scope["P"])
        return self.rng.choice(choices)() if choices else None

    def list_item(self) -> str:
        name = self.pick("L")
        return f"{name}[{self.index_of_list(name)}]"

    def half(self) -> str | None:
        base = self.array()
        if base is None or (self.scope["H"] and self.chance(0.3)):
            return self.pick("H")
        if self.scope["M"] and self.chance(0.2):
            return f"{self.pick('M')}[{self.rng.choice(['{i}, 1:3', '1:3, {i}', '{i}, ::2', '::-2, {i}'])}]".format(
                i=self.index(4)
            )
        if self.scope["I"] and self.chance(0.3):
            start = f"{self.pick('I')} % 3"
            return f"{base}[{start}:{start} + 2]"
        return f"{base}[{self.rng.choice(['1:3', '::2', ':2', '2:', '::-2'])}]"

    def pair(self) -> str | None:
        first, second = self.array(), self.array()
        return None if first is None else f"({first}, {self.scalar(1)}, {second})"

    def made(self, kind: str) -> str | None:
        """An expression that makes something of this kind: new memory, a view, or what a helper gives."""
        rng = self.rng
        if self.chance(0.35):
            call = self.call_of(kind)
            if call is not None:
                return call
        if kind == "A":
            base = self.array()
            choices = ["np.zeros(4)", "np.ones(4)", f"np.full(4, {self.number()})"]
            if base is not None:
                choices += [base, base, base, f"{base}.copy()", f"np.zeros_like({base})", f"np.copy({base})"]
                choices += [f"{base} * {self.number()}", f"({base} if {self.condition()} else {self.array()})"]
                choices += [f"0.5 * ({base} + {self.array()})", f"np.sin({base})"]
            choices += [f"np.array([{', '.join(self.scalar(1) for _ in range(4))}])"]
            return rng.choice(choices)
        if kind == "M":
            choices = ["np.zeros((4, 4))", "np.zeros((4, 4))", f"np.full((4, 4), {self.number()})"]
            if self.scope["M"]:
                name = self.pick("M")
                choices += [name, f"{name}.T", f"{name}.copy()", f"{name}[::-1]", f"0.5 * {name}"]
            return rng.choice(choices)
        if kind == "L":
            arrays = [self.array() for _ in range(rng.randrange(1, 4))]
            if self.scope["L"] and self.chance(0.3):
                one, two = self.pick("L"), self.pick("L")
                return rng.choice([one, f"{one}[::-1]", f"{one}[:2] + {two}[:2]", f"{one}.copy()", f"{one}[:1] * 2"])
            return None if arrays[0] is None else f"[{', '.join(arrays)}]"
        if kind == "N":
            return f"[{', '.join(self.scalar(1) for _ in range(rng.randrange(1, 4)))}]"
        if kind == "K":
            return "np.arange(4)" if self.chance(0.5) else self.pick("K")
        if kind == "S":
            return self.scalar(3)
        return self.value(kind)

    # Statements.

    def block(self, n: int) -> None:
        for _ in range(n):
            self.statement()

    def inner(self, n: int, **counters: str) -> None:
        """An indented block, with names of its own."""
        before = len(self.lines)
        outer, fixed = {kind: list(names) for kind, names in self.scope.items()}, set(self.fixed)
        self.depth += 1
        for name, kind in counters.items():
            self.declare(kind, name)
        self.block(n)
        if len(self.lines) == before:
            self.write("pass")
        self.depth -= 1
        self.scope, self.fixed = outer, fixed

    def statement(self) -> None:
        choices = [
            (self.bind, 6),
            (self.store, 6),
            (self.accumulate, 3),
            (self.store_slice, 3),
            (self.store_view, 2),
            (self.store_matrix, 2 if self.scope["M"] else 0),
            (self.swap, 3),
            (self.call, 3),
            (self.grow, 1),
            (self.unpack, 1),
            (self.loop, 3 if self.loops < 2 and self.depth < 4 else 0),
            (self.branch, 2 if self.depth < 4 else 0),
            (self.leave, 0.5 if self.in_loop else 0),
            (self.early_return, 0.15 if self.depth > 1 else 0),
        ]
        kinds, weights = zip(*choices, strict=True)
        self.rng.choices(kinds, weights)[0]()

    def bind(self) -> None:
        """A name for something, old or new."""
        kind = self.rng.choices(KINDS, [4, 0, 6, 2, 2, 0.5, 1.5, 0.7, 1])[0]
        expression = self.made(kind)
        if expression is None:
            return
        old = [name for name in self.scope[kind] if name not in self.fixed]
        name = self.rng.choice(old) if old and self.chance(0.6) else self.new(kind)
        self.write(f"{name} = {expression}")
        self.declare(kind, name)
        if expression == "np.zeros(4)" and self.chance(0.3):
            # Every entry is written before anything is read.
            self.lines[-1] = self.lines[-1].replace("zeros", "empty")
            counter = self.new("I")
            self.write(f"for {counter} in range(4):")
            self.write(f"    {name}[{counter}] = {self.number()} * {counter}")

    def store(self) -> None:
        place = self.element()
        if place is not None:
            self.write(f"{place} = {self.scalar()}")

    def accumulate(self) -> None:
        names = [name for name in self.scope["S"] if name not in self.fixed]
        place = self.rng.choice(names) if names and self.chance(0.5) else self.element()
        if place is not None:
            form = self.rng.choice(["{} += 0.5 * {}", "{} *= np.cos({})", "{} -= 0.3 * {}", "{} /= 2.0 + np.sin({})"])
            self.write(form.format(place, f"({self.scalar(1)})"))

    def store_slice(self) -> None:
        target, source = self.array(), self.array()
        if target is None:
            return
        form = self.rng.choice(
            [
                "{a}[:] = {b}",
                "{a}[1:3] = {b}[2:]",
                "{a}[::2] = {b}[:2]",
                "{a}[:] = {s}",
                "{a}[2:] = {s}",
                "{a}[1:] = {a}[:-1]",
                "{a}[:3] += {s}",
                "{a}[:] *= {s}",
                "{a}[:2] += 0.7 * {b}[1:3]",  # a new array: Numba reads what it has just written where the two overlap
            ]
        )
        self.write(form.format(a=target, b=source, s=f"np.cos({self.scalar(1)})"))

    def store_matrix(self) -> None:
        """Rows, columns and blocks of a matrix."""
        name, array = self.pick("M"), self.array()
        if name is None or array is None:
            return
        form = self.rng.choice(
            [
                "{m}[{i}] = {a}",
                "{m}[:, {i}] = {a}",
                "{m}[{i}, :] += 0.7 * {a}",
                "{m}[1:, :2] = {m}[:3, 2:]",
                "{m}[1:3, {i}] = {s}",
                "{m} *= {s}",
                "{m}[:2] += 0.7 * {a}",
            ]
        )
        self.write(form.format(m=name, a=array, i=self.index(4), s=f"np.cos({self.scalar(1)})"))

    def store_view(self) -> None:
        """Through a name of its own."""
        half = self.half()
        if half is not None:
            name = self.declare("H", self.new("H"))
            self.write(f"{name} = {half}")
            self.write(f"{name}[{self.index(2)}] = {self.scalar()}")

    def swap(self) -> None:
        kind = self.rng.choice("AAAASMHL")
        names = [name for name in self.scope[kind] if name not in self.fixed]
        if len(names) < 2:
            return
        chosen = self.rng.sample(names, self.rng.randrange(2, min(len(names), 4) + 1))
        self.write(f"{', '.join(chosen)} = {', '.join(chosen[1:] + chosen[:1])}")

    def call(self) -> None:
        call = self.call_of("")
        if call is not None:
            self.write(call)

    def grow(self) -> None:
        kind = self.rng.choice("LLN")
        name = self.pick(kind)
        if name is None:
            return
        item = self.array() if kind == "L" else self.scalar()
        if self.chance(0.6):
            self.write(f"if len({name}) < 6:")
            self.write(f"    {name}.append({item})")
        elif self.chance(0.5):
            self.write(f"{name}[{self.index_of_list(name)}] = {item}")
        else:
            old = [variable for variable in self.scope["A" if kind == "L" else "S"] if variable not in self.fixed]
            if old:
                self.write(f"if len({name}) > 1:")
                self.write(f"    {self.rng.choice(old)} = {name}.pop()")

    def unpack(self) -> None:
        pair = self.made("P")
        if pair is None:
            return
        names = [self.pick("A") or self.new("A"), self.new("S"), self.new("A")]
        if names[0] in self.fixed:
            names[0] = self.new("A")
        self.write(f"{', '.join(names)} = {pair}")
        for kind, name in zip("ASA", names, strict=True):
            self.declare(kind, name)

    def loop(self) -> None:
        was, self.in_loop, self.loops = self.in_loop, True, self.loops + 1
        kind = self.rng.choice(
            ["range", "range", "range", "while", "values", "enumerate", "zip", "rows", "list", "ints"]
        )
        n = self.rng.randrange(1, 4)
        array = self.array()
        if kind == "while":
            counter, bound = self.declare("I", self.new("I")), self.scalar(1)
            self.fixed.add(counter)
            self.write(f"{counter} = 0")
            self.write(f"while {counter} < 3 and {bound} < {self.number()} + {counter} * 2.0:")
            self.depth += 1
            self.write(f"{counter} += 1")
            self.depth -= 1
            self.inner(n)
        elif kind == "values" and array is not None:
            value = self.new("S")
            self.write(f"for {value} in {array}:")
            self.inner(n, **{value: "S"})
        elif kind == "enumerate" and array is not None:
            counter, value = self.new("I"), self.new("S")
            self.fixed.add(counter)
            self.write(f"for {counter}, {value} in enumerate({array}):")
            self.inner(n, **{counter: "I", value: "S"})
        elif kind == "zip" and array is not None:
            one, two = self.new("S"), self.new("S")
            self.write(f"for {one}, {two} in zip({array}, {self.array()}):")
            self.inner(n, **{one: "S", two: "S"})
        elif kind in ("rows", "list") and self.scope["M" if kind == "rows" else "L"]:
            row = self.new("A")
            self.write(f"for {row} in {self.pick('M' if kind == 'rows' else 'L')}:")
            # The list must not grow meanwhile.
            lists, self.scope["L"] = self.scope["L"], []
            self.inner(n, **{row: "A"})
            self.scope["L"] = lists
        else:
            counter = self.new("I")
            self.fixed.add(counter)
            self.write(f"for {counter} in range({self.rng.randrange(2, 5)}):")
            self.inner(n, **{counter: "I"})
        self.in_loop, self.loops = was, self.loops - 1

    def branch(self) -> None:
        self.write(f"if {self.condition()}:")
        self.inner(self.rng.randrange(1, 3))
        if self.chance(0.5):
            self.write("else:")
            self.inner(self.rng.randrange(1, 3))

    def leave(self) -> None:
        self.write(f"if {self.scalar(1)} > {self.number()} + 1.5:")
        self.write(f"    {self.rng.choice(['break', 'continue'])}")

    def early_return(self) -> None:
        result = {"S": lambda: self.scalar(1), "A": self.array, "P": self.pair, "": lambda: ""}[self.result]()
        if result is not None:
            self.write(f"if {self.scalar(1)} > {self.number()} + 2.5:")
            self.write(f"    return {result}")

    def summed(self) -> None:
        """A number that everything in scope counts in."""
        self.write("total = 0.0")
        weight = 0.9
        for name in self.scope["S"]:
            weight *= 0.93
            self.write(f"total += {weight:.4f} * {name}")
        for kind, each in (
            ("A", "for i in range(4):\n    total += ({w} - 0.1 * i) * {a}[i]"),
            ("H", "for i in range(2):\n    total += ({w} - 0.1 * i) * {a}[i]"),
            (
                "M",
                "for i in range(4):\n    for j in range(4):\n        total += ({w} - 0.1 * i + 0.03 * j) * {a}[i, j]",
            ),
            (
                "L",
                "for i in range(len({a})):\n    for j in range(4):\n        total += ({w} + 0.1 * i - 0.2 * j) * {a}[i][j]",
            ),
            ("N", "for i in range(len({a})):\n    total += ({w} - 0.1 * i) * {a}[i]"),
            ("P", "total += {w} * {a}[1] + {w} * {a}[0][1] - 0.3 * {a}[2][2]"),
        ):
            for name in self.scope[kind]:
                weight *= 0.93
                for line in each.format(a=name, w=f"{weight:.4f}").splitlines():
                    self.write(line)
        self.write("return total")


def _helper(rng: random.Random, number: int, helpers: list) -> tuple[tuple, list[str]]:
    kinds = rng.choice(HELPERS)
    result = rng.choice(RESULTS)
    name = f"g{number}"
    writer = Writer(rng, helpers)
    writer.result = result
    parameters = [writer.declare(kind, writer.new(kind)) for kind in kinds]
    n_defaults = int(kinds.endswith("S") and rng.random() < 0.3)
    declared = [
        f"{parameter}=0.7" if n_defaults and parameter is parameters[-1] else parameter for parameter in parameters
    ]
    recursive = rng.random() < 0.15 and not n_defaults
    own_kinds = kinds
    if recursive:
        declared.append("depth")
        own_kinds += "I"
    writer.block(rng.randrange(1, 5))
    body = writer.lines
    writer.lines = []
    results = {"S": lambda: writer.scalar(2), "A": writer.array, "P": writer.pair, "": lambda: ""}
    last = results[result]()
    if last is None:
        last, result = writer.scalar(1), "S"
        if any("return" in line for line in body):
            last, body = "0.25", []
    if recursive:
        arguments = [writer.value(kind) for kind in kinds]
        if None not in arguments:
            first = ["    if depth % 3 == 0:", f"        return {last_of(result, parameters, kinds) or last}"]
            if result in ("S", "") or last_of(result, parameters, kinds):
                call = f"{name}({', '.join([*arguments, 'depth % 3 - 1'])})"
                body = [*first, *body, f"    return {call}" if result else f"    {call}"]
                return (name, own_kinds, result, 0), [f"def {name}({', '.join(declared)}):", *body]
        declared.pop()
        own_kinds = kinds
    lines = [f"def {name}({', '.join(declared)}):", *body, f"    return {last}"]
    return (name, own_kinds, result, n_defaults), lines


def last_of(result: str, parameters: list[str], kinds: str) -> str | None:
    """What a recursion ends with: only parameters are in scope."""
    arrays = [name for name, kind in zip(parameters, kinds, strict=True) if kind == "A"]
    scalars = [name for name, kind in zip(parameters, kinds, strict=True) if kind == "S"]
    if result == "":
        return ""
    if result == "S":
        return scalars[0] if scalars else "0.5"
    if result == "A":
        return arrays[-1] if arrays else None
    return f"({arrays[0]}, 0.5, {arrays[-1]})" if arrays else None


def source(seed: int) -> str:
    """The text of a program."""
    rng = random.Random(seed)
    text: list[str] = []
    helpers: list[tuple] = []
    for number in range(rng.randrange(1, 5)):
        helper, lines = _helper(rng, number, helpers)
        helpers.append(helper)
        text += ["@compiled", *lines, ""]
    writer = Writer(rng, helpers)
    writer.result = "S"
    for kind, name in zip("ASAAK", "xywtk", strict=True):
        writer.declare(kind, name)
    writer.block(rng.randrange(5, 16))
    writer.summed()
    return "\n".join([*text, "@compiled", "def f(x, y, w, t, k):", *writer.lines, ""])


def arguments(seed: int) -> tuple:
    """Arguments of a program; every other work array overlaps the vector."""
    rng = np.random.default_rng(seed)
    memory = rng.uniform(-1.5, 1.5, 8)
    w = memory[1:5] if seed % 4 == 3 else memory[4:]
    return memory[:4], float(rng.uniform(-1.0, 1.0)), w, rng.uniform(-1.0, 1.0, 4), rng.integers(0, 9, 4)


def copied(args: tuple) -> tuple:
    """Copies that overlap as the originals do."""
    x, y, w, t, k = args
    memory = x.base.copy()
    start = (w.__array_interface__["data"][0] - x.__array_interface__["data"][0]) // 8
    return memory[:4], y, memory[start : start + 4], t.copy(), k.copy()


def compiled(seed: int):
    """The program compiled by Numba."""
    namespace = {"np": np, "math": math, "compiled": numba.njit}
    exec(compile(source(seed), f"<program {seed}>", "exec"), namespace)
    return namespace["f"]


def from_python(seed: int):
    """The program as Python code that records on a tape."""
    code = compile(source(seed), f"<program {seed}>", "exec")

    def f(x, y, w, t, k):
        like = next(z for z in (x, y, w) if isinstance(z, (tj.Array, tj.Variable)))
        namespace = {
            "np": _ActiveNumPy(like),
            "math": _MATH,
            "compiled": lambda f: f,
            "int": _plain_int,
            "float": _same,
        }
        exec(code, namespace)
        # One memory, as the compiled function sees it; where both stand, what is differentiated by counts, of two the last.
        memory = np.zeros(8, like=like)
        start = 1 if overlaps(seed) else 4
        parts = [(x, memory[:4]), (w, memory[start : start + 4])]
        for given, part in sorted(parts, key=lambda pair: isinstance(pair[0], tj.Array)):
            part[:] = given
        table = np.zeros(4, like=like)
        table[:] = t
        return namespace["f"](memory[:4], y, memory[start : start + 4], table, k.copy())

    return f


def overlaps(seed: int) -> bool:
    return seed % 4 == 3


def _plain_int(x) -> int:
    return int(tj.value(x))


def _same(x):
    return 1.0 * x if isinstance(x, int) else x


_MATH = SimpleNamespace(cos=np.cos, sqrt=np.sqrt, atan2=np.arctan2)


class _ActiveNumPy:
    """NumPy whose allocators make arrays that can hold active values."""

    def __init__(self, like) -> None:
        self._like = like

    def __getattr__(self, name):
        return getattr(np, name)

    def zeros(self, shape):
        return np.zeros(shape, like=self._like)

    empty = zeros

    def ones(self, shape):
        return np.ones(shape, like=self._like)

    def full(self, shape, number):
        return np.full(shape, number, like=self._like)

    def zeros_like(self, array):
        return self.zeros(np.shape(array))

    def copy(self, array):
        return array.copy()

    def array(self, items):
        made = self.zeros(len(items))
        for i, item in enumerate(items):
            made[i] = item
        return made
