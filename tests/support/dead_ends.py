"""What leads nowhere: heads, modalities, measures, events and keys of the configuration.

Each function returns the names that change no stored column, gate, size, fill or evaluated figure.
A view of something alone is no sink.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from tracepaper.daemon.session.models import SIZED_BY
from tracepaper.strategies.book_features import PREFIX, BookReading
from tracepaper.strategies.features.rows import schema, schema_ids
from tracepaper.strategies.forecasters.outputs import forecasts
from tracepaper.strategies.gates.gate import GATES, Gate, ThresholdKey
from tracepaper.strategies.networks.architecture import HEADS, Heads, Outputs
from tracepaper.strategies.types.decisions import Explanation, Forecast, HeadForecasts

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("daemon", "replay", "storage", "strategies")
HORIZON = 5


def heads(names: Collection[str] = tuple(HEADS)) -> list[str]:
    """Name the heads of a network whose numbers no stored forecast follows."""
    torch.manual_seed(1)
    layer = Heads(8, 1, 3, allocation=True, risk=True, regimes=3, path=True, runup=True)
    with torch.no_grad():
        outputs: Outputs = layer(torch.randn(1, 1, 8))

    def said(given: Outputs) -> Forecast:
        return forecasts(
            given, np.ones(1), [None], horizons=(HORIZON,), temperature=(1.0,), model_id="m"
        )[0]

    dead = []
    for name in names:
        part = getattr(outputs, name, None)
        moved = part is not None and outputs._replace(**{name: _moved(part)})
        if not moved or said(moved) == said(outputs):
            dead.append(name)
    return dead


def _moved(part: torch.Tensor) -> torch.Tensor:
    """Move the first number of each row: of classes, one alone changes their odds."""
    shift = torch.zeros_like(part)
    shift.view(-1)[0] = 0.1
    return part + shift


def modalities(prefixes: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Name the modalities of which no feature schema, covariate or order book has a column."""
    columns = [name for schema_id in schema_ids() for name in schema(schema_id).names] + [
        "vector_mood"
    ]
    columns += [PREFIX + name for name in BookReading(levels=1, every_ms=1).columns]
    of = {
        next(m for m, begins in prefixes.items() if column.startswith(begins)) for column in columns
    }
    return [name for name in prefixes if name not in of]


def measures(names: Iterable[str], gates: Mapping[str, Gate] = GATES) -> list[str]:
    """Name the measures of a model that no gate and no size needs, and that no record stores."""
    used = {need for gate in gates.values() for need in gate.needs} | {"volatility"}
    used |= {need for needs in SIZED_BY.values() for need in needs}
    for stored in (Forecast, Explanation, HeadForecasts):
        used |= set(stored.__struct_fields__)
    return sorted(set(names) - used)


def events(kinds: Mapping[str, type], sources: Iterable[Path] | None = None) -> list[str]:
    """Name the kinds of events that nobody makes, or that nothing but their storing looks at."""
    called, read = set[str](), set[str]()
    for tree in map(_tree, sources or _sources()):
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id="isinstance"), args=[_, kind]):
                    read |= {part.id for part in ast.walk(kind) if isinstance(part, ast.Name)}
                case ast.Call(func=ast.Name(id=name)):
                    called.add(name)
                case ast.MatchClass(cls=ast.Name(id=name)):
                    read.add(name)
                case ast.Dict(keys=keys):
                    read |= {part.id for part in keys if isinstance(part, ast.Name)}
    return [kind for kind, of in kinds.items() if of.__name__ not in called & read]


def keys(config: type[BaseModel], sources: Iterable[Path] | None = None) -> list[str]:
    """Name the keys ``section.key`` of *config* that no code outside the configuration reads."""
    read = set[str]()
    for tree in map(_tree, sources or _sources()):
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(attr=name):
                    read.add(name)
                case ast.Constant(value=str(name)):
                    read.add(name)
    read |= {key.name for gate in GATES.values() if isinstance(key := gate.threshold, ThresholdKey)}
    return [
        f"{section}.{key}"
        for section, field in config.model_fields.items()
        for key in _fields(field.annotation)
        if key not in read
    ]


def _fields(section: Any) -> Iterator[str]:
    if isinstance(section, type) and issubclass(section, BaseModel):
        yield from section.model_fields


def _sources() -> list[Path]:
    """List the product's modules but those that declare keys and store events."""
    left_out = {ROOT / "daemon/config/sections.py", ROOT / "storage/record/rows.py"}
    paths = (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))
    return [path for path in paths if path not in left_out and "assets" not in path.parts]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
