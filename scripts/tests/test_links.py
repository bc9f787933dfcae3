"""Relative links in the documents: each path exists, each anchor is a heading of its page."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
OTHERS = (":!*.md", ":!scripts/tests/test_links.py")
MENTION = re.compile(r"\bdocs/([a-z]+\.md)(?:#([a-z0-9-]+))?")
TARGET = re.compile(r"\]\(([^()\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"")


def documents() -> list[Path]:
    """Return the Markdown files that are in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [path for line in listed.stdout.splitlines() if (path := ROOT / line).is_file()]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    found: dict[str, int] = {}
    names = set()
    for heading in HEADING.findall(FENCE.sub("", page.read_text())):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = found.get(name, 0)
        found[name] = count + 1
        names.add(f"{name}-{count}" if count else name)
    return names


def leads_somewhere(target: Path, anchor: str) -> bool:
    """Return whether the file exists and, if an anchor is given, has such a heading."""
    return target.exists() and (not anchor or anchor in anchors(target))


def broken(page: Path, text: str) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    wrong = []
    for markdown, html in TARGET.findall(FENCE.sub("", text)):
        link = markdown or html
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not leads_somewhere(target, anchor):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a document has a file, and its anchor a heading."""
    assert broken(page, page.read_text()) == []


def test_a_broken_link_is_found() -> None:
    """A missing file, a missing heading and a missing heading of the same page are reported."""
    text = "[a](docs/no.md) [b](docs/redis.md#nothing) [c](#nothing) [d](docs/redis.md#keys) [e](https://x.example/#y)"
    assert broken(ROOT / "README.md", text) == ["docs/no.md", "docs/redis.md#nothing", "#nothing"]


def test_headings_named_outside_of_the_documents_exist() -> None:
    """Code, roles and inventories name headings that their page in docs/ has."""
    command = ["git", "grep", "--untracked", "-lI", r"docs/[a-z]*\.md", "--", *OTHERS]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    wrong = [
        f"{file}: {name}#{anchor}"
        for file in listed.stdout.splitlines()
        for name, anchor in MENTION.findall((ROOT / file).read_text())
        if anchor and not leads_somewhere(ROOT / "docs" / name, anchor)
    ]
    assert wrong == []
