"""Patterns for names of channels."""

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.channels.glob import compile_glob


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*", ["", "a", "a:b", "a\nb", "ü"], []),
        ("a?c", ["abc", "a:c", "aüc"], ["ac", "abbc"]),
        ("room:{1,2*}", ["room:1", "room:2", "room:23"], ["room:3", "room:", "room:{1,2*}"]),
        ("{a,{b,c}d}", ["a", "bd", "cd"], ["b", "ad"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "-x", "x"]),
        ("[!a-c]x", ["dx", "!x"], ["ax", "x"]),
        ("[]]", ["]"], ["["]),
        ("[^.]", ["^", "."], ["a"]),
        (r"\*\{", ["*{"], ["a{"]),
        ("a,b}", ["a,b}"], ["a"]),
        ("a.b|(c)+$", ["a.b|(c)+$"], ["axb"]),
    ],
)
def test_a_pattern_matches(pattern: str, matching: list[str], others: list[str]) -> None:
    """The whole name, as github.com/gobwas/glob does."""
    matches = compile_glob(pattern).fullmatch
    assert [name for name in matching if not matches(name)] == []
    assert [name for name in others if matches(name)] == []


@pytest.mark.parametrize("pattern", ["[", "[!]", "[a", "{", "{a,{b}", "a\\", "[b-a]"])
def test_an_invalid_pattern_is_an_error(pattern: str) -> None:
    """With the reason."""
    with pytest.raises(ValueError, match=r"\S"):
        compile_glob(pattern)


@given(st.text("ab*?.-", max_size=8), st.text("ab.-", max_size=8))
def test_without_braces_it_is_a_pattern_of_the_shell(pattern: str, name: str) -> None:
    """The two agree, as far as both have a meaning."""
    assert bool(compile_glob(pattern).fullmatch(name)) == fnmatchcase(name, pattern)


@given(st.text(max_size=12), st.text(max_size=12))
def test_any_text_is_a_pattern_or_a_mistake(pattern: str, name: str) -> None:
    """No pattern crashes, and plain names match themselves."""
    try:
        matches = compile_glob(pattern).fullmatch
    except ValueError:
        return
    if not re.search(r"[*?\[\]{}\\]", pattern):
        assert bool(matches(name)) == (name == pattern)


def test_a_hostile_pattern_takes_no_time() -> None:
    """A backtracking matcher would take hours, and hold up every node."""
    assert not compile_glob("*a" * 40 + "b").fullmatch("a" * 255)
