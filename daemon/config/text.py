"""The documented configuration file, printed from the sections themselves."""

from __future__ import annotations

import json
from textwrap import wrap
from typing import Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tracepaper.daemon.config.loading import PREFIX, SECTIONS, Config
from tracepaper.daemon.config.values import allowed, canonical

WIDTH: Final = 96
HEADER: Final = f"""\
# The configuration of tracepaper: every key with its meaning, its limits and its default.
# Each key can also be given as an environment variable, {PREFIX}SECTION__KEY, which wins.
# Money and rates are written as text, exactly. Keys that stand behind a # are absent by default.
# `tracepaper config check` reads this file without starting anything.
"""


def render(config: Config) -> str:
    """Return *config* as TOML, without comments and without keys that are absent."""
    sections = (
        f"[{name}]\n"
        + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items() if value is not None)
        for name, table in config.document().items()
    )
    return "\n".join(sections)


def example() -> str:
    """Return a complete configuration file in which every key is documented."""
    return HEADER + "".join(_section(name, model) for name, model in SECTIONS.items())


def _section(name: str, model: type[BaseModel]) -> str:
    lines = ["", *_comment(model.__doc__ or ""), f"[{name}]"]
    for key, field in model.model_fields.items():
        lines += _comment(f"{field.description} {_limits(field)}".rstrip())
        absent = "# " if field.default is None else ""
        lines.append(f"{absent}{key} = {_value(key, field)}")
    return "\n".join(lines) + "\n"


def _value(key: str, field: FieldInfo) -> str:
    """Return the default of *field* as TOML; where there is none, its example."""
    default = canonical(field.get_default(call_default_factory=True))
    if default is None:
        assert field.examples, f"{key} is absent by default: give its field an example"
        default = field.examples[0]
    return _toml(default)


def _toml(value: object) -> str:
    """Write one value; JSON and TOML agree on all but tables."""
    match value:
        case dict():
            pairs = (f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items())
            return "{" + ", ".join(pairs) + "}"
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def _limits(field: FieldInfo) -> str:
    """Say the limits that the description leaves out."""
    words = allowed(field.annotation, field.metadata)
    for start in (" from ", " above ", "one of "):
        _, found, rest = words.partition(start)
        known = all(name in (field.description or "") for name in rest.split(", "))
        if found and not known:
            return f"{start.strip().capitalize()} {rest}."
    return ""


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(text, WIDTH)]
