"""The live view: a Textual application in a separate process on the terminal.

It reads what to show from a pipe. It ends when the pipe closes, so the terminal is restored even
if the daemon is killed. The rules are docs/operations.md, O29 and O30.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Footer, Input, Static

from tracepaper.daemon.http.client import give
from tracepaper.daemon.terminal.screen import STOP, Status, apply_change, screen
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.market import CommandKind
from tracepaper.strategies.units import visible

EFFECTS: Final = {
    CommandKind.HALT: "holds everything: no new exposure until RESUME",
    CommandKind.RESUME: "lifts the halt",
    CommandKind.FLATTEN: "halts, and closes every position",
}
LEAVE: Final = "leave"
HELP: Final = """\
tab     next symbol (shift-tab: the one before)
h       HALT, with a note
r       RESUME, with a note
f       FLATTEN: halt, and close every position
q       stop the daemon, or leave this view
ctrl-c  stop the daemon
?       these keys

Gates are shown where they failed (✗), or passed with at
most a tenth of their threshold to spare (!)."""


class Board(Widget):
    """The lines of the run's state, as many as fit the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.status: Status = {"bars_per_s": 0.0}
        self.chosen = ""  # the instrument shown in full

    def render(self) -> Text:
        """Draw the state."""
        width, height = self.size
        return Text("\n", no_wrap=True).join(screen(self.status, width, height, self.chosen))

    def turn(self, by: int) -> None:
        """Show the instrument *by* places further."""
        if names := list(self.status.get("instruments", ())):
            place = names.index(self.chosen) if self.chosen in names else 0
            self.chosen = names[(place + by) % len(names)]
            self.refresh()


class Dialog(ModalScreen[str]):
    """Asks for one of *keys* or a note; returns the key's word, the note, or None on Escape."""

    def __init__(
        self, question: str, keys: Mapping[str, str] | None = None, *, takes_note: bool = False
    ) -> None:
        super().__init__()
        self._question = question
        self._keys = keys or {}
        self._takes_note = takes_note

    def compose(self) -> ComposeResult:
        """Lay out the question above the note."""
        with Vertical():
            yield Static(self._question, markup=False)
            if self._takes_note:
                yield Input(placeholder="note, stored with the event")

    def on_key(self, event: Key) -> None:
        """Answer with a key."""
        if event.key == "escape":
            self.dismiss(None)
        elif event.key in self._keys:
            self.dismiss(self._keys[event.key])
        else:
            return
        event.stop()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer with the note."""
        self.dismiss(event.value)


class LiveView(App[None]):
    """The live view of one daemon."""

    TITLE = "tracepaper"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Board { height: 1fr; }
    FooterKey .footer-key--key { color: ansi_cyan; }
    Dialog { align: center middle; }
    Dialog Vertical { width: 62; max-width: 100%; height: auto; padding: 0 1; }
    Dialog Vertical { border: round ansi_cyan; }
    Dialog Input { border: none; height: 1; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit_or_leave", "quit"),
        *(Binding(kind[0].lower(), f"command('{kind}')", kind.lower()) for kind in EFFECTS),
        Binding("tab", "turn(1)", "next", priority=True),
        Binding("shift+tab", "turn(-1)", show=False, priority=True),
        Binding("question_mark", "keys", "keys", key_display="?"),
    ]

    def __init__(self, pipe: Connection, database: Path) -> None:
        super().__init__()
        self.theme = "ansi-dark"  # uses the terminal's colours, on a light background too
        self._pipe = pipe
        self._database = database
        self._board = Board()

    def compose(self) -> ComposeResult:
        """Lay out the board above the keys."""
        yield self._board
        yield Footer()

    def on_mount(self) -> None:
        """Listen to the daemon."""
        # After the daemon's end, the shell may treat this process as a background one.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._receive)

    def on_unmount(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())

    def _receive(self) -> None:
        """Apply the daemon's messages; exit when the pipe closes."""
        try:
            while self._pipe.poll():
                apply_change(self._board.status, self._pipe.recv())
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self.exit()
        self._board.refresh()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave the tab keys to an open dialog."""
        del parameters
        return action != "turn" or len(self.screen_stack) == 1

    def action_turn(self, by: int) -> None:
        """Show another symbol."""
        self._board.turn(by)

    def action_keys(self) -> None:
        """Show what the keys do."""
        self.push_screen(Dialog(HELP, dict.fromkeys(("question_mark", "enter", "q"), "")))

    def action_quit_or_leave(self) -> None:
        """Ask whether to stop the daemon or only leave the view."""

        def answered(word: str | None) -> None:
            if word == STOP:
                self._pipe.send(STOP)
                self.notify("Stopping: the daemon finishes the step in hand.")
            elif word == LEAVE:
                self.exit()

        question = (
            "s    stop the daemon\n"
            "l    leave the view: the daemon goes on, with log lines here\n"
            "esc  stay"
        )
        self.push_screen(Dialog(question, {"s": STOP, "l": LEAVE}), answered)

    def action_command(self, word: str) -> None:
        """Send the operator's command *word* after a confirmation."""
        kind = CommandKind(word)

        def answered(note: str | None) -> None:
            if note is not None:
                self.run_worker(partial(self._command, kind, note), thread=True)

        question = f"{kind} {EFFECTS[kind]}.\nenter: give the command    esc: do not"
        self.push_screen(Dialog(question, takes_note=True), answered)

    def _command(self, kind: CommandKind, note: str) -> None:
        """Send the command over the daemon's HTTP interface, as ``tracepaper command`` does."""
        try:
            answer = give(self._database, kind, note)
        except TracepaperError as error:
            self.notify(visible(str(error)), severity="error", timeout=20, markup=False)
        else:
            self.notify(f"{kind} is event {answer['sequence']} of the run.")


def main() -> None:
    """Run the view; the command line names the pipe's file descriptor and the database."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the daemon, which ends this view
    number, database = sys.argv[1:]
    view = LiveView(Connection(int(number)), Path(database))
    view.run(mouse=False)  # so that the terminal's own text selection works
    sys.exit(view.return_code)


if __name__ == "__main__":
    main()
