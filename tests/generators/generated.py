"""Texts that follow from the code alone: `make golden` writes them anew."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import signature, unwrap
from pathlib import Path
from typing import Any, Final

import figures
import typer
import yaml
from exchange_callers import CALLERS
from interface_examples import documentation as interface_documentation
from programs import ROOT

from tracepaper.daemon.cli import PANELS
from tracepaper.daemon.config.loading import example
from tracepaper.daemon.session.combinations import COMBINATIONS, Trait
from tracepaper.replay.exchange.surface import listing
from tracepaper.storage.database.remedies import REMEDIES
from tracepaper.storage.database.view_columns import View
from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies import indicators
from tracepaper.strategies.gates.gate import (
    GATES,
    Gate,
    StrategyWarmup,
    ThresholdForm,
    ThresholdKey,
    gate_order,
)

SHARED_MIN: Final = 4
"""An option with one meaning in so many commands stands in the table of shared options."""
_TYPES: Final = """\
Every column declares the type of its values, so SQLAlchemy reflects it, and pandas and connectorx
(`polars.read_database_uri`) read it correctly. A Python cursor does not know the declared types:
for it, `polars.read_database(query, connection, infer_schema_length=None)` reads every row.

The first column of every view is `run_id`, the run. Times that end in `_ms` are UTC milliseconds;
`_iso` is the same time as ISO 8601 text, and `_text` the exact decimal of the column before it."""
ALIKE_MIN: Final = 10
"""So many columns that a view shares with an earlier one are only named."""


def views_page() -> str:
    """Return the page of the views, column by column."""
    parts = ["# The views", _TYPES]
    documented: dict[str, dict[str, str]] = {}
    for view in VIEWS:
        rows = _view_rows(view)
        shared = {
            name: set(rows.items()) & set(other.items()) for name, other in documented.items()
        }
        alike = max(shared, key=lambda name: len(shared[name]), default="")
        same = dict(shared[alike]) if alike and len(shared[alike]) >= ALIKE_MIN else {}
        table = "\n".join(
            [
                "| column | type | meaning |\n|---|---|---|",
                *(rows[name] for name in rows if name not in same),
            ]
        )
        parts.append(f"## `{view.name}`\n\nOne row is {view.row}.\n\n{table}")
        if same:
            names = ", ".join(f"`{name}`" for name in rows if name in same)
            parts.append(f"As in `{alike}`: {names}.")
        documented[view.name] = rows
    return "\n\n".join(parts) + "\n"


def _view_rows(view: View) -> dict[str, str]:
    """Return by name the row of each column of *view*, those that follow from it beside it."""
    names = {column.name for column in view.columns}
    rows = {}
    for column in view.columns[1:]:
        stem, _, form = column.name.rpartition("_")
        if (form == "iso" and f"{stem}_ms" in names) or (form == "text" and stem in names):
            continue
        beside = names & {f"{column.name}_text", f"{column.name.removesuffix('_ms')}_iso"}
        cell = ", ".join(f"`{name}`" for name in (column.name, *beside))
        rows[column.name] = f"| {cell} | {column.kind} | {column.doc.removesuffix(', UTC ms')} |"
    return rows


def commands_page() -> str:
    """Return the page of the command line: every command with its arguments and options."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    entries = document["project"]["entry-points"]["tracepaper.commands"]
    commands = [
        (panel, name, command)
        for panel, names in PANELS.items()
        for entry in names
        for name, command in _commands(f"tracepaper {entry}", _typed(*entries[entry].split(":")))
    ]
    every = Counter(row for _, name, command in commands for row in _rows(name, command))
    shared = {row: row.split("`")[1] for row, count in every.items() if count >= SHARED_MIN}
    parts = [
        "# The command line",
        (
            "To give an option several values, repeat it. RUN is a run's id, a unique prefix of "
            "it, `last`, or `FILE#RUN`. Exit codes are in [operations.md](operations.md), O1."
        ),
        "## Shared options",
        "\n".join(["| | default | |", "|---|---|---|", *shared]),
    ]
    begun = set()
    for panel, name, command in commands:
        parts += [] if panel in begun else [f"## {panel}"]
        begun.add(panel)
        parts += _command(name, command, shared)
    return "\n\n".join(parts) + "\n"


