"""Texts that follow from the code alone: `python tests/generated.py` writes them anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from programs import ROOT

from tracepaper.daemon.config.text import example
from tracepaper.storage.views import documentation


def views_page() -> str:
    """Return the page of the views, column by column."""
    return f"# The views\n\n{documentation().rstrip()}\n".replace("\n### ", "\n## ")


GENERATED: Final[Mapping[Path, Callable[[], str]]] = {
    ROOT / "deploy" / "config.example.toml": example,
    ROOT / "docs" / "views.md": views_page,
}


def main() -> None:
    """Write every text that the code says."""
    for path, text in GENERATED.items():
        path.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
