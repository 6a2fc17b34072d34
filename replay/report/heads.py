"""What each head of a run's model does at one decision, and how attention flows down the layers.

Recomputed: the run's own checkpoint is warmed with the stored bars up to the last decision that
was explained, and its kept queries, keys and logsumexps are read. No forward pass is made for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tracepaper.daemon.session.models import forecaster_of
from tracepaper.replay.report.attention_charts import INTENSITY
from tracepaper.replay.report.charts import Figure, axis, layout, rounded
from tracepaper.replay.report.html import Markup, table
from tracepaper.replay.report.record import Floats, Ints, RunRecord
from tracepaper.storage import checkpoints
from tracepaper.storage.reader import Reader
from tracepaper.strategies.attention.heads import HeadReading, head_rows, read_head, rows_by_age
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecasters.ensemble import network_half
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.networks.stream import RESIDUAL
from tracepaper.strategies.types import Forecast
from tracepaper.strategies.words import NOTHING

ROWS: Final = 40
CELLS: Final = 40
AGE_EDGES: Final = (0, 16, 64, 256, 1_024, 2_048, 4_096)
"""First ages, in bars, of the groups between which the flow is summed."""
_TILE: Final = 256

Layer = tuple[Any, Any, Any]  # query, key, logsumexp: tensors, but the report imports no torch


@dataclass(frozen=True)
class HeadReport:
    """What the heads do; layers from the lowest, ages in bars."""

    instrument: str
    sequence: int  # of the decision
    rows: int  # newest bars from which the heads look back
    window: int
    readings: tuple[tuple[HeadReading, ...], ...]  # [layer][head]
    maps: Floats  # [layer, head, cell of age, row]: mean share a bar, oldest row first
    cell_ages: tuple[int, ...]  # the first age of each cell
    flow: Floats  # [layer, from group, to group], from the decision down; each layer sums to 1
    groups: tuple[str, ...]  # what the groups of age are called
    rollout: Floats  # [bar] what reaches each bar through all layers, oldest first; sums to 1


def read_heads(record: RunRecord) -> HeadReport:
    """Return what the heads of the run's model do at its last explained decision.

    Raises ``DataInvalid`` where the run has no model that keeps its queries and keys.
    """
    decisions = record.decisions
    explained = np.flatnonzero(np.isfinite(decisions.confidence))
    if not record.run["model_id"] or not explained.size:
        raise DataInvalid(
            f"Run {record.run['run_id']} has no attention to look into; leave --heads out."
        )
    last = int(explained[-1])
    instrument = str(decisions.instrument[last])
    forecaster = _warmed(record, instrument, last)
    positions, layers = forecaster.history(instrument)
    window = forecaster.model.network.config.window
    time = len(positions)
    rows = list(range(max(time - ROWS, window - 1), time))
    mask = Mask.window(window)
    readings, maps = [], []
    edges = np.unique(np.geomspace(1, window + 1, CELLS + 1).astype(np.int64)) - 1
    for query, key, logsumexp in layers:
        weights = head_rows(query, key, logsumexp, rows, mask)[0]  # [head, row, time]
        readings.append(tuple(read_head(head, rows, min(window, time)) for head in weights))
        weights_by_age = rows_by_age(weights, rows)[..., : edges[-1]].numpy().astype(np.float64)
        cells = np.add.reduceat(weights_by_age, edges[:-1], axis=-1) / np.diff(edges)
        maps.append(cells.transpose(0, 2, 1))
    flow, rollout = flow_down(layers, mask)
    return HeadReport(
        instrument=instrument,
        sequence=int(decisions.sequence[last]),
        rows=len(rows),
        window=window,
        readings=tuple(readings),
        maps=np.array(maps),
        cell_ages=tuple(edges[:-1].tolist()),
        flow=flow,
        groups=group_names(time),
        rollout=rollout,
    )


def _warmed(record: RunRecord, instrument: str, place: int) -> StreamingForecaster:
    """Return the model of the decision at *place*, warmed with the bars up to its own."""
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
    if not isinstance(asked, StreamingForecaster):
        raise DataInvalid("This model keeps no queries and keys to look into; leave --heads out.")
    past = [bar for bar in bars if bar.open_time_ms <= open_time_ms][-forecaster.context :]
    if len(past) < forecaster.context:
        raise DataInvalid(
            f"The run holds {len(past)} bars of {instrument} and its model looks back on "
            f"{forecaster.context}; leave --heads out."
        )
    forecaster.warm(instrument, past)
    return asked


def flow_down(layers: Sequence[Layer], mask: Mask) -> tuple[Floats, Floats]:
    """Return the flow between groups of age, a layer from the top, and what reaches each bar.

    What a bar holds passes to itself by half (the residual stream) and by half to the bars that
    the layer's mean head attends to. After all layers that is the rollout of the newest bar.
    """
    time = int(layers[0][0].shape[2])
    group = np.searchsorted(AGE_EDGES, time - 1 - np.arange(time), side="right") - 1
    count = len(group_names(time))
    holds = np.zeros(time)
    holds[-1] = 1.0
    flow = np.zeros((len(layers), count, count))
    for place, layer in enumerate(reversed(layers)):
        passed = RESIDUAL * holds
        np.add.at(flow[place], (group, group), RESIDUAL * holds)
        rows = np.flatnonzero(holds)
        for start in range(0, rows.size, _TILE):
            tile = rows[start : start + _TILE]
            moved = (1.0 - RESIDUAL) * holds[tile, None] * _mean_head(layer, tile, mask)
            passed += moved.sum(axis=0)
            by_row = np.zeros((count, time))
            np.add.at(by_row, group[tile], moved)
            for target in range(count):
                flow[place, :, target] += by_row[:, group == target].sum(axis=1)
        holds = passed
    return flow, holds


def group_names(time: int) -> tuple[str, ...]:
    """Return what the groups of age among *time* bars are called."""
    firsts = [edge for edge in AGE_EDGES if edge < time]
    lasts = [*(edge - 1 for edge in firsts[1:]), time - 1]
    return tuple(f"{first}–{last}" for first, last in zip(firsts, lasts, strict=True))


def _mean_head(layer: Layer, rows: Ints, mask: Mask) -> Floats:
    """Return the mean of the heads' attention at *rows*: [row, time]."""
    query, key, logsumexp = layer
    weights = head_rows(query, key, logsumexp, rows.tolist(), mask)
    mean: Floats = weights[0].mean(dim=0).numpy().astype(np.float64)
    return mean


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


