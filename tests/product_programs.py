"""Random programs with matrix products: of inputs, parameters, data and results, strided and transposed, in loops of steps and outside."""

import numpy as np

N_INPUTS, N_PARAMETERS = 24, 20
EXTENTS = (1, 2, 3, 4, 6)


def function(seed):
    """The program of a seed: ``f(x, parameters)`` gives a vector."""

    def f(x, parameters):
        rng = np.random.default_rng(seed)
        pool = [_taken(x, rng), _taken(x, rng), _taken(parameters, rng), _data(rng)]
        for _ in range(rng.integers(2, 8)):
            pool.append(_STEPS[rng.integers(len(_STEPS))](pool, rng))
        shown = [pool[i] for i in rng.integers(4, len(pool), 2)]
        return np.concatenate([np.reshape(0.1 * pool[0], -1), *(np.reshape(array * 1.0, -1) for array in shown)])

    return f


def points(seed):
    """Inputs, parameters, and others."""
    rng = np.random.default_rng(seed)
    return [(rng.uniform(-1.0, 1.0, N_INPUTS), rng.uniform(-1.0, 1.0, N_PARAMETERS)) for _ in range(2)]


def _taken(x, rng):
    rows, columns = rng.choice(EXTENTS[:4], 2)
    start = rng.integers(0, x.size - rows * columns + 1)
    return np.reshape(x[start : start + rows * columns], (rows, columns))


def _data(rng):
    array = rng.standard_normal(tuple(rng.choice(EXTENTS, 2)))
    array.setflags(write=False)
    return [array, array.T, array[::-1], np.asfortranarray(array)][rng.integers(4)]


def _any(pool, rng):
    return pool[rng.integers(len(pool))]


def _multiplied(a, b):
    """The product of as much of two matrices as fits."""
    k = min(a.shape[1], b.shape[0])
    return a[:, :k] @ b[:k]


def _product(pool, rng):
    return np.tanh(_multiplied(_any(pool, rng), _any(pool, rng)))


def _bare_product(pool, rng):
    return (
        0.3 * _multiplied(_any(pool, rng), _data(rng)) if rng.integers(2) else _multiplied(_data(rng), _any(pool, rng))
    )


def _gram(pool, rng):
    a = _any(pool, rng)
    return np.sin(a.T @ a) if rng.integers(2) else np.sin(a @ a.T)


def _with_vector(pool, rng):
    a, b = _any(pool, rng), _any(pool, rng)
    k = min(a.shape[1], b.shape[0])
    if rng.integers(2):
        return np.reshape(a[:, :k] @ b[:k, 0], (-1, 1)) * 0.5
    return np.reshape(a[0, :k] @ b[:k], (1, -1)) * 0.5


def _scalar_product(pool, rng):
    a, b = _any(pool, rng), _any(pool, rng)
    k = min(a.shape[1], b.shape[1])
    return np.reshape(a[-1, :k] @ b[0, :k], (1, 1)) + a


def _rearranged(pool, rng):
    a = _any(pool, rng)
    match rng.integers(6):
        case 0:
            return a.T
        case 1:
            return a[::-1, ::2]
        case 2:
            return a[rng.integers(0, a.shape[0], 3)]
        case 3:
            return np.concatenate([a, 0.5 * a])
        case 4:
            return np.broadcast_to(a[:, :1], (a.shape[0], 3))
    return np.reshape(a, (a.shape[1], a.shape[0]))


def _elementwise(pool, rng):
    a, b = _any(pool, rng), _any(pool, rng)
    rows, columns = min(a.shape[0], b.shape[0]), min(a.shape[1], b.shape[1])
    return np.exp(-(a[:rows, :columns] ** 2)) * b[:rows, :columns] + 0.1


def _steps(pool, rng):
    """A loop in time, with a product or two in each step."""
    state, matrix, other = _any(pool, rng), _any(pool, rng), _any(pool, rng)
    n = state.shape[0]
    matrix = np.tile(matrix, (n, n))[:n, :n]
    twice, uses_scalars = rng.integers(2), rng.integers(2)
    for step in range(rng.integers(3, 30)):
        state = np.tanh(matrix @ state) * 0.9 + 0.01 * step
        if twice:
            state = state + 0.1 * np.sin(state @ np.tile(other, (6, 6))[: state.shape[1], : state.shape[1]])
        if uses_scalars:
            first = state[0, 0] * 0.5 + state[-1, -1]
            state = state * np.cos(first)
    return state


def _from_scalars(pool, rng):
    """A matrix of numbers that loops over elements have computed."""
    a = _any(pool, rng)
    rows = [[a[i, j] * 0.5 + a[i, 0] * a[0, j] for j in range(a.shape[1])] for i in range(a.shape[0])]
    return np.array(rows)


_STEPS = (
    _product,
    _product,
    _bare_product,
    _gram,
    _with_vector,
    _scalar_product,
    _rearranged,
    _elementwise,
    _steps,
    _from_scalars,
)
