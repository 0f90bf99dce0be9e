"""Reference and hypothesis one above the other, errors marked: HTML that any page can show.

Colour is never alone: what was deleted is struck out, what was inserted underlined, what was
replaced both. Every text is escaped.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

import jiwer
import pandas as pd

PROCESS = {"wer": jiwer.process_words, "cer": jiwer.process_characters}
_KINDS = {"equal": "=", "substitute": "S", "delete": "D", "insert": "I"}
# Okabe and Ito's blue and vermilion, the latter dark enough to be read as text on white.
INSERTED, REMOVED = "#0072B2", "#B34700"
# Inline, because notebook viewers drop style sheets.
_UNIT = "display:inline-block;vertical-align:top;margin:0 .25em .3em 0;text-align:left"
_UNDERLINED = f"color:{INSERTED};text-decoration:underline;font-weight:bold"
_STRUCK = f"color:{REMOVED};text-decoration:line-through"
_HEARD = {"=": "", "S": _UNDERLINED, "D": "", "I": _UNDERLINED}
_MEANT = {"=": "", "S": _STRUCK, "D": _STRUCK, "I": ""}


@dataclass(frozen=True)
class Piece:
    """Aligned text: kind "=", "S", "D" or "I"; "" where one side has nothing."""

    kind: str
    reference: str
    hypothesis: str


def align(reference: str, hypothesis: str, metric: str = "wer") -> list[Piece]:
    """Pieces of normalised text, word by word; for "cer" runs of characters, so that marks stay
    on their letters where both sides agree."""
    if not reference.strip():
        return [Piece("I", "", hypothesis)] if hypothesis else []
    words = metric == "wer"
    found = PROCESS[metric](reference, hypothesis)
    meant, heard = found.references[0], found.hypotheses[0]
    pieces = []
    for chunk in found.alignments[0]:
        left = meant[chunk.ref_start_idx : chunk.ref_end_idx]
        right = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        kind = _KINDS[chunk.type]
        if words:
            longest = max(len(left), len(right))
            pairs = zip(_padded(left, longest), _padded(right, longest), strict=True)
            pieces += [Piece(kind, a, b) for a, b in pairs]
        else:
            pieces.append(Piece(kind, "".join(left), "".join(right)))
    return pieces


def _padded(words: list[str], length: int) -> list[str]:
    return [*words, *[""] * (length - len(words))]


def aligned_html(reference: str, hypothesis: str, metric: str = "wer") -> str:
    """The two texts of one utterance, reference above, as escaped HTML."""
    units = []
    for piece in align(reference, hypothesis, metric):
        above = _span(piece.reference, _MEANT[piece.kind])
        below = _span(piece.hypothesis, _HEARD[piece.kind])
        units.append(f'<span style="{_UNIT}">{above}<br>{below}</span>')
    return f'<div dir="auto">{"".join(units)}</div>'


def _span(text: str, style: str) -> str:
    shown = html.escape(text).replace(" ", "␣" if style else "&nbsp;") or "&nbsp;"
    return f'<span style="{style}">{shown}</span>' if style and text else f"<span>{shown}</span>"


@dataclass(frozen=True)
class Alignment:
    """`error_analysis.worst_utterances` to look at, in a notebook or a report."""

    table: pd.DataFrame

    def _repr_html_(self) -> str:
        about = self.table.attrs
        title = f"{about['system']}, {about['language']}, {about['domain'].replace('_', ' ')}"
        if self.table.empty:
            return f"<p>{html.escape(title)}: {html.escape(about['note'] or 'no error')}</p>"
        head = "<tr><th>clip</th><th>errors</th><th>reference above, hypothesis below</th></tr>"
        rows = "".join(
            f"<tr><td>{html.escape(str(row.id))}<br>{row.seconds:.1f} s</td>"
            f"<td>{row.errors} ({row.rate:.0f} %)</td>"
            f'<td style="text-align:left">'
            f"{aligned_html(row.reference, row.hypothesis, about['metric'])}</td></tr>"
            for row in self.table.rename(columns={"error (%)": "rate"}).itertuples()
        )
        return f"<p>{html.escape(title)}</p><table>{head}{rows}</table>"
