"""Random programs recorded in compiled code: the value of the plain function, and the gradient of the same text recorded from Python.

``python tests/test_native_random_programs.py 2000`` tries programs 0 to 1999, and prints the text of those that fail;
``python tests/test_native_random_programs.py 500 2000`` starts at 500.
"""

import sys
import traceback
import warnings

import native_programs as programs
import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import tapejit as tj

# Two ways to one number, in units of the largest derivative.
RTOL = 1e-12
ARGNUMS = [(0, 1, 2, 3), (0, 1), (0,), (1,), (0, 1, 2), (2, 3)]


def close(actual, expected, factor=1.0):
    """Equal up to rounding, relative to the largest of all entries."""
    scale = max(1.0, max(np.abs(part).max() for part in expected))
    for one, two in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=0.0, atol=factor * RTOL * scale)


def by_memory(gradient, argnums, seed):
    """A gradient with the adjoints of `x` and `w` added where they overlap."""
    parts = dict(zip(argnums, gradient, strict=True))
    memory = np.zeros(8)
    start = 1 if programs.overlaps(seed) else 4
    memory[:4] += parts.pop(0, 0.0)
    memory[start : start + 4] += parts.pop(2, 0.0)
    return [memory, *parts.values()]


def check(seed):
    """All that a program has to fulfil."""
    f, by_python = programs.compiled(seed), programs.from_python(seed)
    args = programs.arguments(seed)
    # Where arguments overlap, both count as one: the derivative by one of them alone has two meanings.
    argnums = ARGNUMS[0] if programs.overlaps(seed) else ARGNUMS[seed % len(ARGNUMS)]
    plain_args, active_args = programs.copied(args), programs.copied(args)
    try:
        plain = f(*plain_args)
    except numba.TypingError as error:  # arrays of two layouts in one list, say
        pytest.skip(f"not a program for Numba: {error}")
    value, gradient = tj.value_and_grad(f, argnums)(*active_args)
    # The value and what is left in the arguments: to the last bit.
    assert np.float64(value).tobytes() == np.float64(plain).tobytes(), f"value {value!r}, not {plain!r}"
    assert_array_equal(
        np.concatenate(list(map(np.ravel, active_args))), np.concatenate(list(map(np.ravel, plain_args)))
    )
    # Recorded from Python.
    _, expected = tj.value_and_grad(by_python, argnums)(*programs.copied(args))
    close(by_memory(gradient, argnums, seed), by_memory(expected, argnums, seed))
    # Tangent against adjoint.
    rng = np.random.default_rng(seed)
    x_dot = tuple(rng.standard_normal(np.shape(part)) if np.ndim(part) else rng.standard_normal() for part in gradient)
    tangent = tj.jvp(f, argnums)(*programs.copied(args), x_dot)[1]
    terms = [np.vdot(one, two) for one, two in zip(gradient, x_dot, strict=True)]
    close([tangent], [np.sum(terms)], factor=1.0 + np.sum(np.abs(terms)))
    if argnums == ARGNUMS[0] and not programs.overlaps(seed):
        check_replays(f, args, argnums, seed)


def check_replays(f, args, argnums, seed):
    """A replay where the program was recorded, and where decisions may be others."""
    recording = tj.record(f, *programs.copied(args), argnums=argnums)
    elsewhere = programs.arguments(seed + 10**6)
    for point in (args, elsewhere):
        given = [point[i] if i in argnums else args[i] for i in range(5)]
        value, gradient = tj.value_and_grad(f, argnums)(*apart(given))
        replayed, replayed_gradient = recording.value_and_grad(tuple(apart(given)[i] for i in argnums))
        close([replayed], [value])
        close(replayed_gradient, gradient)


def apart(args):
    """Copies that do not overlap: recordings see each argument by itself."""
    return [np.copy(x) if np.ndim(x) else x for x in args]


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 24))])
def test_programs_agree_with_the_plain_function_and_with_a_recording_from_python(seed):
    check(seed)


def fuzz(start, stop):
    """Try many programs; print those that fail."""
    warnings.simplefilter("ignore")
    n_failed = n_skipped = 0
    for seed in range(start, stop):
        try:
            check(seed)
        except pytest.skip.Exception:
            n_skipped += 1
        except Exception as error:
            n_failed += 1
            text = str(error).strip().splitlines() or [""]
            where = traceback.extract_tb(error.__traceback__)
            line = next(frame.lineno for frame in where if frame.name == "check")
            print(f"{seed}: line {line}: {type(error).__name__}: {' '.join(text)[:300]}", flush=True)
    print(f"{n_failed} of {stop - start} programs failed, {n_skipped} are none for Numba")


if __name__ == "__main__":
    fuzz(*([0, int(sys.argv[1])] if len(sys.argv) == 2 else map(int, sys.argv[1:3])))
