"""Where files of the tests are."""

from pathlib import Path

JAVASCRIPT = Path(__file__).parent / "js"
"""The programs that use SDKs for JavaScript, and their node_modules."""
APP = Path(__file__).parents[2]
"""The folder from which `tests` is imported."""
