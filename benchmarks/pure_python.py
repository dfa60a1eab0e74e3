"""The classical object graph in pure Python: the baseline of the scalar benchmarks, in its two usual styles.

`Value` is what tutorials on reverse mode teach: an object an operation, with the set of its parents and a
closure that pushes its adjoint back. `LeanValue` keeps (parents, partials) tuples instead: no closures and no
reference cycles, so much less for the garbage collector to do. Both sort the graph topologically; neither
recurses, so that long chains work.
"""

import math


class Value:
    """A number that remembers what it was computed from, with closures.

    Parameters
    ----------
    data : float
        Primal value.
    parents : tuple of Value
        Operands.
    """

    __array_ufunc__ = None  # so that np.float64 * Value comes to __rmul__

    def __init__(self, data, parents=()):
        self.data = data
        self.grad = 0.0
        self.parents = set(parents)
        self.push_back = lambda: None

    def __repr__(self):
        return f"{type(self).__name__}(data={self.data}, grad={self.grad})"

    def __add__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        result = Value(self.data + other.data, (self, other))

        def push_back():
            self.grad += result.grad
            other.grad += result.grad

        result.push_back = push_back
        return result

    def __sub__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        result = Value(self.data - other.data, (self, other))

        def push_back():
            self.grad += result.grad
            other.grad -= result.grad

        result.push_back = push_back
        return result

    def __mul__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        result = Value(self.data * other.data, (self, other))

        def push_back():
            self.grad += other.data * result.grad
            other.grad += self.data * result.grad

        result.push_back = push_back
        return result

    def __truediv__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        result = Value(self.data / other.data, (self, other))

        def push_back():
            self.grad += result.grad / other.data
            other.grad -= result.data / other.data * result.grad

        result.push_back = push_back
        return result

    def __pow__(self, exponent):
        return self.unary(self.data**exponent, exponent * self.data ** (exponent - 1))

    def __neg__(self):
        return self.unary(-self.data, -1.0)

    def __radd__(self, other):
        return type(self)(other) + self

    def __rsub__(self, other):
        return type(self)(other) - self

    def __rmul__(self, other):
        return type(self)(other) * self

    def __rtruediv__(self, other):
        return type(self)(other) / self

    def __lt__(self, other):
        return self.data < (other.data if isinstance(other, Value) else other)

    def __gt__(self, other):
        return self.data > (other.data if isinstance(other, Value) else other)

    def unary(self, data, partial):
        """Result of a function of one operand."""
        result = Value(data, (self,))

        def push_back():
            self.grad += partial * result.grad

        result.push_back = push_back
        return result

    def backward(self):
        """Add the derivative of this value by every value it depends on to their `grad`."""
        self.grad = 1.0
        for value in reversed(topological_order(self)):
            value.push_back()


class LeanValue(Value):
    """A number that remembers what it was computed from, with (parents, partials) tuples."""

    def __init__(self, data, parents=(), partials=()):
        self.data = data
        self.grad = 0.0
        self.parents = parents
        self.partials = partials

    def __add__(self, other):
        other = other if isinstance(other, LeanValue) else LeanValue(other)
        return LeanValue(self.data + other.data, (self, other), (1.0, 1.0))

    def __sub__(self, other):
        other = other if isinstance(other, LeanValue) else LeanValue(other)
        return LeanValue(self.data - other.data, (self, other), (1.0, -1.0))

    def __mul__(self, other):
        other = other if isinstance(other, LeanValue) else LeanValue(other)
        return LeanValue(self.data * other.data, (self, other), (other.data, self.data))

    def __truediv__(self, other):
        other = other if isinstance(other, LeanValue) else LeanValue(other)
        data = self.data / other.data
        return LeanValue(data, (self, other), (1.0 / other.data, -data / other.data))

    def unary(self, data, partial):
        """Result of a function of one operand."""
        return LeanValue(data, (self,), (partial,))

    def backward(self):
        """Add the derivative of this value by every value it depends on to their `grad`."""
        self.grad = 1.0
        for value in reversed(topological_order(self)):
            for parent, partial in zip(value.parents, value.partials, strict=True):
                parent.grad += partial * value.grad


def topological_order(root):
    """Everything `root` depends on, operands before results."""
    order, visited, stack = [], {root}, [(root, iter(root.parents))]
    while stack:
        value, parents = stack[-1]
        for parent in parents:
            if parent not in visited:
                visited.add(parent)
                stack.append((parent, iter(parent.parents)))
                break
        else:
            order.append(value)
            stack.pop()
    return order


def exp(x):
    data = math.exp(x.data)
    return x.unary(data, data)


def log(x):
    return x.unary(math.log(x.data), 1.0 / x.data)


def sqrt(x):
    data = math.sqrt(x.data)
    return x.unary(data, 0.5 / data)


def sin(x):
    return x.unary(math.sin(x.data), math.cos(x.data))


def cos(x):
    return x.unary(math.cos(x.data), -math.sin(x.data))


def tanh(x):
    data = math.tanh(x.data)
    return x.unary(data, 1.0 - data * data)


def value_and_grad(f, x, value_type=Value):
    """Value of `f` at the list of numbers `x` and its gradient, as floats."""
    leaves = [value_type(float(number)) for number in x]
    result = f(leaves)
    result.backward()
    return result.data, [leaf.grad for leaf in leaves]
