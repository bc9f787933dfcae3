"""Where files of the repository are."""

from pathlib import Path

ROOT = Path(__file__).parents[3]
"""The repository."""
JAVASCRIPT = Path(__file__).parent / "js"
"""The programs that use SDKs for JavaScript, and their node_modules."""
