"""README and docs say what is true: their commands run, and answer as the pages show."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from answers import agree
from command_line import Cli
from programs import ROOT
from readme import (
    README,
    SAMPLES,
    Block,
    Outcome,
    Walk,
    blocks,
    changed,
    commands,
    file_name,
    pages,
)
from wheels import InstalledWheel

TEXTS = {page: page.read_text(encoding="utf-8") for page in pages()}
CHANGED = changed()
BLOCKS = [
    pytest.param(page, block, marks=() if page in CHANGED else pytest.mark.long)
    for page, text in TEXTS.items()
    for block in blocks(text)
    if block.language == "sh"
]
# Pages that were changed since they were last walked; the campaign walks all.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
WORDS_AT_MOST = 900
WITHIN = 0.01
"""How far a number may be from the one shown: forecasts differ a little between processors."""


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest,
    installed: InstalledWheel,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[Path, list[Outcome]]:
    """Read the pages once from the first to the last, and do what they say with the wheel."""
    walk = Walk(tmp_path_factory.mktemp("newcomer"), installed.extra)
    list(walk.outcomes(SAMPLES))
    walked = TEXTS if any(map(is_of_all, request.session.items)) else CHANGED
    return {page: list(walk.outcomes(TEXTS[page])) for page in walked}


def is_of_all(item: pytest.Item) -> bool:
    return item.path == Path(__file__) and item.get_closest_marker("long") is not None


def named(case: Path | Block) -> str:
    return case.stem if isinstance(case, Path) else commands(case)[0][:60]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=named)
def test_the_commands_run_and_answer_as_shown(
    page: Path, block: Block, outcomes: dict[Path, list[Outcome]]
) -> None:
    outcome = next(item for item in outcomes[page] if item.block == block)
    for line, code, wanted in outcome.codes:
        assert code == wanted, f"{line}\n{outcome.output[-2000:]}\n{outcome.errors[-2000:]}"
    assert "Traceback" not in outcome.errors
    if outcome.answer is not None:
        assert agree(outcome.answer.text, outcome.output, within=WITHIN), (
            f"run `make readme`; the answer is now\n{outcome.output}"
        )


def test_programs_that_go_on_end_in_good_order(outcomes: dict[Path, list[Outcome]]) -> None:
    ended = [item for outcome in outcomes.values() for item in outcome if not item.block.lines]
    assert ended  # the README starts a daemon
    for outcome in ended:
        (name, code, wanted) = outcome.codes[0]
        assert code == wanted, f"{name}\n{outcome.errors}"


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_every_answer_belongs_to_commands(page: Path) -> None:
    page_blocks = blocks(TEXTS[page])
    for before, after in itertools.pairwise(page_blocks):
        assert after.language != "text" or before.language == "sh"
    assert all(block.lines for block in page_blocks)


def unrun(text: str, *run: str) -> list[str]:
    """Return the commands in blocks of *text* whose language is none that is *run*.

    A script is run where a command names it.
    """
    parsed = blocks(text)
    called = {word for of in parsed if of.language == "sh" for word in of.text.split()}
    return [
        line
        for block in parsed
        if block.language not in ("text", *run) and file_name(block) not in called
        for line in block.lines
        if line.startswith(("tracepaper ", "$ "))
    ]


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_every_block_of_commands_is_run(page: Path) -> None:
    # By tests/product/test_library.py and test_dated_heads.py, and by the archive's test of Yahoo.
    others = {"library.md", "date_a_record.md", "shares.md"}
    elsewhere = ("bash",) if page.name in others else ()
    assert unrun(TEXTS[page], "sh", *elsewhere) == []
    assert unrun("```\ntracepaper demo\n```\n", "sh") == ["tracepaper demo"]
    script = "```bash\n# a.sh\ntracepaper demo\n```\n"
    assert unrun(script, "sh") == ["tracepaper demo"]
    assert unrun(f"{script}```sh\nsh a.sh\n```\n", "sh") == []


MAKES = re.compile(r"tracepaper (replay|sweep)\b|\bdb backup\b|backtest\(")
"""What a line does that makes a database."""


def made_elsewhere(text: str) -> set[str]:
    """Return the databases that blocks of *text* name before a line of it makes them."""
    here, lacking = {"tracepaper.db"}, set[str]()
    for block in blocks(text):
        lines = commands(block) if block.language == "sh" else [block.text]
        for line in lines if block.language in ("sh", "python") else ():
            named = set(re.findall(r"[\w-]+\.db\b", line))
            lacking |= set() if MAKES.search(line) else named - here
            here |= named
    return lacking


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_a_page_makes_the_databases_that_it_asks(page: Path) -> None:
    assert made_elsewhere(TEXTS[page]) == set()
    planted = "```sh\ntracepaper verify last --db run.db\n```\n"
    assert made_elsewhere(planted) == {"run.db"}


GROUPS = {"account", "audit", "bench", "config", "data", "db", "models", "notify"}
"""Commands that have commands."""
INLINE = sorted(
    {
        command
        for text in TEXTS.values()
        for command in re.findall(r"`(tracepaper [^`]+)`", " ".join(text.split()))
    }
)


@pytest.mark.parametrize("command", INLINE)
def test_a_command_named_in_passing_exists_with_its_options(command: str, cli: Cli) -> None:
    words = command.split()[1:]
    verbs = words[:2] if words[0] in GROUPS else words[:1]
    listed = cli.out(*verbs, "--help")
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", listed), f"{option} of {command}"


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(TEXTS[README].split()) <= WORDS_AT_MOST
    index = (README.parent / "docs" / "index.md").read_text(encoding="utf-8")
    led_to = TEXTS[README] + index
    assert [page.name for page in TEXTS if page.name not in led_to] == []


def test_no_path_of_this_machine_is_shown() -> None:
    texts = "".join(TEXTS.values()) + "".join(
        path.read_text("utf-8") for path in (ROOT / "deploy").glob("*.svg")
    )
    assert str(ROOT) not in texts
    assert str(Path.home()) + "/" not in texts
