"""Write what the Python on the pages prints into the blocks below it, after a change of the code it shows.

The blocks of a page are run one after the other in one process. What one prints stands in the next block of the page: ``text`` to the letter,
``llvm`` but for the numbers of registers. Blocks of ``asm`` differ from processor to processor and are edited by hand.

Run: python docs/make_outputs.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SEPARATOR = "\x1e"  # printed after every block
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """All pages, those of the first folder too."""
    return [
        *sorted((ROOT / "docs").glob("*.md")),
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    ]


def run(page: Path) -> list[tuple[str, str, str, tuple[int, int]]]:
    """Run a page in a process of its own: a primitive that it adds would stay in the table.

    Returns
    -------
    list of (printed, language, shown, span)
        For each block of Python that prints something: that, the language and the text of the next block of the page, and where it stands.
    """
    blocks = list(_BLOCK.finditer(page.read_text(encoding="utf-8")))
    places = [k for k, block in enumerate(blocks) if block[1] == "python"]
    program = "".join(f"{blocks[k][2]}\nprint({SEPARATOR!r}, end='')\n" for k in places)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{page.name}: {done.stderr}"
    found = []
    for k, printed in zip(places, done.stdout.split(SEPARATOR), strict=False):
        if printed:
            following = blocks[k + 1] if k + 1 < len(blocks) else None
            assert following and following[1] in ("text", "llvm", "asm"), f"{page.name} does not show:\n{printed}"
            found.append((printed, following[1], following[2], following.span(2)))
    return found


def main() -> None:
    """Rewrite the pages."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for printed, language, _, (start, end) in reversed(run(page)):
            if language != "asm":
                text = text[:start] + printed + text[end:]
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
