"""What each head of a run's model does at one decision, and how attention flows down the layers.

Recomputed: the run's own checkpoint is asked again, with the stored bars up to the last decision
that was explained, where each head looked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.daemon.session.models import forecaster_of
from tracepaper.replay.report.attention_charts import INTENSITY
from tracepaper.replay.report.charts import Figure as Chart
from tracepaper.replay.report.charts import axis, layout, rounded
from tracepaper.replay.report.html import Markup
from tracepaper.replay.report.record import Floats, RunRecord
from tracepaper.replay.report.tables import Figure, Table, table
from tracepaper.storage import checkpoints
from tracepaper.storage.reader import Reader
from tracepaper.strategies.attention.heads import HeadReading
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecasters.ensemble import network_half
from tracepaper.strategies.forecasters.looking import DECISIONS, look_into
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.types import Bar, Forecast

CELLS: Final = 40
AGE_EDGES: Final = (0, 16, 64, 256, 1_024, 2_048, 4_096)
"""First ages, in bars, of the groups between which the flow is summed."""
FLOW_NOTE: Final = (
    "Half of what a bar holds stays with it, half passes to the bars that its layer attends to: at "
    "the end, the decision's rollout."
)

Attending = StreamingForecaster | WindowedForecaster


@dataclass(frozen=True)
class HeadReport:
    """What the heads do; layers from the lowest, ages in bars."""

    instrument: str
    sequence: int  # of the decision
    half: bool  # whether the heads are those of an ensemble's network
    decisions: int  # the newest, from which the heads look back
    window: int
    readings: tuple[tuple[HeadReading, ...], ...]  # [layer][head]
    maps: Floats  # [layer, head, cell of age, row]: mean share a bar, oldest row first
    cell_ages: tuple[int, ...]  # the first age of each cell
    flow: Floats  # [layer, from group, to group], from the decision down; each layer sums to 1
    groups: tuple[str, ...]  # what the groups of age are called
    rollout: Floats  # [bar] what reaches each bar through all layers, oldest first; sums to 1


def read_heads(record: RunRecord) -> HeadReport:
    """Return what the heads of the run's model do at its last explained decision.

    Raises ``DataInvalid`` where the run has no model that attends, or too few bars.
    """
    decisions = record.decisions
    explained = np.flatnonzero(np.isfinite(decisions.confidence))
    if not record.run["model_id"] or not explained.size:
        raise DataInvalid(
            f"Run {record.run['run_id']} has no attention to look into; leave --heads out."
        )
    last = int(explained[-1])
    instrument = str(decisions.instrument[last])
    forecaster, half, bars = _asked(record, instrument, last)
    found = look_into(forecaster, bars, AGE_EDGES)
    window = found.by_age.shape[-1]
    edges = np.unique(np.geomspace(1, window + 1, CELLS + 1).astype(np.int64)) - 1
    cells = np.add.reduceat(found.by_age, edges[:-1], axis=-1) / np.diff(edges)
    return HeadReport(
        instrument=instrument,
        sequence=int(decisions.sequence[last]),
        half=half,
        decisions=found.by_age.shape[2],
        window=window,
        readings=found.readings,
        maps=cells.swapaxes(2, 3),
        cell_ages=tuple(edges[:-1].tolist()),
        flow=found.flow,
        groups=group_names(found.rollout.size),
        rollout=found.rollout,
    )


def _asked(record: RunRecord, instrument: str, place: int) -> tuple[Attending, bool, list[Bar]]:
    """Return what attended at the decision at *place*, whether it is a half, and the bars."""
    run_id, open_time_ms = str(record.run["run_id"]), int(record.decisions.open_time_ms[place])
    if record.config.model.own_class:
        raise DataInvalid("A class of a user's own has no heads to look into; leave --heads out.")
    with Reader.open(record.database) as reader:
        said = reader.step(run_id, int(record.decisions.sequence[place])).step.prediction
        assert isinstance(said, Forecast)
        bars = reader.bars(run_id, instrument)
    folder = checkpoints.find_kept(record.database, said.model_id)
    forecaster = forecaster_of(folder, record.config, mode="step")
    asked = network_half(forecaster)
    if not isinstance(asked, StreamingForecaster | WindowedForecaster):
        raise DataInvalid("This model has no attention to look into; leave --heads out.")
    known = [bar for bar in bars if bar.open_time_ms <= open_time_ms]
    return asked, asked is not forecaster, known[-(asked.context + DECISIONS - 1) :]


def group_names(time: int) -> tuple[str, ...]:
    """Return what the groups of age among *time* bars are called."""
    firsts = [edge for edge in AGE_EDGES if edge < time]
    lasts = [*(edge - 1 for edge in firsts[1:]), time - 1]
    return tuple(f"{first}–{last}" for first, last in zip(firsts, lasts, strict=True))


# ---------------------------------------------------------------- tables


class _Head(NamedTuple):
    name: str  # layer and head
    reading: HeadReading


class _Level(NamedTuple):
    name: str
    held: Floats  # by group of age


KINDS: Final = (
    Figure[_Head]("head", "head", "text", lambda of: of.name),
    Figure[_Head]("kind", "kind", "text", lambda of: of.reading.kind.value),
    Figure[_Head]("confidence", "confidence", "measure", lambda of: of.reading.confidence),
    Figure[_Head]("local_mass", "local mass", "share", lambda of: of.reading.local_mass),
    Figure[_Head](
        "period_bars", "period, bars", "count", lambda of: of.reading.period_bars or None
    ),
    Figure[_Head](
        "period_correlation", "correlation", "ratio", lambda of: of.reading.period_correlation
    ),
    Figure[_Head]("event_share", "event share", "share", lambda of: of.reading.event_share),
)


def _holding(place: int, name: str) -> Figure[_Level]:
    """Return the figure of what the group of age at *place* holds."""
    return Figure(name, name, "share", lambda of: float(of.held[place]))


def head_tables(heads: HeadReport) -> tuple[Table, Table]:
    """Return the figures behind each head's kind, and what the decision holds below each layer."""
    read = [
        _Head(f"{layer}.{head}", reading)
        for layer, readings in enumerate(heads.readings, start=1)
        for head, reading in enumerate(readings, start=1)
    ]
    kinds = table("head_kinds", "Heads", KINDS, read, notes=(asked_of(heads),), shown=len(read))
    levels = list(map(_Level, _levels(heads), _held(heads)))
    figures = [
        Figure[_Level]("level", "bars old", "text", lambda of: of.name),
        *(_holding(place, name) for place, name in enumerate(heads.groups)),
    ]
    title = "How the decision's attention flows down, by the age of the bars"
    return kinds, table("flow", title, figures, levels, notes=(FLOW_NOTE,))


