"""The pages of the documentation, and their code blocks, prose and code spans."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "examples").glob("*.md")]
)
REPORT_PAGE = REPOSITORY / "docs" / "reference" / "report.md"
WRITTEN = [path for path in PAGES if path.name not in ("recipe.md", "cli.md")]
"""Pages that a person keeps up to date."""


def page_name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """The text without code blocks."""
    return re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def code_spans(text: str) -> list[str]:
    """Inline code, each span on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]
