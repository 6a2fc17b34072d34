"""``explain`` as text and as JSON; what asks the model needs torch, and loads on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from msgspec import structs

from tracepaper.daemon.commands.options import print_json
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.replay.document.pictures import write_picture
from tracepaper.replay.document.terminal import show
from tracepaper.replay.document.values import Part, Table, TitledParts
from tracepaper.replay.explain.decision import (
    FindNearest,
    NearestChange,
    StoredDecision,
    counterfactuals_of,
)
from tracepaper.replay.explain.decision_document import decision_title, read_decision, stored_parts
from tracepaper.replay.explain.options import ModelRequest
from tracepaper.replay.explain.picture import stored_chart
from tracepaper.replay.explain.place import find_decision
from tracepaper.replay.report.listed_orders import listed
from tracepaper.strategies.errors import AttentionInvalid, CheckpointMismatch, DataInvalid
from tracepaper.strategies.extras import require

if TYPE_CHECKING:
    from tracepaper.replay.report.past import ModelAnswer

ANSWER_KEYS: Final = (
    "full", "by_feature", "attended", "contributions", "by_method", "compared", "influence",
    "books",
)  # fmt: skip
"""Keys in JSON of the model's answers; null where the model was not asked."""


def explain_decision(
    decision: str,
    database: Path | None,
    request: ModelRequest,
    *,
    png: Path | None,
    as_json: bool,
    write_page: Callable[[TitledParts], None] | None = None,
    find_nearest: FindNearest = lambda *_: (),
) -> None:
    """Explain *decision* (``RUN:WHERE``); print the stored part even if the *request* fails.

    *find_nearest* derives what would have traded; what a user's class prints meanwhile goes to
    stderr. *write_page* writes a page. Raises
    ``DataInvalid``, ``AttentionInvalid`` or ``CheckpointMismatch`` if a requested part cannot be
    computed.
    """
    require("matplotlib", "--png", png)
    request.other.check()
    if request.method:
        from tracepaper.replay.explain.attribution import check_method

        check_method(request.method)
    place = path, run_id, sequence = find_decision(decision, database)
    stored, titled = read_decision(path, run_id, sequence)
    with redirect_stdout(sys.stderr):
        nearest = find_nearest(path, run_id, sequence)
    recomputed: Sequence[ModelAnswer] = ()
    missing: DataInvalid | CheckpointMismatch | AttentionInvalid | None = None
    try:
        recomputed = _recomputed(place, stored, request, has_page=write_page is not None)
    except (DataInvalid, CheckpointMismatch, AttentionInvalid) as error:
        missing = error
    printed = list(_parts(stored, titled, recomputed, nearest))
    if as_json:
        reason = None if missing is None else str(missing)
        print_json(document(stored, titled.title, recomputed, reason, nearest))
    else:
        show(Terminal(), printed)
    if missing is not None:
        raise missing
    if png is not None:
        _draw(png, path, stored, recomputed)
    if write_page is not None:
        from tracepaper.replay.explain.recomputed import page_document

        write_page(page_document(path, stored, titled, recomputed, printed))


def _recomputed(
    place: tuple[Path, str, int], stored: StoredDecision, request: ModelRequest, *, has_page: bool
) -> Sequence[ModelAnswer]:
    """Return the answers of the model; without a *request*, those that a custom model reports.

    For a page the model of a forecast is asked in full.
    """
    if has_page and stored.has_forecast:
        request = replace(request, full=True)
    is_custom = stored.has_forecast and json.loads(stored.run["config"])["model"].get("class")
    if not (request or is_custom):
        return ()
    from tracepaper.replay.explain.recomputed import ask_again, ask_custom_model

    return ask_again(*place, stored, request) if request else ask_custom_model(*place)


def _draw(png: Path, path: Path, stored: StoredDecision, recomputed: Sequence[ModelAnswer]) -> None:
    """Write the picture of a decision of the database *path*: of single bars, if recomputed."""
    chart = None
    if recomputed:
        from tracepaper.replay.explain.recomputed import recomputed_chart

        chart = recomputed_chart(recomputed)
    chart = chart or stored_chart(path, stored)
    write_picture(structs.replace(chart, title=decision_title(stored)), png)
    typer.echo(f"The picture is {png}.", err=True)


def document(
    stored: StoredDecision,
    title: str,
    recomputed: Sequence[ModelAnswer],
    missing: str | None,
    nearest: Sequence[NearestChange],
) -> dict[str, Any]:
    """Return everything about one decision as plain values; returns are log returns."""
    counterfactuals = asdict(counterfactuals_of(stored))
    margins = counterfactuals.pop("gates")
    return {
        "run": {name: stored.run[name] for name in ("run_id", "kind", "strategy", "interval")},
        "states": [asdict(state) for state in stored.states],
        "title": title,
        "decision": stored.decision,
        "notes": {
            row["name"]: row["number"] if row["text"] is None else row["text"]
            for row in stored.notes
        },
        "liquidations": [
            {
                "said": liquidation.sentence,
                "fills": liquidation.fills,
                "canceled": liquidation.canceled,
                "cost": liquidation.cost,
                "fee": liquidation.fee,
            }
            for liquidation in stored.liquidations
        ],
        "orders": listed(stored.orders, title="").documents(),
        "gates": margins,
        "counterfactuals": counterfactuals,
        "nearest_changes": [asdict(change) for change in nearest],
        "method": stored.explained["method"],
        "buckets": stored.buckets,
        "no_attribution": stored.no_attribution,
        **dict.fromkeys(ANSWER_KEYS),
        **{answer.key: answer.document() for answer in recomputed},
        "full_missing": missing,
    }


def _parts(
    stored: StoredDecision,
    titled: TitledParts,
    recomputed: Sequence[ModelAnswer],
    nearest: Sequence[NearestChange],
) -> Iterator[Part]:
    is_told = any(answer.key == "attended" for answer in recomputed)
    for part in stored_parts(stored, titled, nearest):
        if not (is_told and isinstance(part, Table) and part.key == "looked"):
            yield part
    if recomputed:
        from tracepaper.replay.explain.recomputed import recomputed_parts

        yield from recomputed_parts(recomputed)