def surface_page() -> str:
    """Return the page of the embedded exchange's routes, topics and faults."""
    parts = ["# Routes, topics and faults of the embedded exchange"]
    notes = {
        "routes": "Parameters in brackets are optional. There are no routes without a caller.",
        "topics": "A client subscribes to a topic with a symbol.",
        "faults": "A fault has a kind and may have a form; its parameters are in parentheses.",
    }
    for name, entries in listing().items():
        rows = ["| | |\n|---|---|"] if name == "faults" else ["| | | called by |\n|---|---|---|"]
        for each, text in entries.items():
            row = f"| `{each}` | {_sentence(text)} |"
            if name != "faults":
                key = each.split()[0] if name == "routes" else each.partition(".")[0]
                row += f" {', '.join(CALLERS[key])} |"
            rows.append(row)
        parts += [f"## {name.capitalize()}", notes[name], "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def http_page() -> str:
    """Return the page of the HTTP interface, after its own first part."""
    page = ROOT / "docs" / "http.md"
    before, mark, _ = page.read_text(encoding="utf-8").partition("\n## Addresses\n")
    assert mark, "docs/http.md has lost its part of the addresses"
    return f"{before}\n{interface_documentation().rstrip()}\n"


def decisions_page() -> str:
    """Return the page of the gates, with the table that its text surrounds."""
    head = "| gate | kind | measure | unit | passes | key, default |"
    return _with_table("decisions", head, (_gate_row(GATES[name]) for name in gate_order()))


def operations_page() -> str:
    """Return the page of operations, with the table of the errors of files."""
    rows = (
        f"| {', '.join(f'`{name}`' for name in remedy.errors)} | {remedy.problem} "
        f"| {remedy.advice} | {remedy.exit_code} |"
        for remedy in REMEDIES
    )
    return _with_table("operations", "| error | a file | what to do | exit code |", rows)


def combinations_page() -> str:
    """Return the page of the configuration, with the table of what does not go together."""
    rows = (
        f"| {', '.join(trait.value for trait in Trait if trait in row.traits)} | {row.sentence} |"
        for row in COMBINATIONS
    )
    return _with_table("configuration", "| together | why not, and what to do |", rows)


def indicators_page() -> str:
    """Return the page of strategies, with the table of the indicators in their code's order."""
    listed = (getattr(indicators, name) for name in indicators.__all__)
    functions = sorted(listed, key=lambda each: unwrap(each).__code__.co_firstlineno)
    return _with_table("strategies", "| indicator | returns |", map(_indicator_row, functions))


def alarms_page() -> str:
    """Return the page of the alarms, with the table of the rules for Prometheus."""
    rules = yaml.safe_load((ROOT / "deploy" / "tracepaper.rules.yml").read_text(encoding="utf-8"))
    rows = (_alarm_row(rule) for group in rules["groups"] for rule in group["rules"])
    return _with_table("alarms", "| alarm | level | after | what it says |", rows)


def _with_table(name: str, head: str, rows: Iterable[str]) -> str:
    """Return the page *name* with *rows* in place of those below *head*, up to an empty line."""
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    before, mark, rest = page.partition(head)
    assert mark, f"docs/{name}.md has lost its table"
    _, blank, after = rest.partition("\n\n")
    table = "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows])
    return f"{before}{table}{blank}{after}"


def _indicator_row(function: Callable[..., Any]) -> str:
    """Return the row of an indicator in docs/strategies.md: its call and its first line."""
    given = ", ".join(
        name if each.default is each.empty else f"{name}={each.default}"
        for name, each in signature(function).parameters.items()
    )
    first = (function.__doc__ or "").partition("\n")[0].removeprefix("Return ")
    return f"| `{function.__name__}({given})` | {first.removesuffix('.').replace('``', '`')} |"


def _alarm_row(rule: Mapping[str, Any]) -> str:
    """Return the row of an alarm in docs/alarms.md; what Prometheus puts in is in italics."""
    summary = re.sub(r"{{ \$labels\.(\w+) }}", r"*\1*", rule["annotations"]["summary"])
    summary = re.sub(r"{{ \$value \| humanizeDuration }}", "*time*", summary)
    summary = re.sub(r"{{ \$value[^}]*}}", "*number*", summary)
    after = rule.get("for", "at once")
    return f"| `{rule['alert']}` | {rule['labels']['severity']} | {after} | {summary} |"


def _gate_row(gate: Gate) -> str:
    """Return the row of *gate* in docs/decisions.md, G7."""
    sign, threshold, key = "≥" if gate.at_least else "≤", gate.threshold, ""
    if isinstance(threshold, ThresholdKey):
        usual = threshold.default
        if usual is None and threshold.form is ThresholdForm.MILLISECONDS:
            usual = "one interval"
        key = f"`{gate.section}.{threshold.name}`" + (f", {usual}" if usual else "")
    elif isinstance(threshold, StrategyWarmup):
        key = "the strategy's warm-up"
    elif gate.is_switch:
        sign = "yes" if gate.at_least else "no"
    else:
        sign = f"{sign} {threshold:g}"
    return f"| `{gate.name}` | {gate.kind} | {gate.meaning} | {gate.unit} | {sign} | {key} |"


def _sentence(text: str) -> str:
    """Return a docstring's first line or a meaning as a cell: without its verb and full stop."""
    text = text.removeprefix("Return ").removeprefix("Send ").removesuffix(".").replace("``", "`")
    return text[:1].lower() + text[1:]


def _typed(module: str, attribute: str) -> Any:
    """Return the command that an entry point names, as the library parses it."""
    command = getattr(importlib.import_module(module), attribute)
    if isinstance(command, typer.Typer):
        return typer.main.get_group(command)
    application = typer.Typer(add_completion=False)
    application.command()(command)
    return typer.main.get_command(application)


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield *command* with its name, or each command of a group."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for inner, subcommand in command.commands.items():
        yield from _commands(f"{name} {inner}", subcommand)


def _command(name: str, command: Any, shared: Mapping[str, str]) -> Iterator[str]:
    """Yield the parts of one command; options whose row is in *shared* are only named."""
    yield f"### `{name}`"
    yield " ".join((command.help or "").replace("\n\n", " ¶ ").split()).replace(" ¶ ", "\n\n")
    rows = _rows(name, command)
    if unshared := [row for row in rows if row not in shared]:
        yield "\n".join(["| | default | |", "|---|---|---|", *unshared])
    if named := [f"`{shared[row]}`" for row in rows if row in shared]:
        yield f"Shared: {', '.join(named)}."


def _rows(name: str, command: Any) -> list[str]:
    """Return the table rows of a command's arguments and options."""
    with command.make_context(name, [], resilient_parsing=True) as context:
        options = [part for part in command.params if part.name != "help" and not part.hidden]
        return [_row(part, context) for part in options]


def _row(parameter: Any, context: Any) -> str:
    """Return the table row of one argument or option."""
    if parameter.param_type_name == "argument":
        cell = f"`{(parameter.metavar or parameter.name).replace('|', ' or ')}`"
    else:
        kind = "" if parameter.is_flag else f" {parameter.metavar or ''}"
        cell = ", ".join(f"`{name}`" for name in parameter.opts) + kind.rstrip()
    given = parameter.get_default(context)
    default = "" if given in (None, False, (), []) or callable(given) else f"`{given}`"
    if parameter.required:
        default = "required"
    return f"| {cell} | {default} | {' '.join((parameter.help or '').split())} |"


SUBJECTS: Final = (
    "structure",
    "record",
    "market data",
    "account",
    "checks",
    "models",
    "interfaces",
)
"""Of the decisions, in the order of the index."""
LOG: Final = ROOT / "docs" / "decisions_log"
BEGINNING: Final = re.compile(r"# (.+)\n\nSubject: (.+)\n")


def decisions_log_index() -> str:
    """Return the index of the decisions that hold, by subject.

    Raises ``ValueError`` of a page that begins otherwise than with title and subject.
    """
    rows: dict[str, list[str]] = {subject: [] for subject in SUBJECTS}
    for page in sorted(LOG.glob("*.md")):
        if page.name == "index.md":
            continue
        begin = BEGINNING.match(page.read_text(encoding="utf-8"))
        if begin is None or begin[2] not in rows:
            raise ValueError(f"{page.name}: begin with title and one of {SUBJECTS}.")
        rows[begin[2]].append(f"- [{begin[1]}]({page.name})")
    parts = [
        "# Decisions",
        (
            "Each page gives one decision, its context and its consequence. `docs/` says what the "
            "product does, ARCHITECTURE.md how the code is divided."
        ),
        (
            "Write a new decision as a new file in the same form. Rewrite or remove a decision "
            "that no longer applies; git keeps its history. `make golden` writes this page."
        ),
    ]
    for subject, lines in rows.items():
        parts += [f"## {subject.capitalize()}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


GENERATED: Final[Mapping[Path, Callable[[], str]]] = {
    ROOT / "deploy" / "config.example.toml": example,
    figures.PAGE: figures.page,
    ROOT / "docs" / "alarms.md": alarms_page,
    ROOT / "docs" / "commands.md": commands_page,
    ROOT / "docs" / "configuration.md": combinations_page,
    ROOT / "docs" / "decisions.md": decisions_page,
    LOG / "index.md": decisions_log_index,
    ROOT / "docs" / "http.md": http_page,
    ROOT / "docs" / "operations.md": operations_page,
    ROOT / "docs" / "surface.md": surface_page,
    ROOT / "docs" / "strategies.md": indicators_page,
    ROOT / "docs" / "views.md": views_page,
}


def main() -> None:
    """Write every text that the code says."""
    for path, text in GENERATED.items():
        path.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
