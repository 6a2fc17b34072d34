"""Nothing is learnt, recorded or configured that leads nowhere; a planted one of each is found."""

from __future__ import annotations

from pathlib import Path

import dead_ends
from pydantic import Field

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.values import Section
from tracepaper.storage.record.rows import EVENT_TYPES
from tracepaper.strategies.gates.gate import HEAD_MEASURES, MEASURES
from tracepaper.strategies.networks.multimodal import MODALITIES


def test_nothing_leads_nowhere() -> None:
    found = {
        "heads": dead_ends.heads(),
        "modalities": dead_ends.modalities(MODALITIES),
        "measures": dead_ends.measures(MEASURES - {"probabilities"} | HEAD_MEASURES),
        "events": dead_ends.events(EVENT_TYPES),
        "keys": dead_ends.keys(Config),
    }
    assert not any(found.values()), found


def test_an_event_that_is_made_or_read_alone_is_found(tmp_path: Path) -> None:
    class Halo:
        """Stored, and looked at by nothing."""

    code = tmp_path / "code.py"
    for text, dead in (
        ("feed(Halo(1))\n", ["halo"]),
        ("match event:\n    case Halo():\n        pass\n", ["halo"]),
        ("feed(Halo(1))\nif isinstance(event, Halo | Bar):\n    pass\n", []),
    ):
        code.write_text(text)
        dead_ends._tree.cache_clear()  # noqa: SLF001 - the file is another one now
        assert dead_ends.events({"halo": Halo}, [code]) == dead


def test_a_key_that_no_code_reads_is_found() -> None:
    class MoonSection(Section):
        """A section with a key that decides nothing."""

        phase_of_the_moon: int = 0
        horizon: int = 1

    class Planted(Config):
        moon: MoonSection = Field(default_factory=MoonSection)

    assert dead_ends.keys(Planted) == ["moon.phase_of_the_moon"]
