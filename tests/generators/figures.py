"""Measures the product and writes deploy/FIGURES.md: `make bench`.

``make bench ONLY=replay`` runs only the commands that hold that text; the others keep what they
measured last, which ``deploy/figures.json`` holds with its date and machine. The table follows from
that file. A figure that is beyond its limit, which other machines and other work leave as it is,
fails the command.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from programs import BIN, ROOT

from tracepaper.daemon.clock import SystemClock
from tracepaper.strategies.units import iso

RESULTS: Final = ROOT / "deploy" / "figures.json"
PAGE: Final = ROOT / "deploy" / "FIGURES.md"
INGEST: Final = "python tests/benchmarks/ingest.py"
REPLAY: Final = "python tests/benchmarks/replay_speed.py --bars 50000"
SIGNALS: Final = "python tests/benchmarks/replay_speed.py --signals --bars 50000"
MODEL: Final = "python tests/benchmarks/replay_speed.py --model"
INFORMER: Final = "python tests/benchmarks/replay_speed.py --checkpoint informer-1m"
BARE: Final = "python tests/benchmarks/live_step.py --no-model"
LIVE: Final = "python tests/benchmarks/live_step.py"
CLOSES: Final = "python tests/benchmarks/live_step.py --symbols 200"
ATTENTION: Final = "tracepaper bench attention"
CUDA: Final = "tracepaper bench attention --device cuda"
MECHANISMS: Final = "tracepaper bench attention --section mechanisms"
PASSAGES: Final = "tracepaper bench attention --section passages"
MEMORY: Final = "tracepaper bench attention --section memory"
OPERATIONS: Final = "tracepaper bench attention --section operations"
YEAR: Final = "python tests/benchmarks/year.py"
WORTH: Final = "python tests/benchmarks/worth.py"
RECURSION: Final = "python tests/benchmarks/recursion.py"
COMMAND: Final = "python tests/benchmarks/whole_command.py"
ACCOUNT: Final = "python tests/benchmarks/account.py"
BESIDE: Final = "an explanation beside the flash forward"
LAYER: Final = "one captured layer beside its attention"
LLAMA: Final = "a Llama of 4 layers, 2,048 tokens"
SHARED: Final = "a Llama of 4 layers, 8 passages"
STREAM: Final = "the default network as a stream"
PEAKS: Final = "peak memory beyond the inputs, causal"
LENGTHS: Final = "1,024 to 16,384 bars"


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
    limit: float | None = None
    """Beyond it `make bench` fails: a ratio, memory or bytes, which hold on every machine."""

    def of(self, document: Any) -> Sequence[float]:
        """Return what *document* says of it: one value, or several."""
        values = self.read(document)
        return values if isinstance(values, Sequence) else [values]

    def holds(self, values: Sequence[float], bound: float) -> bool:
        """Return whether *values* keep to *bound*."""
        return all(value == bound or (value > bound) is self.at_least for value in values)

    def shown(self, values: Sequence[float]) -> str:
        """Return *values* as the table shows them."""
        text = ", ".join(format(value, self.form) for value in values)
        return f"{text} {self.unit}" if self.unit else text


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


def of_lengths(title: str, key: str) -> Callable[[Any], list[float]]:
    """Return a reader of *key* of each length of the table *title*."""
    return lambda document: [row[key] for row in document[title] if key in row]


def times_stored(document: Any) -> float:
    """Return the memory of stored matrices over that of one explained decision."""
    row = next(row for row in document[PEAKS] if row.get("bars") == 4_096)
    return float(row["stored matrices MB"] / row["one decision MB"])


def peak_of(route: str) -> Callable[[Any], float]:
    """Return a reader of the peak of *route*."""
    return lambda document: next(row[route] for row in document[PEAKS] if route in row)


def of_pages(key: str) -> Callable[[Any], list[float]]:
    """Return a reader of *key* of the pages of both years."""
    return lambda document: [
        document[name][key] for name in ("page_of_a_year", "page_of_explained_bars")
    ]


DECISION: Final = "one decision ÷ flash"
OVERHEAD: Final = (
    "read the rows of fewer layers: a row needs 33 of the forward's 64 multiply-adds per pair; of "
    "a decision of flash-1m 1 % of the tiles are below 1e-9, so that skipping those saves nothing"
)
FIGURES: Final = (
    Figure(
        "frames of an open candle, most of a stream, read and checked, per CPU second", INGEST,
        lambda document: document["frames_per_cpu_s"]["open"], 600_000, form=",.0f", at_least=True,
        next="parse fewer fields of a frame; today all are parsed and checked",
    ),
    Figure(
        "replayed bars without a model, per CPU second", REPLAY,
        lambda document: document["bars_per_cpu_s"], 50_000, form=",.0f", at_least=True,
    ),
    Figure(
        "time of a replayed bar ÷ that of a plain loop without engine or log", REPLAY,
        lambda document: document["times_plain_loop"], 5, form=".1f", limit=9,
        next="inserting the row is a quarter, building it another, the engine a third",
    ),
    Figure(
        "the same ratio for a class with `signals`, and by its engine alone", SIGNALS,
        lambda document: (
            document["recorded_times_plain_loop"], document["alone_times_plain_loop"]
        ), 5, form=".1f", limit=9,
        next="a Bar for each row of the archive, then a row for each step",
    ),
    Figure(
        "the same ratio for a bar of two symbols that close together", REPLAY,
        lambda document: document["times_plain_loop"] * document["two_symbols_times_one"] / 2,
        8, form=".1f", limit=13,
        next="derive the event row of a complete close instead of storing it",
    ),
    Figure(
        "replayed bars of a strategy with history, stop and notes, per CPU second", REPLAY,
        lambda document: document["history_stop_notes_bars_per_cpu_s"], 25_000, form=",.0f",
        at_least=True,
    ),
    Figure(
        "time of a bar in a run that is not stored", REPLAY,
        lambda document: document["trial_in_memory_cpu_us_per_bar"], 5, "µs", ".1f",
        next="half is the calls of each bar, a quarter the steps that trade",
    ),
    Figure(
        "time of a step in `audit verify`", REPLAY,
        lambda document: document["audit_verify_cpu_us_per_step"], 3, "µs", ".1f",
        next="2.7 with commits of 1,000 steps: hash the rows of a commit in parts",
    ),
    Figure(
        "record without a model, bytes per bar", REPLAY,
        lambda document: document["database_bytes_per_bar"], 110, form=".0f", limit=110,
    ),
    Figure(
        "memory at a quarter of a replay, and at its end", REPLAY,
        lambda document: (document["rss_mb_at_a_quarter"], document["rss_mb_at_the_end"]), 150,
        "MB", ".0f", limit=170,
    ),
    Figure(
        "time of an explained bar of the default model ÷ that of its network's scan", MODEL,
        lambda document: document["bar_to_network_alone"], 1.6, form=".1f", limit=3.2,
        next="row model, engine and shadow account alone exceed the target",
    ),
    Figure(
        "time to store an explained bar", MODEL,
        lambda document: document["log_cpu_us_per_bar"], 15, "µs", ".0f",
        next="lay rows out from the forecasts' arrays; SQLite takes 7 µs of 850 bytes a row",
    ),
    Figure(
        "record with the default model, bytes per bar", MODEL,
        lambda document: document["database_bytes_per_bar"], 940, form=",.0f", limit=940,
        next="store only the values of a row that changed",
    ),
    Figure(
        "time of a bar of `informer-1m`, explained and stored", INFORMER,
        lambda document: document["bar_cpu_ms"], 4, "ms", next="the network takes 90 % of the time",
    ),
    Figure(
        "median wall time of a live step without a model, less a bare commit", BARE,
        lambda document: document["without_model_beyond_bare_commit_p50"], 0.4, "ms",
        next="leave the quote's step out of the bar's commit",
    ),
    Figure(
        "median wall time of a live step with the default model", LIVE,
        lambda document: document["with_model_ms"]["p50"], 5, "ms",
    ),
    Figure(
        "median wall time from the close of 200 symbols to the last commit, default model",
        CLOSES, lambda document: document["with_model_ms"]["p50"], 400, "ms", ".1f",
    ),
    *(
        Figure(
            f"time to explain one decision ÷ that of flash attention, {shown} mask, {LENGTHS}",
            ATTENTION, masked(mask, DECISION), 0.35, next=OVERHEAD, limit=0.5,
        )
        for mask, shown in (("causal", "causal"), ("window", "window"), ("full", "full"))
    ),
    Figure(
        f"the same without compiled loops, causal mask, {LENGTHS}", ATTENTION,
        masked("causal", "without loops ÷ flash"), 0.6, next="as with compiled loops", limit=1.2,
    ),
    Figure(
        "time to explain every bar at once ÷ that of flash attention, causal, 1,024 to 8,192 bars",
        ATTENTION, masked("causal", "every bar ÷ flash"), 0.3, limit=0.8,
        next="as for one decision",
    ),
    Figure(
        "times of weights and of entropies from a captured layer ÷ that of PyTorch's attention",
        ATTENTION,
        lambda document: (
            document[LAYER][0]["whole rows ÷ sdpa"],
            document[LAYER][0]["entropy of all rows ÷ sdpa"],
        ), 1, limit=1,
    ),
    Figure(
        "time of a Llama's forward with rollout ÷ without (with stored matrices: 1.1 to 1.2)",
        ATTENTION, llama("capture"), 1.7, limit=1.7,
    ),
    Figure(
        "time of a Llama's forward with eight passages ÷ without, 1,024 and 4,096 tokens", PASSAGES,
        of_lengths(SHARED, "with passages ÷ forward"), 1.6, limit=1.6,
    ),
    Figure(
        "time of the default network's explained stream ÷ that of a batched forward", ATTENTION,
        lambda document: document[STREAM][0]["÷ a batched forward"], 1.3, limit=1.5,
        next="do not copy the ring buffer at each chunk",
    ),
    Figure(
        "time of a live attention step, explained", ATTENTION,
        lambda document: document[STREAM][0]["live step ms"], 0.8, "ms",
        next="half of the time goes into starting PyTorch's operators",
    ),
    Figure(
        "wall time to explain one decision ÷ that of flash attention on a GPU, causal, 4,096 bars",
        CUDA, masked("causal", DECISION), 0.35,
        next="start the 72 kernels by one captured CUDA graph; today Python starts each",
    ),
    Figure(
        "times of causal, window, full, linear, ProbSparse and chunked attention ÷ dense,"
        " 4,096 bars",
        MECHANISMS,
        lambda document: of_lengths("mechanisms beside dense attention", "÷ dense")(document)[1:],
        1, limit=1,
    ),
    Figure(
        f"products of ProbSparse ÷ those of dense attention, {LENGTHS}", OPERATIONS,
        of_lengths("operations of ProbSparse", "÷ dense"), 1, form=".3f", limit=0.6,
    ),
    Figure(
        "memory of stored matrices ÷ that of one explained decision, causal, 4,096 bars", MEMORY,
        times_stored, 30, form=".0f", at_least=True, limit=30,
    ),
    Figure(
        "peak memory of an explanation of 100,000 tokens of order books", MEMORY,
        peak_of("order book, explained MB"), 100, "MB", ".0f", limit=100,
    ),
    Figure(
        "peak memory of an explanation of 100 symbols of 2,048 bars", MEMORY,
        peak_of("cross-asset, explained MB"), 600, "MB", ".0f", limit=600,
    ),
    Figure(
        "QLIKE of 16 bars forecast by four answers of 4 bars ÷ that of one answer", RECURSION,
        lambda document: document["qlike_carried_on"] / document["qlike_answered"], 1,
        at_least=True, limit=0.9,
    ),
    Figure(
        "a report over 36 files of 7,200 minutes ÷ that of one file of the same bars", ACCOUNT,
        lambda document: document["report_of_files_times_one"], 1.2, limit=1.4,
    ),
    Figure(
        "a rotation between two closes, CPU time for 500 MB", ACCOUNT,
        lambda document: document["rotation_cpu_s_per_500_mb"], 3, "s",
    ),
    Figure(
        "a replay of a year of five-minute bars, its log and the whole command, CPU time", COMMAND,
        lambda document: document["replay_cpu_s"], 1.7, "s",
        next="a third is imports; of the rest half is the log, and half of that SQLite's",
    ),
    Figure(
        "a what-if over a month of minutes, the whole command, CPU time", YEAR,
        lambda document: document["whatif_month_cpu_s"], 1, "s",
        next="45 % of it is imports; import less",
    ),
    Figure(
        "a what-if over a year of minutes without a model, the same", YEAR,
        lambda document: document["whatif_year_cpu_s"], 5, "s",
        next="quiet stretches take a third; compare a stretch as columns",
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
    Figure(
        "risk of 100 positions, over a year of their hours, CPU time", WORTH,
        lambda document: document["risk_cpu_s"], 0.5, "s",
    ),
    Figure(
        "a re-run of `report --stress` over a year of minutes without a model, CPU time", WORTH,
        lambda document: document["stress_rerun_cpu_s"], 6, "s",
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
        values = each.of(result["document"])
        met = each.holds(values, each.target)
        target = each.shown([each.target])
        limit = "" if each.limit is None else each.shown([each.limit])
        rows.append(
            f"| {each.name} | `{each.command}` | {each.shown(values)} | {target} | {limit} |"
            f" {'' if met else 'missed'} | {result['date']} | {result['machine']} |"
        )
        if not met:
            missed.append(f"- {each.name}: {each.next or 'the cause is not known'};")
    head = (
        "| figure | command | measured | target | limit | | date | machine |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    table = "\n".join((head, *rows))
    work = "## Open work\n\nMissed targets of the table, and what to try next:\n\n" + "\n".join(
        missed
    )
    return f"{before}{table}\n\n{work.removesuffix(';')}.{between}{after}"


def commands(text: str) -> list[str]:
    """Return the commands that hold *text*; the one for a GPU only where *text* names it."""
    held = (each.command for each in FIGURES if text in each.command)
    return [each for each in dict.fromkeys(held) if each != CUDA or "cuda" in text]


def beyond(measured: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each figure of *measured*, by command, that is beyond its limit."""
    return [
        f"{each.name}: {each.shown(values)} is beyond its limit of {each.shown([each.limit])}"
        for each in FIGURES
        if each.limit is not None
        and each.command in measured
        and not each.holds(values := each.of(measured[each.command]["document"]), each.limit)
    ]


def measure(text: str) -> list[str]:
    """Run the commands that hold *text*; keep what they print, and return what is beyond limits."""
    measured = documents() if RESULTS.exists() else {}
    if not (chosen := commands(text)):
        raise SystemExit(f"No command holds {text!r}; deploy/FIGURES.md lists them.")
    for command in chosen:
        sys.stdout.write(f"{command}\n")
        program, *words = command.split()
        json_option = ["--json"] if program == "tracepaper" else []
        done = subprocess.run(
            [str(BIN / program), *words, *json_option],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
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
    return beyond({command: measured[command] for command in chosen})


if __name__ == "__main__":
    if too_much := measure(sys.argv[1]):
        raise SystemExit("\n".join(too_much))
