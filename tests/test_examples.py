"""Examples compile and open with their goal; `.ci/run` runs each, which checks its numbers."""

import ast
import py_compile
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]*.py"))


@pytest.mark.examples
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_compiles_and_states_its_goal(example, tmp_path):
    py_compile.compile(str(example), cfile=str(tmp_path / "example.pyc"), doraise=True)
    source = example.read_text(encoding="utf-8")
    goal = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
    assert source.startswith('"""'), f"open {example.name} with its docstring"
    assert goal.endswith("."), f"say the goal of {example.name} in one line that ends with a full stop"


def test_examples_are_numbered_from_01():
    assert [int(path.name[:2]) for path in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))