def as_document(heads: HeadReport) -> dict[str, Any]:
    """Return what the heads do as plain values: shares are fractions, layers from the lowest."""
    kinds, _ = head_tables(heads)
    return {
        "instrument": heads.instrument,
        "sequence": heads.sequence,
        "half_of_ensemble": heads.half,
        "decisions": heads.decisions,
        "window": heads.window,
        "kinds": kinds.documents(),
        "cell_ages": list(heads.cell_ages),
        "maps": heads.maps.tolist(),
        "groups": list(heads.groups),
        "flow": heads.flow.tolist(),
        "rollout": heads.rollout.tolist(),
    }


def asked_of(heads: HeadReport) -> str:
    """Return the sentence that says what was asked again, and when."""
    whose = "the network of the run's ensemble" if heads.half else "the run's own model"
    return (
        f"Recomputed by {whose} at decision {heads.sequence:,}, over its last "
        f"{heads.decisions} bars."
    )


def _levels(heads: HeadReport) -> list[str]:
    """Return what the columns of the flow are called, from the decision down."""
    return ["the decision", *(f"below layer {at}" for at in range(len(heads.flow), 1, -1)), "bars"]


def _held(heads: HeadReport) -> list[Floats]:
    """Return what each group of age holds at each of these levels: it sums to 1."""
    return [np.eye(len(heads.groups))[0], *(layer.sum(axis=0) for layer in heads.flow)]


# ---------------------------------------------------------------- charts

PANEL_HEIGHT: Final = 150
LEAST_SHARE: Final = 0.002
"""Groups of the flow that hold less are not drawn."""
FLOW_WIDTH: Final = 960
FLOW_HEIGHT: Final = 340
FLOW_TOP: Final = 28
FLOW_PAD: Final = 8
FLOW_NODE: Final = 8
FLOW_SIDE: Final = 110


