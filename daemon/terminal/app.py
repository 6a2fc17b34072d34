"""The live view as an application of Textual, in a process of its own on the terminal.

It is told what to show over a pipe, whose end is its end: where the daemon dies, the terminal is
restored. The rules are docs/operations.md, O29 and O30.
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
from tracepaper.daemon.terminal.screen import STOP, Status, screen, take_in
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
    """The lines of the run's state, as many as the terminal has."""

    def __init__(self) -> None:
        super().__init__()
        self.status: Status = {"bars_per_s": 0.0}
        self.chosen = ""  # the instrument that is shown whole

    def render(self) -> Text:
        """Draw the state."""
        width, height = self.size
        return Text("\n", no_wrap=True).join(screen(self.status, width, height, self.chosen))

    def turn(self, by: int) -> None:
        """Show the instrument *by* places on."""
        if names := list(self.status.get("instruments", ())):
            place = names.index(self.chosen) if self.chosen in names else 0
            self.chosen = names[(place + by) % len(names)]
            self.refresh()


class Dialog(ModalScreen[str]):
    """Asks for one of *keys*, or for a note; answers with the key's word or the note.

    Escape answers nothing.
    """

    def __init__(
        self, words: str, keys: Mapping[str, str] | None = None, *, takes_note: bool = False
    ) -> None:
        super().__init__()
        self._words = words
        self._keys = keys or {}
        self._takes_note = takes_note

    def compose(self) -> ComposeResult:
        """Lay out the question above the note."""
        with Vertical():
            yield Static(self._words, markup=False)
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
        self.theme = "ansi-dark"  # the terminal's own colours, light ones too
        self._pipe = pipe
        self._database = database
        self._board = Board()

    def compose(self) -> ComposeResult:
        """Lay out the board above the keys."""
        yield self._board
        yield Footer()

    def on_mount(self) -> None:
        """Listen to the daemon."""
        # Once the daemon is gone, a shell may have put this process in its background.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._take)

    def on_unmount(self) -> None:
        """Listen no more."""
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())

    def _take(self) -> None:
        """Take in what the daemon has told; end with it."""
        try:
            while self._pipe.poll():
                take_in(self._board.status, self._pipe.recv())
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self.exit()
        self._board.refresh()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Let a dialog have the keys."""
        del parameters
        return action != "turn" or len(self.screen_stack) == 1

    def action_turn(self, by: int) -> None:
        """Show another symbol."""
        self._board.turn(by)

    def action_keys(self) -> None:
        """Say what the keys do."""
        self.push_screen(Dialog(HELP, dict.fromkeys(("question_mark", "enter", "q"), "")))

    def action_quit_or_leave(self) -> None:
        """Ask whether the daemon is to stop, or only the view."""

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
        """Send the operator's command *word*, once it is confirmed."""
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
    """Show what comes over the pipe whose file descriptor the command line names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the daemon, which ends this view
    number, database = sys.argv[1:]
    view = LiveView(Connection(int(number)), Path(database))
    view.run(mouse=False)  # the terminal's own selection goes on working
    sys.exit(view.return_code)


if __name__ == "__main__":
    main()
