from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.archive.columns import INT64_MAX, CellInvalidError, Decimals, parse

plain_decimals = st.decimals(
    min_value=Decimal(-(10**9)), max_value=Decimal(10**9), allow_nan=False, places=8
)
written = st.builds(
    lambda number, zeros: f"{number:f}" + "0" * zeros, plain_decimals, st.integers(0, 4)
)


def fewest_places(number: Decimal) -> int:
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(-exponent, 0)


@given(st.lists(written, min_size=1, max_size=20))
def test_text_is_parsed_exactly_with_the_fewest_decimals(texts: list[str]) -> None:
    parsed = parse(np.array(texts, dtype=np.bytes_))
    values = [Decimal(text) for text in texts]
    assert parsed.places == max(fewest_places(value) for value in values)
    assert [Decimal(int(m)).scaleb(-parsed.places) for m in parsed.mantissa] == values


@given(
    st.lists(
        st.floats(min_value=-1e8, max_value=1e8, allow_nan=False).map(lambda x: round(x, 6)),
        min_size=1,
        max_size=20,
    )
)
def test_a_float_counts_as_its_shortest_text(numbers: list[float]) -> None:
    parsed = parse(np.array(numbers, dtype=np.float64))
    values = [Decimal(repr(number)) for number in numbers]
    assert [Decimal(int(m)).scaleb(-parsed.places) for m in parsed.mantissa] == values
    assert parsed.places == max(fewest_places(value) for value in values)
    assert not parsed.is_rounded


@given(st.lists(st.floats(min_value=1e-12, max_value=1e15), min_size=1, max_size=8), st.booleans())
def test_any_number_is_exact_or_rounded_to_the_digits_that_fit_beside_the_largest(
    numbers: list[float], is_text: bool
) -> None:
    texts = [repr(number) for number in numbers]
    parsed = parse(np.array(texts if is_text else numbers, dtype="S" if is_text else float))
    values = [Decimal(text) for text in texts]
    off = Decimal(1).scaleb(-parsed.places) * Decimal("0.6") if parsed.is_rounded else Decimal(0)
    for mantissa, value in zip(parsed.mantissa.tolist(), values, strict=True):
        assert abs(Decimal(mantissa).scaleb(-parsed.places) - value) <= off
    digits = max(max(values).adjusted(), 0) + 1 + parsed.places
    assert not parsed.is_rounded or digits >= (18 if is_text else 15)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-05", "0.00001"),
        ("6.818e-05", "0.00006818"),
        ("1E3", "1000"),
        (" 7.50 ", "7.5"),
        ("+3.25", "3.25"),
        (".5", "0.5"),
        ("5.", "5"),
        ("-0", "0"),
        ("0.0000000000000000000000", "0"),
        ("000000000000000000000012.5", "12.5"),
    ],
)
def test_unusual_spellings_of_a_number_are_exact(text: str, value: str) -> None:
    parsed = parse(np.array([text], dtype=np.bytes_))
    assert Decimal(int(parsed.mantissa[0])).scaleb(-parsed.places) == Decimal(value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        ("abc", "is not a number but 'abc'"),
        ("1,5", "is not a number but '1,5'"),
        ("٣", "is not a number but '٣'"),
        ("1e99999", "is not a number but '1e99999'"),
        ("nan", "is not a number but 'nan'"),
        ("1e400", "is not a number but '1e400'"),
        ("1.5.5", "is not a number but '1.5.5'"),
        ("1-5", "is not a number but '1-5'"),
        ("99999999999999999999", "has more digits than 64 bits hold in '99999999999999999999'"),
    ],
)
def test_a_cell_that_is_no_number_is_named_by_its_row(text: str, what: str) -> None:
    with pytest.raises(CellInvalidError) as caught:
        parse(np.array([b"1.5", text.encode()], dtype=np.bytes_))
    assert caught.value.row == 1
    assert caught.value.what == what


@pytest.mark.parametrize(("number", "what"), [(np.nan, "is empty"), (np.inf, "is not finite")])
def test_a_float_that_is_not_finite_is_named_by_its_row(number: float, what: str) -> None:
    with pytest.raises(CellInvalidError) as caught:
        parse(np.array([1.0, number]))
    assert (caught.value.row, caught.value.what) == (1, what)


def test_fewer_decimals_are_rounded_half_to_even_and_more_must_fit() -> None:
    column = parse(np.array([b"0.25", b"0.35", b"40000000000000.00"]))
    assert column.rescale(1).mantissa.tolist() == [2, 4, 4 * 10**14]
    assert column.rescale(3).mantissa.tolist() == [250, 350, 4 * 10**16]
    with pytest.raises(CellInvalidError, match="64 bits at 20 decimals"):
        Decimals(np.array([1, INT64_MAX // 10**19]), 1).rescale(20)
