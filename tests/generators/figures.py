"""Measures the product and writes deploy/FIGURES.md: `make bench`.

``make bench ONLY=replay`` runs the commands with that word alone; the others keep what they
measured last, which ``deploy/figures.json`` holds with its date and machine. The table follows from
that file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from programs import BIN, ROOT

from tracepaper.daemon.clock import SystemClock
from tracepaper.strategies.units import iso

RESULTS: Final = ROOT / "deploy" / "figures.json"
PAGE: Final = ROOT / "deploy" / "FIGURES.md"
INGEST: Final = "tracepaper bench ingest"
REPLAY: Final = "tracepaper bench replay --bars 50000"
MODEL: Final = "tracepaper bench replay --model"
INFORMER: Final = "tracepaper bench replay --checkpoint informer-1m"
BARE: Final = "tracepaper bench live --no-model"
LIVE: Final = "tracepaper bench live"
CLOSES: Final = "tracepaper bench live --symbols 200"
ATTENTION: Final = "tracepaper bench attention"
CUDA: Final = "tracepaper bench attention --device cuda"
YEAR: Final = "python tests/generators/year.py"
BESIDE: Final = "an explanation beside the flash forward"
LAYER: Final = "one captured layer beside its attention"
LLAMA: Final = "a Llama of 4 layers, 2,048 tokens"
STREAM: Final = "the default network as a stream"


@dataclass(frozen=True)
class Figure:
    """A row of the table: what is read of a command's document, and the target."""

    name: str
    command: str
    read: Callable[[Any], float | Sequence[float]]
    target: float
    unit: str = ""
    form: str = ",.2f"
    at_least: bool = False
    next: str = ""  # what to try where the target is missed


def masked(mask: str, key: str) -> Callable[[Any], list[float]]:
    """Return a reader of *key* of each length under the masks that begin with *mask*."""
    return lambda document: [
        row[key] for row in document[BESIDE] if row["mask"].startswith(mask) and key in row
    ]


def llama(explanation: str) -> Callable[[Any], float]:
    """Return a reader of what an explanation of a Llama costs over its forward."""
    return lambda document: next(
        row["÷ forward"] for row in document[LLAMA] if explanation in row["explanation"]
    )


def of_pages(key: str) -> Callable[[Any], list[float]]:
    """Return a reader of *key* of the pages of both years."""
    return lambda document: [
        document[name][key] for name in ("page_of_a_year", "page_of_explained_bars")
    ]


DECISION: Final = "one decision ÷ flash"
OVERHEAD: Final = (
    "only fewer layers' rows would help: 33 of a forward's 64 multiply-adds a pair are needed"
)
FIGURES: Final = (
    Figure(
        "closing frames to checked bars, a CPU second", INGEST,
        lambda document: document["frames_per_cpu_s"]["open"], 600_000, form=",.0f", at_least=True,
        next="each frame is checked against what it can be; parse fewer of its fields",
    ),
    Figure(
        "replayed bars without a model, a CPU second", REPLAY,
        lambda document: document["bars_per_cpu_s"], 50_000, form=",.0f", at_least=True,
    ),
    Figure(
        "a replayed bar, times a plain loop without engine or log", REPLAY,
        lambda document: document["times_plain_loop"], 5, form=".1f",
        next="insertion of its row is a quarter, building it another, the stretch a third",
    ),
    Figure(
        "a bar of two symbols that close together, the same", REPLAY,
        lambda document: document["times_plain_loop"] * document["two_symbols_times_one"] / 2,
        8, form=".1f", next="the event row of a complete close could be derived",
    ),
    Figure(
        "bars of a strategy with history, a stop and notes, a CPU second", REPLAY,
        lambda document: document["history_stop_notes_bars_per_cpu_s"], 25_000, form=",.0f",
        at_least=True, next="a bar with notes is a step of its own; stretches over notes",
    ),
    Figure(
        "two strategies on one account, times one", REPLAY,
        lambda document: document["two_strategies_times_one"], 1.6,
    ),
    Figure(
        "a bar of a trial in memory", REPLAY,
        lambda document: document["trial_in_memory_cpu_us_per_bar"], 5, "µs", ".1f",
        next="the bars of stretches are arrays; what is left are the engine and the steps that act",
    ),
    Figure(
        "a step of `audit verify`", REPLAY,
        lambda document: document["audit_verify_cpu_us_per_step"], 3, "µs", ".1f",
        next="reading the 21 columns of a step takes 2.7 µs; store fewer",
    ),
    Figure(
        "record without a model, bytes a bar", REPLAY,
        lambda document: document["database_bytes_per_bar"], 110, form=".0f",
    ),
    Figure(
        "memory at a quarter of a replay, and at its end", REPLAY,
        lambda document: (document["rss_mb_at_a_quarter"], document["rss_mb_at_the_end"]), 150,
        "MB", ".0f",
    ),
    Figure(
        "an explained bar of the default model, times its network's own scan", MODEL,
        lambda document: document["bar_to_network_alone"], 1.6, form=".1f",
        next="the row model, the engine and the shadow account exceed it alone",
    ),
    Figure(
        "the log of an explained bar", MODEL,
        lambda document: document["log_cpu_us_per_bar"], 15, "µs", ".0f",
        next="take explained bars as columns, as quiet stretches are",
    ),
    Figure(
        "record with the default model, bytes a bar", MODEL,
        lambda document: document["database_bytes_per_bar"], 940, form=",.0f",
        next="a row repeats what did not change",
    ),
    Figure(
        "a bar of `informer-1m`, explained and stored", INFORMER,
        lambda document: document["bar_cpu_ms"], 4, "ms", next="its network is .9 of it",
    ),
    Figure(
        "a live step without a model, p50 beyond a bare commit, wall", BARE,
        lambda document: document["without_model_beyond_bare_commit_p50"], 0.4, "ms",
        next="the quote before the bar is a step of the same commit",
    ),
    Figure(
        "a live step with the default model, p50, wall", LIVE,
        lambda document: document["with_model_ms"]["p50"], 5, "ms",
    ),
    Figure(
        "200 symbols that close at once, to the last commit, with the default model, p50, wall",
        CLOSES, lambda document: document["with_model_ms"]["p50"], 400, "ms", ".1f",
    ),
    *(
        Figure(
            f"explanation of one decision over a flash forward, {shown}, by length", ATTENTION,
            masked(mask, DECISION), 0.35, next=OVERHEAD,
        )
        for mask, shown in (("causal", "causal"), ("window", "window"), ("full", "full"))
    ),
    Figure(
        "the same without compiled loops, causal", ATTENTION,
        masked("causal", "without loops ÷ flash"), 0.6, next="as with loops",
    ),
    Figure(
        "every bar explained in one pass over the forward, causal", ATTENTION,
        masked("causal", "every bar ÷ flash"), 0.3, next="as of one decision",
    ),
    Figure(
        "whole rows of a captured layer over torch's attention, and the entropy of all rows",
        ATTENTION,
        lambda document: (
            document[LAYER][0]["whole rows ÷ sdpa"],
            document[LAYER][0]["entropy of all rows ÷ sdpa"],
        ), 1,
    ),
    Figure(
        "capture and rollout of a Llama over its forward (transformers' matrices 1.1 to 1.2)",
        ATTENTION, llama("capture"), 1.7,
    ),
    Figure(
        "the default network's streaming scan, explained, over a batched forward", ATTENTION,
        lambda document: document[STREAM][0]["÷ a batched forward"], 1.3,
        next="the ring is copied at each chunk",
    ),
    Figure(
        "a live step of attention, explained", ATTENTION,
        lambda document: document[STREAM][0]["live step ms"], 0.8, "ms",
        next="half of it starts torch's operators",
    ),
    Figure(
        "explanation of one decision over a flash forward on a GPU, causal, 4,096 bars, wall", CUDA,
        masked("causal", DECISION), 0.35,
        next="72 kernels are started from Python; a captured graph would start them at once",
    ),
    Figure(
        "a what-if over a month of minutes, the whole command, CPU time", YEAR,
        lambda document: document["whatif_month_cpu_s"], 1, "s",
    ),
    Figure(
        "a what-if over a year of minutes without a model, the same", YEAR,
        lambda document: document["whatif_year_cpu_s"], 5, "s",
    ),
    Figure(
        "first paint of the page: a year of minutes, a year of explained bars, wall", YEAR,
        of_pages("first_paint_ms"), 1_000, "ms", ",.0f",
    ),
    Figure(
        "from a click to the card of another bar, p95, the same, wall", YEAR,
        of_pages("card_p95_ms"), 100, "ms", ".0f",
    ),
    Figure(
        "one decision derived again on the page, the same, wall", YEAR,
        of_pages("verify_ms"), 1_000, "ms", ",.0f",
    ),
)  # fmt: skip


