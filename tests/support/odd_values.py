"""Documents of the exchange in which one value stands in another form."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st
from msgspec import Struct

Path = tuple[str | int, ...]
MARK = "\x07here\x07"

AS_SENT = "@"
"""Stands in a form for the value's own text."""
FORMS = (
    *('"@"', '"@.0"', '"@.00000000"', '"@e0"', '"@E+0"', '" @"', '"+@"', '"-@"', '"0@"', '"0x1F"'),
    *("@", "@.0", "@e0", "-@", "1.5", "-0.0", "1e400", "1e-400", "-1", "0", "17"),
    *('"1e3"', '"1_000"', '"\\u0663"', '"\\u00b2"', '"NaN"', '"Infinity"', '"-0"', '"."', '".5"'),
    *('""', '"\\u0000"', '"\\ud800"', '"true"', '"null"', "true", "false", "null"),
    *("[]", "[[]]", '["@"]', "[null]", "{}", '{"a": 1}', "NaN", "nothing"),
    *(str(2**53), str(2**63), str(-(2**63) - 1), "9" * 30, "9" * 5_000, f"-{'9' * 30}"),
    *(f'"{2**63}"', f'"{"9" * 30}"', f'"{"9" * 5_000}"', f'"0.{"0" * 50}1"', f'"{"x" * 5_000}"'),
)
"""JSON of other types, other texts of the same number, and numbers that nothing holds."""


def places(document: Any, at: Path = ()) -> list[Path]:
    """Return the place of every value of *document*, containers included."""
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    return [at, *(place for key, value in items for place in places(value, (*at, key)))]


def put(document: Any, at: Path, form: str) -> bytes:
    """Return *document* as JSON whose value *at* that place stands in *form*."""
    changed = {"": copy.deepcopy(document)}
    *parents, last = ("", *at)
    holder: Any = changed
    for key in parents:
        holder = holder[key]
    value, holder[last] = holder[last], MARK
    text = value if isinstance(value, str) else json.dumps(value)
    raw = form.replace(AS_SENT, text if isinstance(value, str | int | float) else "1")
    return json.dumps(changed[""]).replace(json.dumps(MARK), raw).encode()


def odd(document: Any) -> st.SearchStrategy[bytes]:
    """Return *document* with one of its values in one of the forms."""
    return st.builds(
        lambda at, form: put(document, at, form),
        st.sampled_from(places(document)),
        st.sampled_from(FORMS),
    )


def unstorable(value: object) -> list[object]:
    """Return what of *value* no row of the record can hold."""
    if isinstance(value, Struct):
        return unstorable([getattr(value, name) for name in value.__struct_fields__])
    if isinstance(value, list | tuple):
        return [part for item in value for part in unstorable(item)]
    if isinstance(value, int):
        return [] if -(2**63) <= value < 2**63 else [value]
    return []
