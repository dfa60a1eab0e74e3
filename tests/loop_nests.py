"""Random loop nests: loops of varying trips, carried values, arrays read and written at shifted, reversed and gathered indices, branches on data.

A nest is a tree of statements that is run on plain numbers or on active values. Integers choose operands, indices and trips modulo what there is,
so every tree is a program and hypothesis can shrink it. Values stay of moderate size.
"""

import math

import hypothesis.strategies as st
import numpy as np

LENGTHS = (12, 40, 150)  # of each array
BUDGET = 2500  # operations after which a program ends

_PERMUTATIONS = {n: [np.random.default_rng(seed).permutation(n).tolist() for seed in range(3)] for n in LENGTHS}
_REPEATED = {n: [np.random.default_rng(seed).integers(0, n, n).tolist() for seed in range(3)] for n in LENGTHS}


def _same(name):
    """A function for numbers and active values."""
    return getattr(np, name)


_UNARY = [
    lambda x: _same("sin")(x),
    lambda x: _same("exp")(-x * x),
    lambda x: _same("sqrt")(1.0 + x * x),
    lambda x: _same("tanh")(x),
    lambda x: _same("log1p")(x * x),
    lambda x: 0.5 * x * x / (1.0 + x * x),
    lambda x: abs(x),
    lambda x: -0.75 * x,
    lambda x: 1.0 / (2.0 + x * x),
    lambda x: _same("arctan")(x),
]
_BINARY = [
    lambda x, y: 0.5 * (x + y),
    lambda x, y: 0.5 * x - 0.25 * y,
    lambda x, y: x * y / (1.0 + x * x + y * y),
    lambda x, y: np.maximum(x, 0.5 * y),
    lambda x, y: np.minimum(x, 0.25 + y),
    lambda x, y: x / (2.0 + np.sin(y)),
    lambda x, y: np.where(x < y, 0.5 * x, 0.75 * y),
    lambda x, y: np.hypot(x, 0.5 * y) - 0.25,
    lambda x, y: x + 0.125 * y,
    lambda x, y: 0.5 * (x * 0.5 + x),
]


class _Spent(Exception):
    """The program has run for long enough."""


