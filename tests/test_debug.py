"""`tj.debug`: a primitive evaluated outside its domain raises, and the error names operation, operand, slot and source line."""

import inspect
import threading

import numpy as np
import pytest
import scipy.special

import tapejit as tj
from tapejit.errors import DomainError, TapejitError

CASES = {
    "log": (np.log, -1.0, "log(x) needs x > 0, got x = -1.0"),
    "log of zero": (np.log, 0.0, "log(x) needs x > 0, got x = 0.0"),
    "log2": (np.log2, -1.0, "log2(x) needs x > 0"),
    "log1p": (np.log1p, -1.25, "log1p(x) needs x > -1, got x = -1.25"),
    "sqrt": (np.sqrt, -4.0, "sqrt(x) needs x >= 0, got x = -4.0"),
    "half power": (lambda x: x**0.5, -4.0, "sqrt(x) needs x >= 0, got x = -4.0"),
    "arcsin": (np.arcsin, 1.5, "arcsin(x) needs x >= -1 and x <= 1, got x = 1.5"),
    "arccosh": (np.arccosh, 0.5, "arccosh(x) needs x >= 1, got x = 0.5"),
    "arctanh": (np.arctanh, 1.0, "arctanh(x) needs x > -1 and x < 1, got x = 1.0"),
    "logit": (scipy.special.logit, 2.0, "logit(x) needs x > 0 and x < 1, got x = 2.0"),
    "power": (lambda x: x**0.3, -2.0, "power_constant of x = -2.0, y = 0.3 is NaN"),
    "active power": (lambda x: x ** (x * 0.15), -2.0, "power of x = -2.0, y = -0.3 is NaN"),
    "zero by zero": (lambda x: (x - x) / (x - x), -2.0, "div of x = 0.0, y = 0.0 is NaN"),
    "inf minus inf": (lambda x: x - x, np.inf, "sub of x = inf, y = inf is NaN"),
    "sin of inf": (np.sin, np.inf, "sin of x = inf is NaN"),
    "remainder by zero": (lambda x: x % (x - x), 3.0, "remainder of x = 3.0, y = 0.0 is NaN"),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_scalars(case):
    f, x, message = case
    with tj.debug(), np.errstate(all="ignore"), pytest.raises(DomainError) as error:
        tj.grad(f)(x)
    assert str(error.value).startswith(message)
    assert "in slot " in str(error.value)


def test_one_element_of_an_array(case):
    f, x, message = case
    numbers = np.full(7, 0.5)
    if "arccosh" in message:
        numbers += 1.0
    numbers[4] = x
    with tj.debug(), np.errstate(all="ignore"), pytest.raises(DomainError) as error:
        tj.grad(lambda x: np.sum(f(x)[4]))(numbers)
    found = str(error.value)
    assert (
        found.startswith(message)
        or ("0.0, y = 0.0" in message and "div of x = 0.0" in found)
        or "y = 0.0 is NaN" in found
    )


def test_without_debug_the_value_is_numpy_s(case):
    f, x, _ = case
    with np.errstate(all="ignore"):
        assert not np.isfinite(tj.value_and_grad(f)(x)[0])


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    return next(first + i for i, line in enumerate(lines) if text in line)


def model_in_scalars(x):
    y = x * 2.0
    z = np.exp(x)
    return y + np.log(y - 10.0) + z


def model_in_arrays(x):
    y = x * 2.0
    z = np.sum(np.log(y - 10.0))
    return z + y[0]


@pytest.mark.parametrize(("model", "x"), [(model_in_scalars, 1.0), (model_in_arrays, np.array([7.0, 1.0, 8.0]))])
def test_the_error_names_the_line_and_the_function(model, x):
    with tj.debug(), pytest.raises(DomainError) as error:
        tj.grad(model)(x)
    place = f"(test_debug.py:{line_of(model, 'np.log(')}, in {model.__name__})"
    assert str(error.value).startswith("log(x) needs x > 0, got x = -8.0 in slot ")
    assert str(error.value).endswith(place)


def test_the_slot_is_the_one_that_the_result_would_have():
    with tj.debug(), tj.Tape() as tape:
        x = tape.input(1.0)
        y = x - 3.0
        n_slots = tape.n_slots
        with pytest.raises(DomainError, match=f"in slot {n_slots} "):
            np.log(y)
        assert tape.n_slots == n_slots
        z = y * y  # the tape works on
    z.backward()
    assert x.grad == -4.0


def test_python_operators_are_checked_too():
    with tj.debug(), tj.Tape() as tape:
        x = tape.input(0.0)
        for compute in (lambda: x / x, lambda: (x - 1.0) ** 0.5, lambda: x % 0.0, lambda: (x - 1.0) ** x.__add__(0.5)):
            with pytest.raises(DomainError):
                compute()


def test_infinite_values_are_no_domain_errors():
    with tj.debug(), np.errstate(all="ignore"):
        assert tj.value_and_grad(lambda x: 1.0 / x)(0.0)[0] == np.inf
        assert tj.value_and_grad(lambda x: np.exp(x))(1e4)[0] == np.inf


def test_a_nan_that_was_there_before_is_not_blamed_on_who_reads_it():
    with tj.debug():
        value, _ = tj.value_and_grad(lambda x: np.sum(np.log(x * 2.0) + 1.0))(np.array([np.nan, 1.0]))
        assert np.isnan(value)
        assert np.isnan(tj.value_and_grad(lambda x: np.log(x * 2.0))(np.nan)[0])


def test_debug_changes_no_result(rng):
    def f(x):
        return np.sum(np.log(x) * np.sqrt(x)) + x[0] ** 2 / x[1]

    x = rng.uniform(0.5, 1.5, 5)
    value, gradient = tj.value_and_grad(f)(x)
    with tj.debug():
        debugged, debugged_gradient = tj.value_and_grad(f)(x)
    assert value == debugged
    assert (gradient == debugged_gradient).all()


def test_debug_ends_with_its_block_also_after_an_error():
    with pytest.raises(DomainError), tj.debug():
        tj.grad(np.log)(-1.0)
    with np.errstate(all="ignore"):
        assert np.isnan(tj.value_and_grad(np.log)(-1.0)[0])


def test_debug_nests():
    with tj.debug():
        with tj.debug():
            pass
        with pytest.raises(DomainError):
            tj.grad(np.log)(-1.0)


def test_debug_holds_for_tapes_opened_in_it_and_for_nested_transforms():
    with tj.debug(), pytest.raises(DomainError, match=r"log\(x\) needs x > 0"):
        tj.grad(lambda x: tj.grad(lambda y: np.log(y - 5.0) * x)(x))(1.0)
    with tj.debug(), pytest.raises(DomainError, match=r"sqrt\(x\) needs x >= 0"):
        tj.record(lambda x: np.sqrt(x), -1.0)


def test_debug_is_of_one_thread():
    seen = []

    def work():
        with np.errstate(all="ignore"):
            seen.append(tj.value_and_grad(np.log)(-1.0)[0])

    with tj.debug():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert np.isnan(seen).all() and len(seen) == 1


def test_the_error_is_an_arithmetic_error():
    assert issubclass(DomainError, ArithmeticError) and issubclass(DomainError, TapejitError)
