"""The docs: made from the table, linked to what exists, and their Python runs."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
]
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
    spec = importlib.util.spec_from_file_location("make_primitives", ROOT / "docs" / "make_primitives.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
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


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_in_the_docs_runs(page):
    # A process of its own: a primitive that a page adds would stay in the table.
    program = "\n".join(blocks(page, "python"))
    found = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    for expected in blocks(page, "text")[:1] if found.stdout else []:
        assert found.stdout == expected


def test_readme_commands_are_there_for_ci():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = dict(re.findall(r"^<!-- ci: (\w+) -->\n```sh\n(.+)\n```$", text, flags=re.M))
    assert commands["test"] == "python -m pip install '.[test]' && python -m pytest -n 2 -m 'not slow'"
    (example,) = re.findall(r"python (examples/\S+\.py)$", commands["main"])
    assert (ROOT / example).exists()
