"""Words coloured by the attention that they got, as HTML: ``captured.show(tokens)``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .errors import AttentionInvalid

if TYPE_CHECKING:
    from .methods import AttendedTokens

_SPACES: Final = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})
"""What tokenizers write for a space and the end of a line."""
_COLOUR: Final = "37 99 235"
"""Red, green and blue of the token with the largest share; the others are as much paler."""


class Shown:
    """A text whose words are coloured by their shares: a notebook draws it."""

    def __init__(self, html: str) -> None:
        self.html = html
        """One ``div``, which needs nothing else."""

    def _repr_html_(self) -> str:
        return self.html

    def write(self, path: str | Path) -> None:
        """Write a page that a browser opens to *path*, and replace what is there."""
        head = "<!doctype html>\n<meta charset='utf-8'>\n<title>Attention</title>\n"
        Path(path).write_text(f"{head}{self.html}\n", encoding="utf-8")


def shown(attended: AttendedTokens, words: Mapping[str, Sequence[str]]) -> Shown:
    """Return the *words* of each stream, coloured by the first row of *attended*.

    Raises ``AttentionInvalid`` unless each stream has a word for each of its tokens.
    """
    by_stream = {name: weights[0, 0].tolist() for name, weights in attended.weights.items()}
    most = max(share for shares in by_stream.values() for share in shares)
    lines = []
    for name, shares in by_stream.items():
        given = [words[name]] if isinstance(words[name], str) else list(words[name])
        if len(given) != len(shares):
            raise AttentionInvalid(
                f"There are {len(given)} words for {len(shares)} tokens; give one for each, as "
                "[tokenizer.decode(id) for id in ids]."
            )
        spans = [_span(str(word), share, most) for word, share in zip(given, shares, strict=True)]
        lines.append("".join(spans))
    text = "<hr>".join(lines)
    return Shown(f"<div style='white-space:pre-wrap;line-height:1.8'>{text}</div>")


def _span(word: str, share: float, most: float) -> str:
    depth = share / most if most else 0.0
    style = f"background:rgb({_COLOUR} / {0.7 * depth:.2f})"
    return f"<span style='{style}' title='{share:.2%}'>{escape(word.translate(_SPACES))}</span>"
