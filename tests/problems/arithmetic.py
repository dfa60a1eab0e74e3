"""Synthetic scalar programs of any length: a contraction of two numbers, summed up.

- ``plain``: + - * / in equal parts, 8 operations an iteration.
- ``plain_shuffled``: the same parts in an order that does not repeat within 4096 operations, so that no
  branch predictor learns a short loop by heart.
- ``plain_transcendental``: two such iterations and a sine and an exponential, 20 operations, one tenth
  transcendental.

The maps contract and their results are summed, so that neither the values nor the adjoints grow or vanish
however long the program is: 1e7 operations stay finite, and no sweep gets its adjoints for nothing because
they are 0.
"""

import numba
import numpy as np
from numba.extending import register_jitable

ITERATION = 8
TRANSCENDENTAL_ITERATION = 20
N_SHUFFLED = 4096
ADD, SUB, MUL, DIV, SUM_UP, SUM_DOWN = range(6)


def make(size, rng):
    """Four inputs and a number of operations, rounded up to whole iterations by the programs."""
    return np.array([0.5, 1.5, 1.2, 0.3]) * rng.uniform(0.95, 1.05, 4), size


@register_jitable
def iterate(a, b, c, d, x, y, total):
    """Eight operations, two of each kind: x tends to a fixed point of c / (a x + b) - d, and y follows."""
    v = x * a + b
    x = c / v - d
    q = x * y / v
    return x, b - q, total + q


def plain(inputs, n_operations):
    """A program of + - * / in equal parts."""
    a, b, c, d = (inputs[i] for i in range(4))
    x, y, total = d, c, a
    for _ in range(-(-n_operations // ITERATION)):
        x, y, total = iterate(a, b, c, d, x, y, total)
    return total


def plain_transcendental(inputs, n_operations, xp=np):
    """The same with one tenth exp and sin."""
    a, b, c, d = (inputs[i] for i in range(4))
    x, y, total = d, c, a
    for _ in range(-(-n_operations // TRANSCENDENTAL_ITERATION)):
        x, y, total = iterate(a, b, c, d, x, y, total)
        x, y, total = iterate(a, b, c, d, x, y, total)
        total = total - xp.exp(xp.sin(x)) / y
    return total


def shuffled_order(seed=0):
    """Codes of 4096 operations: shuffled blocks of two of each kind."""
    block = np.array([DIV, DIV, MUL, MUL, ADD, SUB, SUM_UP, SUM_DOWN])
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(block) for _ in range(N_SHUFFLED // block.size)]).tolist()


def plain_shuffled(inputs, n_operations):
    """A program of + - * / in equal parts, in shuffled order."""
    a, b, c, d = (inputs[i] for i in range(4))
    lift = d - c  # negative, so that x - lift, like every other step, keeps x positive and away from 0
    order = shuffled_order()
    x, total = c, a
    for k in range(n_operations - 1):
        code = order[k % N_SHUFFLED]
        if code == ADD:
            x = x + b
        elif code == SUB:
            x = x - lift
        elif code == MUL:
            x = x * a
        elif code == DIV:
            x = c / x
        elif code == SUM_UP:
            total = total + x
        else:
            total = total - x
    return total


@numba.njit
def primal(inputs, n_operations):
    """A program of + - * / in equal parts."""
    a, b, c, d = inputs[0], inputs[1], inputs[2], inputs[3]
    x, y, total = d, c, a
    for _ in range(-(-n_operations // ITERATION)):
        x, y, total = iterate(a, b, c, d, x, y, total)
    return total


@numba.njit
def primal_transcendental(inputs, n_operations):
    """The same with one tenth exp and sin."""
    a, b, c, d = inputs[0], inputs[1], inputs[2], inputs[3]
    x, y, total = d, c, a
    for _ in range(-(-n_operations // TRANSCENDENTAL_ITERATION)):
        x, y, total = iterate(a, b, c, d, x, y, total)
        x, y, total = iterate(a, b, c, d, x, y, total)
        total -= np.exp(np.sin(x)) / y
    return total


@numba.njit
def pull_back_iterate(a, b, c, d, x, y, x_bar, y_bar, inputs_bar):
    """Adjoints of x and y before an iteration from those after it; the adjoint of the total is 1."""
    v = x * a + b
    w = c / v
    x_next = w - d
    q_bar = 1.0 - y_bar
    product_bar = q_bar / v
    w_bar = x_bar + product_bar * y
    v_bar = -(w * w_bar + x_next * y * product_bar) / v
    inputs_bar[0] += v_bar * x
    inputs_bar[1] += v_bar + y_bar
    inputs_bar[2] += w_bar / v
    inputs_bar[3] -= w_bar
    return v_bar * a, product_bar * x_next


@numba.njit
def gradient(inputs, n_operations):
    """Value and gradient; stores the two numbers that an iteration starts from."""
    a, b, c, d = inputs[0], inputs[1], inputs[2], inputs[3]
    n_iterations = -(-n_operations // ITERATION)
    states = np.empty((n_iterations, 2))
    x, y, total = d, c, a
    for k in range(n_iterations):
        states[k, 0], states[k, 1] = x, y
        x, y, total = iterate(a, b, c, d, x, y, total)

    inputs_bar = np.zeros(4)
    x_bar, y_bar = 0.0, 0.0
    for k in range(n_iterations - 1, -1, -1):
        x_bar, y_bar = pull_back_iterate(a, b, c, d, states[k, 0], states[k, 1], x_bar, y_bar, inputs_bar)
    inputs_bar[0] += 1.0
    inputs_bar[2] += y_bar
    inputs_bar[3] += x_bar
    return total, inputs_bar


@numba.njit
def gradient_transcendental(inputs, n_operations):
    """Value and gradient; stores the two numbers that an iteration starts from."""
    a, b, c, d = inputs[0], inputs[1], inputs[2], inputs[3]
    n_iterations = -(-n_operations // TRANSCENDENTAL_ITERATION)
    states = np.empty((n_iterations, 3, 2))  # before either half, and before the sine
    x, y, total = d, c, a
    for k in range(n_iterations):
        states[k, 0, 0], states[k, 0, 1] = x, y
        x, y, total = iterate(a, b, c, d, x, y, total)
        states[k, 1, 0], states[k, 1, 1] = x, y
        x, y, total = iterate(a, b, c, d, x, y, total)
        states[k, 2, 0], states[k, 2, 1] = x, y
        total -= np.exp(np.sin(x)) / y

    inputs_bar = np.zeros(4)
    x_bar, y_bar = 0.0, 0.0
    for k in range(n_iterations - 1, -1, -1):
        x, y = states[k, 2, 0], states[k, 2, 1]
        quotient = np.exp(np.sin(x)) / y
        x_bar -= np.cos(x) * quotient
        y_bar += quotient / y
        for half in (1, 0):
            x, y = states[k, half, 0], states[k, half, 1]
            x_bar, y_bar = pull_back_iterate(a, b, c, d, x, y, x_bar, y_bar, inputs_bar)
    inputs_bar[0] += 1.0
    inputs_bar[2] += y_bar
    inputs_bar[3] += x_bar
    return total, inputs_bar


def n_operations(args, iteration=ITERATION):
    """Arithmetic operations of one primal: whole iterations (of 1 operation when shuffled)."""
    return -(-args[1] // iteration) * iteration
