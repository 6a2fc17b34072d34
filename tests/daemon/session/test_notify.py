"""Sending notices never delays or ends a run, and shows no secret.

Tests of "the real thread" use Apprise; in the others a stand-in takes the messages.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import builders
import msgspec
import pytest
from bybit_server import ScriptedServer
from command_line import Cli
from daemon_under_test import check_record, daemon
from fakes import ManualClock
from notify_cases import receivers
from prometheus_client import generate_latest
from structlog.testing import capture_logs
from waiting import deadline_s, until

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.notify import NotifySection
from tracepaper.daemon.http.client import ask
from tracepaper.daemon.http.metrics import registry_of
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.session import messenger as messenger_module
from tracepaper.daemon.session.messenger import (
    BODY_MOST,
    END_S,
    LINES_MOST,
    QUEUE_MOST,
    AppriseSender,
    Delivery,
    Message,
    Messenger,
    Send,
    deliver,
    services_of,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import Command, CommandKind

ADDRESS = "env:HOOK"
HELLO = Message("tracepaper: test", "hello <b>& all")
SECRET = "hunter2Hunter2hunter2"


class Sending:
    """A sender that keeps what it was given."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.hangs = False
        self.errors: dict[str, str] = {}

    async def __call__(self, address: str, message: Message) -> str:
        self.sent.append(message)
        if self.hangs:
            await asyncio.Event().wait()
        return self.errors.get(address, "")


@pytest.fixture
def sending() -> Sending:
    return Sending()


def command(note: str, kind: CommandKind = CommandKind.HALT) -> Step:
    return builders.step(Command(kind, note, builders.START_MS, builders.START_MS))


def messenger(send: Send, frame_age_s: float = 0.0, **section: Any) -> Messenger:
    given = {"addresses": [ADDRESS], **section}
    config, run = load(None, {"notify": given}), builders.run()
    return Messenger(config, run, SystemClock(), send, frame_age_s=lambda: frame_age_s)


@asynccontextmanager
async def working(sender: Messenger) -> AsyncIterator[Messenger]:
    async with sender.in_background(pytest.fail):
        yield sender


def handled(sender: Messenger, count: int) -> Callable[[], bool]:
    return lambda: sender.counts["sent"] + sender.counts["failed"] >= count


# ---------------------------------------------------------------- one message after another


async def test_a_notice_is_sent_in_the_words_of_its_template(sending: Sending) -> None:
    words = {"halt": "{time} {strategy} {run}: {command} {note}"}
    async with working(messenger(sending, templates=words)) as sender:
        sender.observe(command("lunch"))
        await until(handled(sender, 1))
    (sent,) = sending.sent
    assert sent.title == "tracepaper BTCUSDT: halt"
    assert sent.body == (
        "2023-11-14T22:14Z attention run-7f3a: HALT no new exposure until RESUME (lunch)"
    )
    assert sender.counts == {"sent": 1, "failed": 0, "dropped": 0}


async def test_what_comes_faster_than_the_limit_goes_together(sending: Sending) -> None:
    sender = messenger(sending)
    for index in range(3):
        sender.observe(command(f"a{index}"))
    async with working(sender):
        await until(handled(sender, 1))
        for index in range(2):
            sender.observe(command(f"b{index}"))
        await until(handled(sender, 2))
    first, second = (sent.body.splitlines() for sent in sending.sent)
    assert [line.split("(")[1] for line in first] == ["a0)", "a1)", "a2)"]
    assert [line.split("(")[1] for line in second] == ["b0)", "b1)"]
    assert first[0] == "22:14Z HALT: no new exposure until RESUME (a0)"


async def test_a_message_tells_urgent_notices_first_and_counts_the_rest(sending: Sending) -> None:
    sender = messenger(sending)
    fill = builders.step(builders.bar(), fills=(builders.fill(),) * (LINES_MOST + 5))
    sender.observe(fill)
    sender.observe(command("x" * 10_000))
    async with working(sender):
        await until(handled(sender, 1))
    (sent,) = sending.sent
    halt, *lines, more = sent.body.splitlines()
    assert sent.title == "tracepaper BTCUSDT: notices"
    assert len(sent.body) < BODY_MOST + 100
    assert "HALT" in halt
    assert more == f"and {LINES_MOST + 5 - len(lines)} more: fills {LINES_MOST + 5 - len(lines)}"


def test_the_queue_is_bounded_and_says_what_it_dropped(sending: Sending) -> None:
    sender = messenger(sending)
    for _ in range(QUEUE_MOST + 7):
        sender.observe(command("x"))
    assert sender.counts["dropped"] == 7


async def test_what_is_not_sent_by_the_end_is_counted(sending: Sending) -> None:
    """The end waits ten seconds, then leaves what hangs."""
    sending.hangs = True
    sender = messenger(sending, timeout_s=60)
    async with working(sender):
        sender.observe(command("first"))
        await until(lambda: sending.sent)
        sender.observe(command("second"))
        begun_s = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - begun_s == pytest.approx(END_S, abs=0.1)
    assert sender.counts["dropped"] == 2  # the waiting one and the one being sent


