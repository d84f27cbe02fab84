"""The pages about tools: short, found, and true of this server's settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "docs" / "tools"
PAGES = sorted(page for page in TOOLS.glob("*.md") if page.name != "README.md")
SETTINGS = (ROOT / "config" / "default.toml").read_text()


def test_the_index_has_every_page_and_no_other() -> None:
    linked = re.findall(r"\]\(([\w-]+\.md)\)", (TOOLS / "README.md").read_text())
    assert sorted(linked) == [page.name for page in PAGES]
    assert "(docs/tools/README.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short_and_says_where_and_whether_it_was_tried(page: Path) -> None:
    text = page.read_text()
    assert 15 <= len(text.splitlines()) <= 45
    assert "127.0.0.1:8000" in text
    assert "**Tried**" in text or "**Not tried**" in text


@pytest.mark.parametrize("page", [*PAGES, TOOLS / "README.md"], ids=lambda page: page.stem)
def test_a_setting_that_a_page_names_exists(page: Path) -> None:
    for table, name in re.findall(r"`\[(\w+)\] (\w+)", page.read_text()):
        (_, found) = SETTINGS.split(f"\n[{table}]\n", 1)
        assert re.search(rf"^{name} = ", found.split("\n[")[0], re.MULTILINE), f"[{table}] {name}"
