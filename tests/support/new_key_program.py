"""Adds two keys to a copy of the sections, as an editor would, and asks the commands about them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import sys
from pathlib import Path

NAME = "tracepaper.daemon.config.sections"
ADDED = {
    '    """How paper orders are filled."""\n': """
    patience: int = Field(default=7, ge=1, le=9)
    '''Bars of patience.'''
""",
    '    """Structured logging on stderr; the database is the audit, this is not."""\n': """
    colour: str | None = Field(default=None, examples=["blue"])
    '''Colour of an error.'''
""",
}


def add_keys(folder: Path) -> None:
    """Make the process import sections that have the keys of ``ADDED``."""
    original = importlib.util.find_spec(NAME)
    assert original is not None
    assert original.origin is not None
    text = Path(original.origin).read_text(encoding="utf-8")
    for below, field in ADDED.items():
        assert text.count(below) == 1
        text = text.replace(below, below + field)
    path = folder / "sections.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main(folder: Path) -> None:
    """Write what every place says of the keys as one JSON document on stdout."""
    add_keys(folder)
    from tracepaper.daemon.cli import invoke
    from tracepaper.daemon.config.loading import Config, restore

    def say(*words: str) -> tuple[int, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = invoke(["config", *words])
        return code, out.getvalue() + err.getvalue()

    def shown(name: str, text: str) -> object:
        file = folder / f"{name}.toml"
        file.write_text(text, encoding="utf-8")
        return json.loads(say("show", "-c", str(file), "--json")[1])

    answers: dict[str, object] = {
        "default": shown("default", ""),
        "file": shown("file", "[execution]\npatience = 3\n"),
        "other": shown("other", '[log]\ncolour = "red"\n'),
        "written": say("init", str(folder / "written.toml")),
    }
    for name, text in {
        "outside": "[execution]\npatience = 12\n",
        "misspelt": "[execution]\npatienc = 3\n",
        "misplaced": "[log]\npatience = 3\n",
    }.items():
        file = folder / f"{name}.toml"
        file.write_text(text, encoding="utf-8")
        answers[name] = say("check", "-c", str(file))
    os.environ["TRACEPAPER_EXECUTION__PATIENCE"] = "8"
    answers["environment"] = shown("environment", "[execution]\npatience = 3\n")
    kept = Config.model_validate({"execution": {"patience": 5}}).canonical_json()
    answers["kept"] = restore(kept).settings()
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