class _Machine:
    """What a program works on: three scalars, two arrays, and the counters of the loops around."""

    def __init__(self, x):
        self.length = len(x) - 3
        self.scalars = [x[0], x[1], x[2]]
        self.arrays = [[x[3 + i] for i in range(self.length)], [0.25 * (i % 4) for i in range(self.length)]]
        self.counters = []
        self.left = BUDGET

    def index(self, rule):
        """Where an array is read or written: fixed, shifted, reversed, strided, gathered, or by two counters."""
        n = self.length
        if not self.counters:
            return rule % n
        i = self.counters[-1]
        j = self.counters[-2] if len(self.counters) > 1 else 0
        shift = rule // 8
        at = [
            i + shift,
            n - 1 - i - shift,
            2 * i + shift,
            _PERMUTATIONS[n][shift % 3][i % n],
            _REPEATED[n][shift % 3][i % n],
            i + j + shift,
            j + shift,
            shift,
        ][rule % 8]
        return at % n

    def operand(self, rule):
        kind, rest = rule % 6, rule // 6
        if kind < 2:
            return self.scalars[rest % 3]
        if kind < 4:
            return self.arrays[rest % 2][self.index(rest // 2)]
        if kind == 4:
            return 0.25 + 0.5 * (rest % 3)
        return 0.125 * (self.counters[-1] % 5) if self.counters else 0.5

    def compute(self, rule, a, b):
        self.left -= 1
        if self.left < 0:
            raise _Spent
        x, y = self.operand(a), self.operand(b)
        if rule % 2:
            return _BINARY[(rule // 2) % len(_BINARY)](x, y)
        return _UNARY[(rule // 2) % len(_UNARY)](x + 0.5 * y if rule % 4 else x)

    def trips(self, rule):
        i = self.counters[-1] if self.counters else 0
        own = rule // 7
        n = self.length
        few = [3, 1, 4, 1, 5, 2][(i + own) % 6]
        return [2 + own % 12, 1 + i % 9, max(1, n - i), 1 + (i * i) % 4, few, n - own % 5, n][rule % 7]

    def run(self, body):
        for statement in body:
            kind = statement[0]
            if kind == "set":
                _, where, rule, a, b = statement
                self.scalars[where % 3] = self.compute(rule, a, b)
            elif kind == "store":
                _, where, rule, a, b = statement
                at = self.index(where // 2)
                self.arrays[where % 2][at] = self.compute(rule, a, b)
            elif kind == "add":
                _, where, rule, a, b = statement
                at = self.index(where // 2)
                self.arrays[where % 2][at] = 0.75 * self.arrays[where % 2][at] + 0.5 * self.compute(rule, a, b)
            elif kind == "sum":
                _, where, first, stop, rule = statement
                total = self.scalars[where % 3] * 0.5
                for i in range(first % 4, self.length - stop % 4):
                    self.counters.append(i)
                    total = total + 0.1 * self.arrays[where % 2][self.index(rule)]
                    self.counters.pop()
                    self.left -= 2
                self.scalars[where % 3] = total
            elif kind == "branch":
                _, a, b, chosen, otherwise = statement
                x, y = self.operand(a), self.operand(b)
                self.run(chosen if x < y + 0.3 else otherwise)
            else:
                _, rule, inner = statement
                for i in range(self.trips(rule)):
                    self.counters.append(i)
                    self.run(inner)
                    self.counters.pop()


def function(program, m=0):
    """The function of 3 scalars and an array, in one vector, that a program computes: a number, or `m` numbers."""

    def f(x):
        machine = _Machine(x)
        try:
            machine.run(program)
        except _Spent:
            pass
        values = machine.scalars + machine.arrays[0] + machine.arrays[1]
        if m:
            return [values[(5 * i) % len(values)] * 1.0 for i in range(m)]
        total = 0.0
        for i, value in enumerate(values):
            total = total + math.cos(i) * value
        return total

    return f


_NUMBER = st.integers(0, 2**12)
_SIMPLE = st.tuples(st.sampled_from(["set", "store", "add"]), _NUMBER, _NUMBER, _NUMBER, _NUMBER) | st.tuples(
    st.just("sum"), _NUMBER, _NUMBER, _NUMBER, _NUMBER
)


def _bodies(statement, size):
    return st.lists(statement, min_size=1, max_size=size)


def _loops(statement, size=4):
    return st.tuples(st.just("loop"), _NUMBER, _bodies(statement, size))


def _branches(statement):
    return st.tuples(st.just("branch"), _NUMBER, _NUMBER, _bodies(statement, 2), _bodies(statement, 2))


_INNER = _SIMPLE | _loops(_SIMPLE | _branches(_SIMPLE)) | _branches(_SIMPLE)
_MIDDLE = _SIMPLE | _loops(_INNER)


def programs():
    """Strategy: nests up to three loops deep."""
    return _bodies(_loops(_MIDDLE) | _SIMPLE, 4)


def random_program(rng, depth=0):
    """A program without hypothesis, for many of them."""
    body = []
    for _ in range(rng.integers(1, 5)):
        numbers = [int(n) for n in rng.integers(0, 2**12, 4)]
        choice = rng.random()
        if depth < 3 and choice < (0.8 if depth == 0 else 0.4):
            body.append(("loop", numbers[0], random_program(rng, depth + 1)))
        elif choice > 0.93 and depth:
            body.append(("branch", numbers[0], numbers[1], random_program(rng, 3), random_program(rng, 3)))
        elif choice > 0.88:
            body.append(("sum", *numbers))
        else:
            body.append((["set", "store", "add"][rng.integers(3)], *numbers))
    return body


def stencil(rules, n, m=0):
    """Time stepping on a grid, as a function of 3 scalars and an array of `n`: integers choose what a step reads of the step before.

    Differences to neighbours, fluxes handed on from point to point, coefficients that differ from place to place, a sum on the side, old states.
    """

    def f(x):
        u = [x[3 + i] for i in range(n)]
        slopes = [0.5 + 0.25 * x[3 + (7 * i) % n] for i in range(n)]
        states, total, last = [], x[0], x[1]
        for step in range(4 + rules[0] % 5):
            a, b, c, d, e = rules[1:6]
            low, high = 1 + a % 3, 1 + b % 4
            new = list(u)
            flux = [0.0, x[1], last][c % 3]
            before = flux
            points = range(low, n - high - (step if rules[0] % 3 == 2 else 0))
            for i in points if d % 3 else reversed(points):
                v = [u[i], 0.5 * u[i + high] + 0.25 * u[i - low], u[i - 1] * u[i + 1], u[i - low] - 0.5 * u[i]][e % 4]
                if d % 2:
                    v = v * (slopes[i] if c % 2 else x[2])
                if a % 4 == 1:
                    new[i] = u[i] + 0.1 * (v - flux)
                elif a % 4 == 2:
                    new[i] = u[i] + 0.1 * (v - 0.5 * flux * u[i + 1] + 0.25 * (before if b % 2 else u[i]))
                elif a % 4 == 3:
                    new[i] = 0.5 * v + 0.25 * u[(i + 2) % n]
                else:
                    new[i] = 0.5 * u[i] + 0.25 * (new if b % 5 == 0 else u)[i - 1] * v
                flux, before = v, flux
                if e % 3 == 0:
                    total = total + 0.1 * v
            if d % 5 == 0:
                new[n - 1] = new[n - 1] - 0.125 * flux
            last = flux
            states.append(u)
            u = new
        values = [*u, *states[len(states) // 2 :: 2][0], total, last]
        if m:
            return [values[(5 * i) % len(values)] * 1.0 for i in range(m)]
        for i, value in enumerate(values):
            total = total + math.cos(i) * value
        return total

    return f


def stencils():
    """Strategy: the rules of a stencil."""
    return st.lists(_NUMBER, min_size=6, max_size=6)