def heads_chart(heads: HeadReport) -> Figure:
    """Return a panel a head, the highest layer on top: age downwards, decisions to the right."""
    layers, count = heads.maps.shape[:2]
    shown = np.log10(np.maximum(heads.maps, 1e-7))
    low, high = np.quantile(shown, (0.02, 0.995))
    common = {
        "type": "heatmap", "zmin": float(low), "zmax": float(high), "colorscale": INTENSITY,
        "showscale": False, "hoverinfo": "skip",
    }  # fmt: skip
    data: list[Figure] = []
    places: Figure = {}
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


def heads_table(heads: HeadReport) -> Markup:
    """Return the figures behind each head's kind."""
    rows = [
        [
            f"{layer + 1}.{head + 1}",
            reading.kind.value,
            f"{reading.confidence:.4f}",
            f"{reading.local_mass:.1%}",
            f"{reading.period_bars:,}" if reading.period_bars else NOTHING,
            f"{reading.period_correlation:.2f}",
            f"{reading.event_share:.2f}",
        ]
        for layer, readings in enumerate(heads.readings)
        for head, reading in enumerate(readings)
    ]
    head = (
        "head",
        "kind",
        "confidence",
        "local mass",
        "period, bars",
        "correlation",
        "event share",
    )
    return table(head, rows, texts=(1,))


def flow_picture(heads: HeadReport) -> Markup:
    """Return an SVG of the decision's attention flowing through the layers, by groups of age."""
    layers, count = heads.flow.shape[:2]
    held = [np.eye(count)[0], *(layer.sum(axis=0) for layer in heads.flow)]
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
    titles = ["the decision", *(f"below layer {layer}" for layer in range(layers, 1, -1)), "bars"]
    words = [_word(across[level] + FLOW_NODE / 2, 14, title) for level, title in enumerate(titles)]
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
