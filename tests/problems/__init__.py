"""Problems with hand-written answers, shared by the tests and the benchmarks.

One module a problem. Each offers

- ``make(size, rng)``: the arguments, a tuple whose first entry is what we differentiate by;
- ``plain(*args)``: ordinary Python or NumPy code, which runs on floats, on ndarrays and on active values
  (``plain_array`` and ``plain_scalar`` where there are both forms; `xp` is where ``exp`` and the like come
  from);
- ``primal(*args)``: the same value, written by hand for Numba;
- ``gradient(*args)``: value and gradient, reverse mode by hand, which stores only what it cannot recompute
  cheaply: the practical limit;
- ``n_operations(args)``: how many arithmetic operations one primal takes, the unit of all per-operation
  figures.

The package `compiled` is a table of functions written for Numba, for native recording.

Nothing is compiled at import. No function uses ``fastmath``.
"""