async def test_the_notice_of_the_last_step_is_sent(sending: Sending) -> None:
    async with working(messenger(sending)) as sender:
        sender.observe(command("the last"))
    assert "the last" in sending.sent[-1].body
    assert sender.counts == {"sent": 1, "failed": 0, "dropped": 0}


async def test_a_lost_feed_is_noticed_without_any_step(sending: Sending) -> None:
    sender = messenger(sending, frame_age_s=130.0)
    async with working(sender):
        await until(handled(sender, 1))
    assert "feed lost: no data for 2" in sending.sent[0].body


# ---------------------------------------------------------------- failures


async def test_a_notice_that_cannot_be_made_ends_nothing(sending: Sending) -> None:
    strange = msgspec.structs.replace(builders.fill(), instrument="linear:UNKNOWN")
    with capture_logs() as lines:
        async with working(messenger(sending)) as sender:
            sender.observe(builders.step(builders.bar(), fills=(strange,)))
            sender.observe(command("after"))
            await until(handled(sender, 1))
    assert sender.counts == {"sent": 1, "failed": 0, "dropped": 1}
    assert [line["event"] for line in lines] == ["notice not made"]


async def test_no_decision_waits_for_a_message(sending: Sending, tmp_path: Path) -> None:
    """While a message is being sent, bars are decided and stored, and the stop is orderly."""
    sending.hangs = True
    section = {"addresses": [ADDRESS], "timeout_s": 600.0}
    async with ScriptedServer() as server:
        async with daemon(
            server, tmp_path / "run.db", sender=lambda _section: sending, notify=section
        ) as running:
            await running.close_bars(12)
            await running.until(lambda: sending.sent)
            await running.close_bars(8)  # each decision is awaited
        assert running.task.result() is None
    check_record(tmp_path / "run.db", bars=20)


# ---------------------------------------------------------------- the real thread


