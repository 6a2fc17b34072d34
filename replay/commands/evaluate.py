"""``tracepaper evaluate``: judge a checkpoint on untouched time, beside every baseline."""

from __future__ import annotations

from typing import Annotated

import typer

from tracepaper.daemon.commands.options import JsonOption, print_json
from tracepaper.replay.commands.train import DataOption, ThreadsOption


def evaluate(
    data: DataOption,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A folder, or default.")
    ] = "default",
    *,
    explained_bars: Annotated[
        int, typer.Option(min=500, help="Bars to explain, for the gates.")
    ] = 120_000,
    threads: ThreadsOption = 2,
    json: JsonOption = False,
) -> None:
    """Judge a checkpoint on the bars after its card's calibration, beside every baseline.

    The baselines are fitted on the bars before the card's training end, so --data needs candles
    of both. Errors come from resampling whole calendar days.
    """
    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.training.pipeline import Material, evaluated, split_of, use_threads
    from tracepaper.replay.training.show import figure_tables, gate_table
    from tracepaper.storage.checkpoints import load, locate
    from tracepaper.strategies.forecasters.build import build

    use_threads(threads)
    found = load(locate(checkpoint))
    card = found.card
    build(card, found.tensors, threads=threads)  # refuses a card that cannot be
    material = Material.read(
        data,
        lambda _: split_of(card),
        tuple(card["architecture"]["horizons"]),
        card["features"]["schema_id"],
    )
    judged = evaluated(card, found.tensors, material, bars=explained_bars)
    if json:
        print_json(
            {
                "id": found.id,
                "figures": judged["figures"],
                "sentences": judged["honesty"]["sentences"],
            }
        )
        return
    console = Terminal()
    for table in (*figure_tables(judged["figures"]), gate_table(judged["figures"]["gates"])):
        console.print(table)
    for sentence in judged["honesty"]["sentences"]:
        console.print(f"• {sentence}", markup=False)
