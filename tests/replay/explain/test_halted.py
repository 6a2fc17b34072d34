"""A decision refused by the operator says who gave the command, when, why, and what lifts it."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import storage_cases as cases
from builders import decision, present
from page_cases import shown_of
from rich.console import Console

from tracepaper.replay.document.terminal import show
from tracepaper.replay.explain.decision_document import read_decision, stored_parts
from tracepaper.replay.page import decisions, records, runs
from tracepaper.replay.report.states import time_text
from tracepaper.strategies.types.market import Command, CommandKind, CommandOrigin, Gap, GapCause
from tracepaper.strategies.units import iso

REFUSED = decision(measures=(("operator", 0.0, 1.0, False), ("warm", 50.0, 9.0, True)))


def test_the_card_explain_the_banner_and_a_view_name_who_halted_whatever_came_later(
    tmp_path: Path,
) -> None:
    steps = list(cases.plain_steps(60))
    at_ms = steps[30].event.market_ms
    halt = Command(
        CommandKind.HALT, "news", at_ms, at_ms, CommandOrigin.PAGE, token="anna", user="root"
    )
    later_ms = at_ms + 7_200_000
    flatten = Command(CommandKind.FLATTEN, "", later_ms, later_ms, CommandOrigin.COMMAND)
    steps[30] = cases.undecided(30, halt)
    steps[31] = msgspec.structs.replace(steps[31], decision=REFUSED)
    steps[59] = cases.undecided(59, flatten)
    path = tmp_path / "halted.db"
    cases.write_run(path, steps)
    run = shown_of(path)
    sentence = (
        f"HALT at {iso(at_ms)}, by root, on the page, with the token anna: news. RESUME lifts"
    )

    card = decisions.decision(run, 31)
    because = card.parts[0]["text"]
    assert sentence in because
    assert "has no margin" not in because
    text = io.StringIO()
    console = Console(file=text, width=200)
    show(console, stored_parts(*read_decision(path, run.run_id, 31)))
    assert sentence in " ".join(text.getvalue().split())
    banner = present(runs.halt(run))
    assert (
        f"HALT by root, on the page, with the token anna at {time_text(at_ms)} (news) and "
        f"FLATTEN on the command line at {time_text(later_ms)};"
    ) in banner.sentence
    texts = [text for _, kind, _, text in records.happenings(run) if kind == "command"]
    assert texts[1] == "HALT by root, on the page, with the token anna: news"

    rows = run.views.rows("v_commands")
    assert [(row["origin"], row["token"], row["user"]) for row in rows] == [
        ("page", "anna", "root"),
        ("command", "", ""),
    ]


def test_the_happenings_of_a_run_are_in_order_of_time(tmp_path: Path) -> None:
    """A gap is dated by its bars: it is stored after a command that came later."""
    steps = list(cases.plain_steps(60))
    at_ms = steps[30].event.market_ms
    halt = Command(CommandKind.HALT, "", at_ms, at_ms, CommandOrigin.COMMAND)
    steps[30] = cases.undecided(30, halt)
    gap = Gap(cases.BTC.id, at_ms - 9, at_ms - 5, GapCause.DOWN, "rest", at_ms - 5, at_ms - 5)
    steps[31] = cases.undecided(31, gap)
    path = tmp_path / "gap.db"
    cases.write_run(path, steps)
    times = [time_ms for time_ms, *_ in records.happenings(shown_of(path))]
    assert times == [at_ms, at_ms - 5]