def heads_chart(heads: HeadReport) -> Chart:
    """Return a panel a head, the highest layer on top: age downwards, decisions to the right."""
    layers, count = heads.maps.shape[:2]
    shown = np.log10(np.maximum(heads.maps, 1e-7))
    low, high = np.quantile(shown, (0.02, 0.995))
    common = {
        "type": "heatmap", "zmin": float(low), "zmax": float(high), "colorscale": INTENSITY,
        "showscale": False, "hoverinfo": "skip",
    }  # fmt: skip
    data: list[Chart] = []
    places: Chart = {}
    notes = []
    ticks = list(range(0, len(heads.cell_ages), 10))
    for layer in range(layers):
        for head in range(count):
            number = (layers - 1 - layer) * count + head + 1
            across = [(head + 0.03) / count, (head + 0.97) / count]
            up = [(layer + 0.02) / layers, (layer + 0.80) / layers]
            panel = {"z": [rounded(row, 3) for row in shown[layer, head]]}
            data.append({**panel, **common, "xaxis": f"x{number}", "yaxis": f"y{number}"})
            places[f"xaxis{number}"] = axis(
                domain=across, anchor=f"y{number}", showgrid=False, showticklabels=False
            )
            places[f"yaxis{number}"] = axis(
                domain=up,
                anchor=f"x{number}",
                showgrid=False,
                autorange="reversed",
                showticklabels=head == 0,
                tickvals=ticks,
                ticktext=[str(heads.cell_ages[tick]) for tick in ticks],
            )
            reading = heads.readings[layer][head]
            notes.append(
                {
                    "text": f"layer {layer + 1}, head {head + 1}: {reading.kind.value}",
                    "xref": "paper",
                    "yref": "paper",
                    "x": across[0],
                    "y": up[1],
                    "xanchor": "left",
                    "yanchor": "bottom",
                    "showarrow": False,
                    "font": {"size": 11},
                }
            )
    height = PANEL_HEIGHT * layers + 40
    return {"data": data, "layout": layout(height, annotations=notes, **places)}


def flow_picture(heads: HeadReport) -> Markup:
    """Return an SVG of the decision's attention flowing through the layers, by groups of age."""
    layers, count = heads.flow.shape[:2]
    held = _held(heads)
    room = FLOW_HEIGHT - (count - 1) * FLOW_PAD
    # Where each group starts in each column: shares stacked, the newest on top.
    tops = [
        np.concatenate(([0.0], shares.cumsum()[:-1])) * room + np.arange(count) * FLOW_PAD
        for shares in held
    ]
    across = np.linspace(FLOW_SIDE, FLOW_WIDTH - FLOW_SIDE - FLOW_NODE, layers + 1)
    bands = [
        _bands(layer * room, (tops[place], tops[place + 1]), (across[place], across[place + 1]))
        for place, layer in enumerate(heads.flow)
    ]
    nodes = [
        f'<rect class="node" x="{across[level]:.1f}" y="{tops[level][group] + FLOW_TOP:.1f}" '
        f'width="{FLOW_NODE}" height="{max(held[level][group] * room, 0.5):.1f}"/>'
        for level in range(layers + 1)
        for group in range(count)
        if held[level][group] >= LEAST_SHARE
    ]
    words = [
        _word(across[level] + FLOW_NODE / 2, 14, title)
        for level, title in enumerate(_levels(heads))
    ]
    for group in range(count):
        share = held[-1][group]
        if share >= LEAST_SHARE:
            middle = tops[-1][group] + share * room / 2 + FLOW_TOP + 4
            said = f"{heads.groups[group]}: {share:.0%}"
            words.append(_word(across[-1] + FLOW_NODE + 8, middle, said, anchor="start"))
    return Markup(
        f'<svg class="flow" viewBox="0 0 {FLOW_WIDTH} {FLOW_HEIGHT + FLOW_TOP + 4}" role="img" '
        f'aria-label="flow of attention through the layers">{"".join(bands)}{"".join(nodes)}'
        f"{''.join(words)}</svg>"
    )


def _bands(flow: Floats, tops: tuple[Floats, Floats], across: tuple[float, float]) -> str:
    """Return the bands between two columns; *flow* [from, to] is in units of the picture."""
    left, right = across[0] + FLOW_NODE, across[1]
    leaves, arrives = tops[0].copy(), tops[1].copy()
    middle = (left + right) / 2
    made = []
    for source, target in np.ndindex(*flow.shape):
        tall = flow[source, target]
        first, last = leaves[source] + FLOW_TOP, arrives[target] + FLOW_TOP
        leaves[source] += tall
        arrives[target] += tall
        if tall >= 0.5:  # half a pixel is not seen
            made.append(
                f'<path class="band" d="M{left:.1f} {first:.1f}C{middle:.1f} {first:.1f} '
                f"{middle:.1f} {last:.1f} {right:.1f} {last:.1f}v{tall:.1f}C{middle:.1f} "
                f"{last + tall:.1f} {middle:.1f} {first + tall:.1f} {left:.1f} "
                f'{first + tall:.1f}z"/>'
            )
    return "".join(made)


def _word(x: float, y: float, said: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{said}</text>'