def referred(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> tuple[str, ...]:
    """Return references to *addresses*, which environment variables hold."""
    for place, address in enumerate(addresses):
        monkeypatch.setenv(f"NOTIFY_{place}", address)
    return tuple(f"env:NOTIFY_{place}" for place in range(len(addresses)))


@pytest.mark.sockets
async def test_each_temper_of_webhook_and_mail_server_is_met(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each address is told in its turn; Apprise ends those that say nothing for long."""
    async with receivers("takes", "slow", "refuses", "closes", "hangs") as servers:
        addresses = dict(servers.address)
        addresses["hook", "hangs"] += "?rto=1"
        addresses["mail", "hangs"] += "&cto=1"
        section = NotifySection(addresses=referred(monkeypatch, *addresses.values()))
        errors = [each.error for each in await sent_by_apprise(section)]
    of = dict(zip(addresses, errors, strict=True))
    for kind in ("hook", "mail"):
        assert (of[kind, "takes"], of[kind, "slow"]) == ("", ""), of
        assert all(of[kind, temper] for temper in ("refuses", "closes", "hangs")), of
    assert json.loads(servers.hooks[0])["message"] == HELLO.body
    assert "hello <b>& all" in servers.mails[0] or "hello &lt;b&gt;" in servers.mails[0]


async def sent_by_apprise(section: NotifySection) -> list[Delivery]:
    return await deliver(AppriseSender(section), section, HELLO)


@pytest.mark.sockets
async def test_a_send_without_end_fails_and_so_does_each_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A byte now and then is no silence: the thread is lost, and every delivery says so."""
    async with receivers("drips", "takes") as servers:
        addresses = [servers.address["hook", temper] for temper in ("drips", "takes")]
        section = NotifySection(addresses=referred(monkeypatch, *addresses), timeout_s=0.5)
        send = AppriseSender(section)
        errors = [each.error for _ in range(2) for each in await deliver(send, section, HELLO)]
    assert [error.split(",")[0].split(";")[0] for error in errors] == [
        "it took longer than notify.timeout_s",  # the hanging one
        "it took longer than notify.timeout_s",  # waits behind it
        "an earlier send has not ended",
        "an earlier send has not ended",
    ]


HANGING = """
import asyncio
from tracepaper.daemon.config.notify import NotifySection
from tracepaper.daemon.session.messenger import AppriseSender, Message, deliver
section = NotifySection(addresses=["env:HOOK"], timeout_s=0.5)
print(asyncio.run(deliver(AppriseSender(section), section, Message("t", "b")))[0].error)
"""


@pytest.mark.sockets
async def test_a_process_ends_though_a_send_hangs() -> None:
    async with receivers("hangs") as servers:
        address = servers.address["hook", "hangs"] + "?rto=3600"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", HANGING),
            env={**os.environ, "HOOK": address},
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(deadline_s(30)):
            printed, _ = await process.communicate()
    assert (process.returncode, printed[:14]) == (0, b"it took longer")


def files_below(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.rglob("*") if file.is_file()]


def given_up(lines: Sequence[Mapping[str, Any]]) -> int:
    return sum(line["event"] == "notice given up" for line in lines)


@pytest.mark.sockets
async def test_a_secret_of_a_notice_is_nowhere_but_at_its_receiver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A daemon trades while its addresses refuse and hang; no output shows a secret."""
    database, export = tmp_path / "run.db", tmp_path / "export"
    async with receivers("takes", "refuses", "hangs") as servers, ScriptedServer() as server:

        def secret(kind: str, temper: str) -> str:
            return servers.address[kind, temper].replace("://", f"://bob:{SECRET}@")

        (tmp_path / "hook").write_text(secret("hook", "refuses"), encoding="utf-8")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        monkeypatch.setenv("NOTIFY_A", secret("hook", "takes"))
        monkeypatch.setenv("NOTIFY_B", secret("hook", "hangs"))
        addresses = ["env:NOTIFY_A", "env:NOTIFY_B", "credential:hook"]
        section = {"addresses": addresses, "timeout_s": 2.0}
        with capture_logs() as lines:
            async with daemon(server, database, notify=section) as running:
                await running.close_bars(12)
                await asyncio.to_thread(ask, database, "/command", {"kind": "HALT", "note": "x"})
                await running.until(lambda: servers.hooks)
                await running.until(lambda: given_up(lines) >= 2)
                status: Any = await asyncio.to_thread(ask, database, "/status")
                await asyncio.to_thread(invoke, ["status", "--db", str(database)])
        named = f"notify.addresses={','.join(addresses)}"
        assert await asyncio.to_thread(invoke, ["notify", "test", "--set", named]) == 1
    texts = [json.dumps(status), repr(lines)]
    assert status["notices"]["sent"] >= 1
    assert status["notices"]["failed"] >= 2
    for words in (
        ["config", "show", "--set", named],
        ["audit", "export", "last", "--db", str(database), "--parquet", str(export)],
        ["audit", "sql", "SELECT * FROM v_runs", "--db", str(database)],
    ):
        assert invoke(words) == 0, words
    printed = capfd.readouterr()
    assert re.search(r"notices: [1-9]\d* sent, [1-9]\d* failed, 0 dropped", printed.out)
    texts += [printed.out, printed.err]
    written = files_below(tmp_path)
    kept = [text for text in written if not text.startswith(b"json://bob")]
    assert len(kept) == len(written) - 1  # everything except the credential itself
    assert b"credential:hook" in b"".join(kept)  # the searched files have content
    for text in [*texts, *(text.decode(errors="replace") for text in kept)]:
        assert SECRET not in text
        assert "bob" not in text


# ---------------------------------------------------------------- before a run starts


def test_a_run_begins_only_where_its_addresses_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    section = NotifySection(addresses=("env:NOTIFY_A",))
    assert [*services_of(section, {"NOTIFY_A": "json://x"})] == ["env:NOTIFY_A"]
    with pytest.raises(ConfigInvalid, match=r"^\[notify\] addresses: env:NOTIFY_A names"):
        services_of(section, {})
    with pytest.raises(ConfigInvalid, match="env:NOTIFY_A") as raised:
        services_of(section, {"NOTIFY_A": f"tgrm://{SECRET}/1"})
    assert SECRET not in str(raised.value)
    monkeypatch.setitem(sys.modules, "apprise", None)
    assert services_of(NotifySection()) == {}  # without addresses Apprise is not needed
    with pytest.raises(ConfigInvalid, match=r"tracepaper\[notify\]"):
        services_of(section, {"NOTIFY_A": "json://x"})


def test_a_test_without_addresses_says_what_to_write(cli: Cli) -> None:
    assert cli.err("notify", "test", code=2) == (
        '[notify] addresses is empty; name one, such as "env:NAME".\n'
    )


def test_the_command_says_what_became_of_each(
    sending: Sending, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(messenger_module, "AppriseSender", lambda _section: sending)
    words = ["notify", "test", "--set", "notify.addresses=env:HOOK_A,env:HOOK_B"]
    assert invoke(words) == 0
    assert capsys.readouterr().out == "env:HOOK_A: delivered\nenv:HOOK_B: delivered\n"
    sending.errors = {"env:HOOK_B": "no"}
    assert invoke([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["deliveries"][1]["error"] == "no"


def test_status_and_metrics_count_them() -> None:
    monitor = Monitor(run=builders.run(), clock=ManualClock(builders.START_MS))
    assert monitor.status()["notices"] is None
    assert b"tracepaper_notices" not in generate_latest(registry_of(monitor))
    monitor.companions["notices"] = lambda: {"sent": 3, "failed": 1, "dropped": 0}
    assert monitor.status()["notices"] == {"sent": 3, "failed": 1, "dropped": 0}
    assert b'tracepaper_notices_total{outcome="failed"} 1.0' in generate_latest(
        registry_of(monitor)
    )
