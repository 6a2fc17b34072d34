"""A daemon reduced to what the live view sees of it: it shows bars, and waits for its end."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import structlog
from builders import bars, decision, fill, forecast, instrument, run, step

from tracepaper.daemon.terminal.console import configure
from tracepaper.daemon.terminal.live_view import live_view


def main(folder: Path) -> None:
    """Show bars until Ctrl-C; leave this process's id in *folder*."""
    configure()
    with live_view(database=folder / "none.db") as watcher:
        watcher.opened(run(instruments=(instrument(),)))
        for number, event in enumerate(bars(100)):
            fills = (fill(),) if number == 7 else ()
            decided = decision()
            watcher.watch(
                step(event, sequence=number, decided=decided, prediction=forecast(), fills=fills)
            )
        structlog.get_logger("run").warning("all is shown")
        (folder / "pid.new").write_text(f"{os.getpid()}\n")
        (folder / "pid.new").rename(folder / "pid")  # it exists only when it is whole
        with suppress(KeyboardInterrupt):
            signal.pause()
    sys.stdout.write("it has ended\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
