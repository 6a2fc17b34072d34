"""The glossary explains what the code still has."""

from __future__ import annotations

import re
from typing import Final

from programs import ROOT

GLOSSARY: Final = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")


def test_what_is_explained_is_still_declared() -> None:
    sources = [path for name in ("daemon", "replay") for path in (ROOT / name).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    keys = re.findall(r"^\| `(\w+)` \|", GLOSSARY, re.MULTILINE)
    assert keys
    assert [key for key in keys if not re.search(rf"\b{key}\b", code)] == []