def documents() -> dict[str, Any]:
    """Return what each command measured last."""
    return dict(json.loads(RESULTS.read_text(encoding="utf-8")))


def page() -> str:
    """Return the page of the figures, with the table and the open work that it surrounds."""
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition("| figure |")
    _, between, after = rest.partition("\n\n## Measured")
    assert mark, "deploy/FIGURES.md has lost its table"
    measured = documents()
    rows, missed = [], []
    for each in FIGURES:
        result = measured[each.command]
        read = each.read(result["document"])
        values = read if isinstance(read, Sequence) else [read]
        unit = f" {each.unit}" if each.unit else ""
        text = ", ".join(format(value, each.form) for value in values) + unit
        target = format(each.target, each.form) + unit
        met = all(
            (value >= each.target) is each.at_least or value == each.target for value in values
        )
        rows.append(
            f"| {each.name} | `{each.command}` | {text} | {target} |"
            f" {'' if met else 'missed'} | {result['date']} | {result['machine']} |"
        )
        if not met:
            missed.append(f"- {each.name}: {each.next or 'no cause is known'};")
    head = (
        "| figure | command | measured | target | | date | machine |\n|---|---|---|---|---|---|---|"
    )
    table = "\n".join((head, *rows))
    work = "## Open work\n\nTargets that the table misses, and what to try next:\n\n" + "\n".join(
        missed
    )
    return f"{before}{table}\n\n{work.removesuffix(';')}.{between}{after}"


def measure(word: str) -> None:
    """Run the commands that hold *word*; keep what they print."""
    measured = documents() if RESULTS.exists() else {}
    for command in dict.fromkeys(each.command for each in FIGURES):
        if word not in command or (command == CUDA and word != "cuda"):
            continue
        sys.stdout.write(f"{command}\n")
        program, *words = command.split()
        done = subprocess.run(
            [str(BIN / program), *words, "--json"], stdout=subprocess.PIPE, text=True, check=True
        )
        document = json.loads(done.stdout)
        processor, cores, load = str(document.pop("machine")).split(", ")[1:4]
        processor = processor.replace("(R)", "").removesuffix(" Processor")
        measured[command] = {
            "date": iso(SystemClock().wall_ms())[:10],
            "machine": f"{processor}, {cores}, {load.rsplit(' ', 2)[0]}",
            "document": document,
        }
        RESULTS.write_text(f"{json.dumps(measured, indent=1)}\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    measure(sys.argv[1] if len(sys.argv) > 1 else "")
