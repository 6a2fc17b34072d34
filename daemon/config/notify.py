"""The section [notify]: addresses without secrets, kinds of notices and their templates.

The rules are docs/operations.md, O25 to O28.
"""

from __future__ import annotations

import string
from typing import Annotated, Final, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator

from tracepaper.daemon.config.secrets import checked_reference
from tracepaper.daemon.config.values import Duration, Section, TimeOfDay, json_object, several

NoticeKind = Literal[
    "fills", "stops", "limits", "halt", "feed", "late", "parity", "refusals", "daily"
]
"""The kinds of notices."""
KINDS: Final[tuple[NoticeKind, ...]] = get_args(NoticeKind)
COMMON: Final = ("time", "run", "strategy")
"""Fields that every notice has in addition to those of its kind."""
ADDRESSES_MOST: Final = 20
TEMPLATE_MOST: Final = 1_000


class NoticeTemplate(NamedTuple):
    """The default template of a kind, and the fields that a template may use."""

    template: str
    fields: tuple[str, ...]


_FILL: Final = (
    *("symbol", "side", "quantity", "price", "fee", "order", "reason"),
    *("profit", "position", "equity"),
)
WORDINGS: Final[dict[NoticeKind, NoticeTemplate]] = {
    "fills": NoticeTemplate(
        "{symbol} {side} {quantity} at {price} ({reason}){profit}; {position}; equity {equity}",
        _FILL,
    ),
    "stops": NoticeTemplate(
        "{symbol} {order}: {side} {quantity} at {price} ({reason}){profit}; {position}; "
        "equity {equity}",
        _FILL,
    ),
    "limits": NoticeTemplate(
        "{limit} breached at equity {equity}: {action}", ("limit", "action", "equity")
    ),
    "halt": NoticeTemplate("{command}: {note}", ("command", "note", "giver")),
    "feed": NoticeTemplate("feed {state}: {words}", ("state", "words", "symbol")),
    "late": NoticeTemplate("decisions {state}: {words}", ("state", "words", "symbol")),
    "parity": NoticeTemplate("parity: {result}", ("outcome", "result")),
    "refusals": NoticeTemplate(
        "{refused} of {decisions} refused since {since}: {gates}",
        ("refused", "decisions", "since", "gates"),
    ),
    "daily": NoticeTemplate(
        "equity {equity}, {change} ({percent}) since {since}; {fills}, fees {fees}, "
        "{refused} of {decisions} refused{shadows}{without_fills}",
        (
            *("equity", "change", "percent", "since", "fills", "fees", "funding"),
            *("refused", "decisions", "shadows", "without_fills"),
        ),
    ),
}
"""The default template of each kind."""


class NotifySection(Section):
    """Messages about a run to chat, mail or a webhook, by Apprise; none without addresses."""

    decides = False

    model_config = ConfigDict(hide_input_in_errors=True)

    addresses: Annotated[
        tuple[Annotated[str, AfterValidator(checked_reference)], ...],
        Field(max_length=ADDRESSES_MOST),
        BeforeValidator(several),
        AfterValidator(lambda texts: tuple(dict.fromkeys(texts))),
    ] = ()
    """Where the addresses for Apprise are: env:NAME is an environment variable, credential:NAME a
    file of $CREDENTIALS_DIRECTORY (systemd's LoadCredential)."""
    kinds: Annotated[
        tuple[NoticeKind, ...],
        Field(min_length=1),
        BeforeValidator(several),
        AfterValidator(lambda names: tuple(kind for kind in KINDS if kind in names)),
    ] = KINDS
    """Kinds of messages: fills, stops (and targets, time limits, liquidations), limits (breached),
    halt (and resume, flatten), feed (lost and back), late (decisions), parity, refusals, daily."""
    per_minute: int = Field(default=10, ge=1, le=600)
    """Messages per minute; further ones wait and are sent together."""
    timeout_s: float = Field(default=20.0, gt=0, le=600)
    """Wall seconds after which a message that an address has not accepted is dropped."""
    feed_lost_s: float = Field(default=120.0, gt=0, le=86_400)
    """Wall seconds without any data after which the feed counts as lost."""
    refusals_every: Duration = "4h"
    """Market time that one digest of refusals covers."""
    daily_at: TimeOfDay = "00:00"
    """UTC time of day, such as 00:00, of the daily summary."""
    templates: Annotated[
        dict[NoticeKind, Annotated[str, Field(min_length=1, max_length=TEMPLATE_MOST)]],
        BeforeValidator(json_object),
    ] = Field(default_factory=dict)
    """Your own text for a kind: {fills = "{time} {symbol} {side} {quantity} at {price}"}."""

    @field_validator("templates")
    @classmethod
    def _templates(cls, value: dict[NoticeKind, str]) -> dict[NoticeKind, str]:
        for kind, template in value.items():
            _check_fields(template, (*COMMON, *WORDINGS[kind].fields))
        return value

    def wording(self, kind: NoticeKind) -> str:
        """Return the template of *kind*."""
        return self.templates.get(kind, WORDINGS[kind].template)


def _check_fields(template: str, fields: tuple[str, ...]) -> None:
    """Reject a template with an unknown field, a format or a conversion."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        raise ValueError("write each field between braces, such as {time}") from None
    for _, name, form, conversion in parts:
        if name is not None and (name not in fields or form or conversion):
            raise ValueError(f"name the fields {', '.join(f'{{{field}}}' for field in fields)}")
