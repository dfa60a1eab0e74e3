"""The docs: made from the table, linked to what exists, and their Python runs."""

import importlib.util
import platform
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def tool(name):
    """A module of the docs folder."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_outputs = tool("make_outputs")
PAGES = make_outputs.pages()
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def prose(page):
    """The text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def blocks(page, language):
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchor(heading):
    """What a heading is linked by, as on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_page_of_primitives_is_what_the_table_makes():
    generator = tool("make_primitives")
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page(), "run: python docs/make_primitives.py"


@each_page
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith("https://"):
            path, _, fragment = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{page.name} links to {target}"
            if fragment:
                headings = re.findall(r"^#+ (.+)$", prose(linked), flags=re.M)
                assert fragment in map(anchor, headings), f"{page.name} links to {target}"


def without_numbers(line):
    """A line of LLVM IR without the numbers of its registers, which any change of the emitter moves."""
    return re.sub(r"%\d+", "%", line)


def mnemonics(assembly):
    """How often each instruction stands in a text; those of AVX count as their older namesakes."""
    return Counter(word.removeprefix("v") for word in re.findall(r"^\t([a-z]\w*)", assembly, flags=re.M))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_in_the_docs_runs_and_prints_what_they_show(page):
    advice = "if that is right, run: python docs/make_outputs.py"
    for printed, language, shown, _ in make_outputs.run(page):
        if language == "text":
            assert printed == shown, advice
        elif language == "llvm":
            lines = iter(map(without_numbers, printed.splitlines()))
            for line in shown.splitlines():
                assert without_numbers(line) in lines, f"no {line!r} here; {advice}"
        elif platform.machine() in ("x86_64", "AMD64"):
            assert not mnemonics(shown) - mnemonics(printed)


def test_readme_commands_are_there_for_ci():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = dict(re.findall(r"^<!-- ci: (\w+) -->\n```sh\n(.+)\n```$", text, flags=re.M))
    assert commands["test"] == "python -m pip install '.[test]' && python -m pytest -n 2 -m 'not slow'"
    (example,) = re.findall(r"python (examples/\S+\.py)$", commands["main"])
    assert (ROOT / example).exists()
