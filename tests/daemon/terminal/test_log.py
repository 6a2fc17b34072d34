"""Log lines: JSON where nobody watches, a console where somebody does."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from tracepaper.daemon.terminal.console import configure


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_json_where_nobody_watches() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    structlog.get_logger("feed").info("gap repaired", bars=3)
    logging.getLogger("library").warning("old %s", "thing")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert list(first) == ["timestamp", "level", "logger", "event", "bars"]
    assert (first["level"], first["logger"], first["event"], first["bars"]) == (
        "info",
        "feed",
        "gap repaired",
        3,
    )
    assert first["timestamp"].endswith("Z")
    assert (second["level"], second["logger"], second["event"]) == (
        "warning",
        "library",
        "old thing",
    )


def test_an_exception_is_one_line_of_json() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    nothing: dict[str, int] = {}
    try:
        nothing["lost"]
    except KeyError:
        structlog.get_logger("feed").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "KeyError: 'lost'" in json.loads(line)["exception"]


def test_a_terminal_gets_a_coloured_console_unless_it_declines() -> None:
    outputs = {}
    for name, environment in (("colour", {}), ("plain", {"NO_COLOR": "1"})):
        stream = Terminal()
        configure(stream=stream, environment=environment)
        structlog.get_logger("feed").info("gap repaired", bars=3)
        outputs[name] = stream.getvalue()
    assert "\x1b[" in outputs["colour"]
    assert "\x1b[" not in outputs["plain"]
    assert "gap repaired" in outputs["plain"]
    assert "bars=3" in outputs["plain"]


def test_the_format_can_be_forced() -> None:
    terminal = Terminal()
    configure(stream=terminal, output="json")
    structlog.get_logger("feed").info("a")
    assert json.loads(terminal.getvalue())["event"] == "a"
    stream = io.StringIO()
    configure(stream=stream, output="console")
    structlog.get_logger("feed").info("a")
    assert "\x1b[" not in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_our_lines_follow_the_level_and_libraries_speak_from_warnings_on() -> None:
    stream = io.StringIO()
    configure(level="warning", stream=stream)
    structlog.get_logger("feed").info("hidden")
    structlog.get_logger("feed").warning("ours")
    for level in ("debug", "info"):
        configure(level=level, stream=stream)
        logging.getLogger("aiohttp.access").info("hidden")
        logging.getLogger("matplotlib.font_manager").info("generated new fontManager")
        structlog.get_logger("feed").info("ours again")
        logging.getLogger("other").warning("theirs")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == [
        "ours",
        *("ours again", "theirs") * 2,
    ]
    assert not logging.getLogger("other").isEnabledFor(logging.INFO)


def test_lines_go_to_stderr_and_never_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    structlog.get_logger("feed").info("here")
    streams = capsys.readouterr()
    assert streams.out == ""
    assert json.loads(streams.err)["event"] == "here"
