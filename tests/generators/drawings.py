"""Draws the pictures of the pages under *Understand*: `make readme` writes docs/drawings.

A drawing is a list of boxes, arrows, bars and words on a canvas of 760 pixels; its colours follow
the reader's light or dark scheme.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from html import escape
from typing import Final

from programs import ROOT

FOLDER: Final = ROOT / "docs" / "drawings"
WIDTH: Final = 760
CHARACTER: Final = 6.7
"""Pixels of a character of 12 pixels, so that a box holds its words."""
LINE: Final = 16
STYLE: Final = """
text{font:12px ui-sans-serif,system-ui,sans-serif;fill:#24292f}
.title{font-weight:600}.note{fill:#57606a}
.box{fill:#f6f8fa;stroke:#8c959f}.main{fill:#ddf4ff;stroke:#0969da}.bad{fill:#ffebe9;stroke:#b3352c}
.arrow{stroke:#57606a;fill:none}.head{fill:#57606a}.bar{fill:#0969da}.pale{fill:#8c959f}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.note{fill:#9da7b1}
.box{fill:#161b22;stroke:#6e7681}.main{fill:#0c2d6b;stroke:#58a6ff}.bad{fill:#4c1512;stroke:#ff7b72}
.arrow{stroke:#9da7b1}.head{fill:#9da7b1}.bar{fill:#58a6ff}.pale{fill:#6e7681}}
"""
Place = tuple[float, float, float, float]
"""Left, top, width and height of a box."""


class Canvas:
    """A drawing *height* pixels high, whose title a screen reader reads out."""

    def __init__(self, title: str, height: int) -> None:
        self._title, self._height = title, height
        self._parts: list[str] = []

    def box(self, x: float, y: float, text: str, kind: str = "box", width: float = 0) -> Place:
        """Draw a box around the lines of *text*; return its place."""
        lines = text.split("\n")
        width = width or max(map(len, lines)) * CHARACTER + 22
        place = (x, y, width, len(lines) * LINE + 14)
        self.bar(*place, kind, corner=5)
        for number, line in enumerate(lines):
            kind_of_line = "title" if number == 0 and len(lines) > 1 else ""
            at_y = y + 20 + number * LINE
            self.words(x + width / 2, at_y, line, kind_of_line, anchor="middle")
        return place

    def bar(
        self, x: float, y: float, width: float, height: float, kind: str = "bar", corner: float = 0
    ) -> None:
        """Draw a filled rectangle."""
        self._parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
            f' rx="{corner:g}"/>'
        )

    def words(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """Write *text* with its base line at *y*."""
        self._parts.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def arrow(self, start: Place, end: Place, label: str = "") -> None:
        """Draw an arrow between two boxes, from the sides that face each other."""
        (x, y, width, height), (to_x, to_y, to_width, to_height) = start, end
        if x + width <= to_x or to_x + to_width <= x:
            right = x + width <= to_x
            points = (
                *(x + (width if right else 0), y + height / 2),
                *(to_x + (0 if right else to_width), to_y + to_height / 2),
            )
        else:
            below = y + height <= to_y
            middle = (max(x, to_x) + min(x + width, to_x + to_width)) / 2
            points = (
                *(middle, y + (height if below else 0)),
                *(middle, to_y + (0 if below else to_height)),
            )
        self.line(*points, label)

    def line(self, x: float, y: float, to_x: float, to_y: float, label: str = "") -> None:
        """Draw an arrow between two points."""
        angle = math.degrees(math.atan2(to_y - y, to_x - x))
        self._parts.append(
            f'<path class="arrow" d="M{x:g} {y:g}L{to_x:g} {to_y:g}"/>'
            f'<path class="head" d="M0 0l-8-4v8z"'
            f' transform="translate({to_x:g} {to_y:g})rotate({angle:g})"/>'
        )
        if label:
            vertical = abs(to_x - x) < abs(to_y - y)
            at = ((x + to_x) / 2 + (6 if vertical else 0), (y + to_y) / 2 - (-4 if vertical else 6))
            self.words(*at, label, "note", "start" if vertical else "middle")

    def svg(self) -> str:
        """Return the drawing as a file."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self._height}"'
            f' role="img"><title>{escape(self._title)}</title><style>{STYLE}</style>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


def path_of_a_bar() -> Canvas:
    """Draw the way of a bar from the exchange to the record."""
    canvas = Canvas("The path of one bar", 300)
    stream = canvas.box(10, 20, "stream of Bybit")
    archive = canvas.box(10, 80, "row of a file")
    feed = canvas.box(180, 42, "feed\nchecks, orders, stamps time", "main")
    canvas.arrow(stream, feed)
    canvas.arrow(archive, feed)
    model = canvas.box(470, 42, "model\nforecast and explanation", "main")
    canvas.arrow(feed, model, "an event")
    canvas.words(10, 150, "Engine: one event in, one step out", "title")
    x, before = 10.0, None
    for text in ("fill", "value", "observe", "forecast", "gates", "decide", "submit"):
        place = canvas.box(x, 165, text, "main")
        if before is not None:
            canvas.arrow(before, place)
        x, before = place[0] + place[2] + 34, place
    canvas.line(560, 88, 360, 162)
    canvas.words(10, 217, "An order that is submitted here is filled by a later event.", "note")
    commit = canvas.box(
        10, 240, "one commit\ndecision, gates, forecast, orders, fills, ledger, digest"
    )
    following = canvas.box(500, 248, "the next event")
    canvas.arrow(commit, following, "only then")
    return canvas


def paper_equals_backtest() -> Canvas:
    """Draw one engine between two feeds, and the nightly comparison."""
    canvas = Canvas("Why paper equals backtest", 250)
    live = canvas.box(10, 20, "live feed\nstream, REST, clock")
    replay = canvas.box(10, 150, "replay\na file, or a recorded run")
    engine = canvas.box(270, 78, "one engine\nno clock, no chance,\nfinite memory", "main")
    canvas.arrow(live, engine, "events")
    canvas.arrow(replay, engine, "events")
    record = canvas.box(530, 20, "record of the daemon\nevery value of every step")
    derived = canvas.box(530, 150, "derived again\nevery value of every step")
    canvas.arrow(engine, record)
    canvas.arrow(engine, derived)
    canvas.line(600, 68, 600, 148, "compared each night")
    canvas.words(530, 225, "identical 1440 of 1440", "title")
    return canvas


def paper_fills() -> Canvas:
    """Draw when and at what price quotes and candles fill."""
    canvas = Canvas("What a paper fill is", 270)
    canvas.words(10, 24, "By quotes", "title")
    close = canvas.box(10, 40, "close of the bar\ndecision")
    sent = canvas.box(210, 40, "+ latency\n100 ms and jitter")
    quote = canvas.box(410, 40, "first quote then\nfar side, size shown", "main")
    fill = canvas.box(610, 40, "fill\nprice, fee")
    for start, end in ((close, sent), (sent, quote), (quote, fill)):
        canvas.arrow(start, end)
    canvas.words(10, 130, "By candles", "title")
    x = 30
    for number, (low, high) in enumerate(((150, 220), (165, 235), (155, 205), (170, 225))):
        canvas.bar(x + 8, low, 2, high - low, "pale")
        canvas.bar(x, low + 14, 18, high - low - 30, "bar" if number == 2 else "pale")
        x += 70
    canvas.words(160, 252, "decided here", "note", "middle")
    canvas.line(109, 240, 109, 222)
    canvas.line(300, 190, 196, 190)
    canvas.box(304, 160, "filled at the next open\n± half the spread, slippage", "main")
    canvas.box(540, 160, "inside a bar\nthe worse path counts:\na stop before a target")
    return canvas


def gates_explained() -> Canvas:
    """Draw the three questions that a signal is asked."""
    canvas = Canvas("Gates", 210)
    places = [
        canvas.box(10, 30, "signal\nLONG, SHORT, FLAT"),
        canvas.box(185, 30, "integrity\nsound input?", "main"),
        canvas.box(330, 30, "judgement\nworth following?", "main"),
        canvas.box(495, 30, "risk\nwithin limits?", "main"),
        canvas.box(640, 30, "order\nto the target"),
    ]
    for start, end in itertools.pairwise(places):
        canvas.arrow(start, end)
    refused = canvas.box(
        225, 130, "HOLD, and refused_by names the gate\nposition, stops and orders stay", "bad", 310
    )
    for place in places[1:4]:
        middle = place[0] + place[2] / 2
        to_x = min(max(middle, refused[0] + 20), refused[0] + refused[2] - 20)
        canvas.line(middle, 76, to_x, 128, "no" if place is places[2] else "")
    return canvas


WEIGHTS: Final = (1, 1, 2, 1, 1, 3, 2, 1, 2, 1, 1, 2, 4, 2, 1, 2, 3, 5, 4, 7, 6, 9, 14)
"""Shares of bars that a rollout might show."""


def what_attention_shows() -> Canvas:
    """Draw the way from layers to one row of weights and its measures."""
    canvas = Canvas("What attention shows", 300)
    layers = [canvas.box(20, 20 + 52 * row, f"layer {3 - row}", width=330) for row in range(3)]
    for upper, lower in itertools.pairwise(layers):
        canvas.arrow(upper, lower)
    canvas.words(370, 43, "the decision's row begins here")
    canvas.words(370, 95, "each layer: half the weights, half unmixed", "note")
    canvas.words(370, 147, "only this row is computed, never the matrix", "note")
    base = 262
    canvas.line(185, 156, 185, 196)
    for number, weight in enumerate(WEIGHTS):
        canvas.bar(20 + 14.5 * number, base - 4.2 * weight, 11, 4.2 * weight)
    canvas.words(20, 282, "oldest bar", "note")
    canvas.words(350, 282, "newest bar", "note", "end")
    canvas.words(185, 282, "shares sum to 1", "title", "middle")
    row = (20.0, 200.0, 332.0, 60.0)
    for number, text in enumerate(
        (
            "entropy: few bars or all alike?",
            "recent mass: new or old bars?",
            "moved since the last bar?",
        )
    ):
        place = canvas.box(500, 186 + 36 * number, text, "main", width=235)
        canvas.arrow(row, place)
    return canvas


def what_the_record_proves() -> Canvas:
    """Draw the chain, and who finds which change."""
    canvas = Canvas("What the record proves", 260)
    before = None
    for number in range(4):
        place = canvas.box(
            10 + 185 * number,
            20,
            f"commit {number + 1}\nrows\nand digest {number or 'of the run'}",
            "bad" if number == 1 else "box",
            width=150,
        )
        if before is not None:
            canvas.arrow(before, place)
        before = place
    canvas.words(195, 102, "somebody changes a row", "note")
    for number, (change, check) in enumerate(
        (
            ("the row alone", "audit verify: its digest differs"),
            ("the row and every digest", "verify: it does not follow from the inputs"),
            ("an input, and all that follows", "a head that was kept elsewhere"),
        )
    ):
        left = canvas.box(10, 130 + 40 * number, change, width=250)
        canvas.arrow(left, canvas.box(330, 130 + 40 * number, check, "main", width=330), "found by")
    return canvas


def luck() -> Canvas:
    """Draw random accounts as a histogram, and the run among them."""
    canvas = Canvas("How much of a backtest is luck", 240)
    base, step = 190, 26
    for number in range(24):
        count = 120 * math.exp(-(((number - 10) / 4.6) ** 2)) + 3
        canvas.bar(60 + step * number, base - count, step - 3, count, "pale")
    run = 60 + step * 15 + (step - 3) / 2
    canvas.bar(run - 1.5, 40, 3, base - 40)
    canvas.words(run + 8, 50, "this run", "title")
    canvas.words(run + 8, 68, "beats 78 % of 200 random timings", "note")
    canvas.words(60, 50, "200 accounts with the same", "note")
    canvas.words(60, 66, "positions at random times", "note")
    canvas.line(60, base + 12, 60 + step * 24, base + 12)
    canvas.words(60, base + 32, "lower return", "note")
    canvas.words(60 + step * 24, base + 32, "higher return", "note", "end")
    return canvas


def what_models_can_do() -> Canvas:
    """Draw what can be forecast beside what a trade costs."""
    canvas = Canvas("What the models can and cannot do", 240)
    canvas.words(10, 24, "Basis points of the next hour, at a deviation of 50", "title")
    rows = (
        ("expected return of a good forecast", 2.5, "bar"),
        ("cost of a taker's round trip", 11, "pale"),
        ("deviation of the return", 50, "pale"),
    )
    for number, (text, size, kind) in enumerate(rows):
        y = 40 + 28 * number
        canvas.words(10, y + 14, text)
        canvas.bar(240, y, size * 9, 20, kind)
        canvas.words(248 + size * 9, y + 14, f"{size:g}")
    canvas.words(10, 150, "Signs that are right, of 100", "title")
    for number, (text, share) in enumerate((("a good forecast", 54), ("chance", 50))):
        y = 166 + 28 * number
        canvas.words(10, y + 14, text)
        canvas.bar(240, y, 450, 20, "box")
        canvas.bar(240, y, 4.5 * share, 20, "pale" if number else "bar")
        canvas.words(248 + 4.5 * share, y + 14, f"{share}")
    return canvas


def limits() -> Canvas:
    """Draw what is exact, modelled and unknown."""
    canvas = Canvas("Limits", 190)
    columns = (
        (
            "exact",
            "money and fees\norder of events\nwhat was decided\nthat it follows again",
            "main",
        ),
        (
            "modelled",
            "fills and latency\nthe path inside a bar\nmargin, liquidation\nforecasts",
            "box",
        ),
        ("unknown", "your effect on prices\nqueues without a book\nreturns to come\ncauses", "bad"),
    )
    for number, (title, text, kind) in enumerate(columns):
        canvas.box(10 + 250 * number, 20, f"{title}\n\n{text}", kind, width=230)
    canvas.words(10, 170, "A paper account is as true as the middle column.", "note")
    return canvas


def which_words() -> Canvas:
    """Draw the shares of passages for each generated word, as they might be."""
    canvas = Canvas("Where each word of an answer looked", 220)
    canvas.words(10, 24, "Where each word of an answer looked", "title")
    answer = (
        ("Rent", (62, 14, 9, 15)),
        ("is", (30, 12, 18, 40)),
        ("due", (58, 10, 8, 24)),
        ("Monday.", (12, 67, 6, 15)),
    )
    kinds = ("main", "bar", "box", "pale")
    for row, (word, shares) in enumerate(answer):
        y, x = 42 + 34 * row, 100.0
        canvas.words(90, y + 16, word, "", "end")
        for kind, share in zip(kinds, shares, strict=True):
            canvas.bar(x, y, 6.2 * share, 24, kind)
            x += 6.2 * share
    x = 100.0
    for kind, name in zip(kinds, ("contract", "e-mail", "question", "answer so far"), strict=True):
        canvas.bar(x, 188, 14, 14, kind)
        canvas.words(x + 20, 200, name, "note")
        x += 50 + len(name) * CHARACTER
    return canvas


DRAWINGS: Final[tuple[Callable[[], Canvas], ...]] = (
    path_of_a_bar,
    paper_equals_backtest,
    paper_fills,
    gates_explained,
    what_attention_shows,
    what_the_record_proves,
    luck,
    what_models_can_do,
    limits,
    which_words,
)


def main() -> None:
    """Write every drawing under the name of its page."""
    FOLDER.mkdir(exist_ok=True)
    for drawing in DRAWINGS:
        (FOLDER / f"{drawing.__name__}.svg").write_text(drawing().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
