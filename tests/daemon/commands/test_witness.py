"""``tracepaper witness``: keys, the state of a log, proofs, and their judgement."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from command_line import Cli
from witnessed import ORIGIN, WITNESS, Witnessed, witnessed

from tracepaper.daemon.commands.witness import application
from tracepaper.storage.witness.judge import NoteKey
from tracepaper.storage.witness.keys import key_text


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Witnessed:
    return witnessed(tmp_path_factory.mktemp("witness"), runs=2, bars=10)


def keys(case: Witnessed) -> tuple[str, ...]:
    return "--log", key_text(case.log), "--witness", key_text(case.witness)


def test_a_decision_and_a_run_are_attested_and_judged(
    case: Witnessed, cli: Cli, tmp_path: Path
) -> None:
    for step, begin in (
        ((9,), "This decision (BTCUSDT "),
        ((), f"Run {case.runs[1]} (number 2, 12"),
    ):
        path = tmp_path / "proof.json"
        path.write_text(cli.out("witness", "attest", "last", *step, "--db", case.database), "utf-8")
        assert cli.out("witness", "judge", path, *keys(case)).startswith(begin)
        path.write_text(path.read_text("utf-8").replace(case.runs[1], case.runs[0]))
        code, out, _ = cli("witness", "judge", path, *keys(case))
        assert (code, out[:36]) == (1, "Refused: The rows are not in the log")


def test_the_status_names_who_dated_how_much(case: Witnessed, cli: Cli) -> None:
    assert cli.out("witness", "status", "--db", case.database) == (
        f"{ORIGIN}: 24 of 24 commits dated by {WITNESS}\n"
    )
    assert cli.json("witness", "status", "--db", case.database)["ended"] == ""
    assert cli.out("witness", "key", "--db", case.database) == f"{key_text(case.log)}\n"


def test_keys_are_made_once_and_shown_again(cli: Cli, tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    made = cli.out("witness", "key", "--origin", "example.com/a", "--db", database).strip()
    assert NoteKey.parse(made).name == "example.com/a"
    again = "witness", "key", "--origin", "example.com/b", "--db", database
    assert "a key is never replaced" in cli.err(*again, code=2)
    witness = "witness", "key", "--witness", tmp_path / "w1"
    made = cli.out(*witness, "--origin", "w1.example")
    assert NoteKey.parse(made.strip()).kind == 4
    assert cli.out(*witness) == made


def test_what_no_witness_dated_is_not_attested(cli: Cli, tmp_path: Path) -> None:
    case = witnessed(tmp_path, bars=4)
    for command in (("attest", "last"), ("attest", "last", "3"), ("publish", tmp_path / "public")):
        assert "No witness has dated" in cli.err("witness", *command, "--db", case.database, code=1)


async def test_the_witness_answers_over_http(tmp_path: Path) -> None:
    case = witnessed(tmp_path, bars=4)
    log = case.extend()
    body = log.request(0, log.sign())
    async with TestClient[web.Request, web.Application](
        TestServer(application(case.cosigner))
    ) as client:
        answers = [await client.post("/add-checkpoint", data=body) for _ in range(2)]
        assert [answer.status for answer in answers] == [200, 409]
        assert (await answers[0].text()).startswith(f"— {WITNESS} ")
        assert answers[1].content_type == "text/x.tlog.size"
        assert await answers[1].text() == "6\n"
        huge = await client.post("/add-checkpoint", data="x" * 100_000)
        assert huge.status == 413
