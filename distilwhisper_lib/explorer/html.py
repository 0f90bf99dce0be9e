"""What the gate explorer shows as HTML: tokens coloured by their gates, transcripts side by side.

Plain HTML with inline styles and ``title`` attributes, on a white card, so that it looks the same
in JupyterLab (dark or light), Colab and a saved page; no scripts. Every text is escaped. Colour is
never alone: the expert's tokens are underlined too.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import numpy as np

from distilwhisper_lib.explorer.runs import NORMALIZER, Heard, Scene
from distilwhisper_lib.figures import BLUE, LIGHT
from distilwhisper_lib.gates.counts import REST
from distilwhisper_lib.gates.recorder import PROMPT_TOKENS
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.scoring.alignment import aligned_html
from distilwhisper_lib.scoring.text import normalize

MEAN = 0  # the layer that stands for the mean of all of them
_CARD = (
    "background:#fff;color:#111;padding:.5em .8em;margin:.2em 0;border:1px solid #ccc;"
    "border-radius:4px;line-height:1.5;max-width:62em;overflow-x:auto"
)
_TOKEN = "display:inline-block;padding:0 .2em;margin:.1em 1px;border-radius:2px;white-space:pre"
_CELL = "padding:.25em .8em .25em 0;text-align:left;vertical-align:top;border-top:1px solid #ccc"
_LINES = {"expert": "3px solid #000", "both": "3px dotted #000", "shared": "3px solid transparent"}
_MODES = {
    "learned": "learned: each gate decides",
    "open": "open: the expert everywhere",
    "closed": "closed: without the expert",
}


def card(content: str) -> str:
    """HTML on a white card; an empty string stays one."""
    return f'<div style="{_CARD}">{content}</div>' if content else ""


def notes_html(notes: Sequence[str]) -> str:
    """Sentences about what is missing or broken."""
    items = "".join(f"<div>⚠ {_sentence(note)}</div>" for note in notes)
    return card(items)


def _sentence(note: str) -> str:
    """Escaped, with commands set apart. Not capitalised: many begin with a file's name."""
    return re.sub("`(.*?)`", r"<code>\1</code>", html.escape(f"{note.rstrip('.')}."))


# Tokens --------------------------------------------------------------------------------------


def shares(gates: np.ndarray, layer: int) -> np.ndarray:
    """(layers, positions) -> (positions,): one layer, counted from 1, or MEAN of all of them."""
    return gates.mean(0) if layer == MEAN else gates[layer - 1].astype(float)


def route(share: float) -> str:
    """ "expert", "shared", or "both" where layers differ: what the marks beside colour say."""
    return "expert" if share == 1 else "shared" if share == 0 else "both"


def fill(share: float) -> tuple[str, str]:
    """Background and text colour of a share from 0 (grey) to 1 (blue), as "#rrggbb"."""
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (LIGHT, BLUE)]
    mixed = [round(low + (high - low) * share) for low, high in zip(*ends, strict=True)]
    background = "#" + "".join(f"{value:02x}" for value in mixed)
    return background, max("#000000", "#ffffff", key=lambda text: contrast(text, background))


def contrast(first: str, second: str) -> float:
    """Ratio of two colours' luminance, 1 to 21, as WCAG 2 defines it; text needs 4.5."""
    low, high = sorted(map(_luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def tokens_html(scene: Scene, layer: int = MEAN) -> str:
    """The runs' transcripts token by token; pointing at a token tells what each layer did."""
    if not scene.shown:
        return ""
    blocks = [_transcript(heard, scene.title(heard), layer) for heard in scene.shown]
    return card(_legend(layer) + "".join(blocks))


def _legend(layer: int) -> str:
    where = "mean of the decoder's layers" if layer == MEAN else f"decoder layer {layer}"
    samples = [(1.0, "expert"), (0.0, "shared")]
    if layer == MEAN:
        samples.insert(1, (0.5, "half of the layers"))
    keys = "".join(_token(text, share, text) for share, text in samples)
    return (
        f'<div style="font-size:90%">{html.escape(where)}: {keys} '
        "(point at a token for every layer)</div>"
    )


def _transcript(heard: Heard, title: str, layer: int) -> str:
    head = f"<div style='margin-top:.4em'><b>{html.escape(title)}</b></div>"
    return f'{head}<div dir="auto">{"".join(_tokens(heard, layer))}</div>'


def _tokens(heard: Heard, layer: int) -> list[str]:
    if heard.token_gates is None:
        text = html.escape(heard.text) or "<i>(nothing)</i>"
        return [f"{text} <span style='font-size:90%'>(no gates)</span>"]
    if layer > len(heard.token_gates):
        return [f"This run has no decoder layer {layer}."]
    values = shares(heard.token_gates, layer)
    return [
        _token(token, values[place], _about(heard, place), small=place < PROMPT_TOKENS)
        for place, token in enumerate(heard.tokens)
    ]


def _token(token: str, share: float, about: str, small: bool = False) -> str:
    background, colour = fill(share)
    style = f"{_TOKEN};background:{background};color:{colour};border-bottom:{_LINES[route(share)]}"
    if token.startswith(" "):
        style += ";margin-left:.5em"
    if small:
        style += ";font-size:75%"
    # Bytes that are no character at all.
    text = html.escape(token.strip().replace("\ufffd", "▯")) or "␣"
    return f'<span style="{style}" title="{html.escape(about, quote=True)}">{text}</span>'


def _about(heard: Heard, place: int) -> str:
    lines = [f"token {place + 1}: “{heard.tokens[place]}”"]
    if heard.tokens[place].startswith(REST):
        lines.append(f"({REST}: the rest of a character that began in the token before)")
    for layer, gate in enumerate(heard.token_gates[:, place]):
        soft = heard.token_soft
        score = "" if soft is None else f" (gate {soft[layer, place]:.3f})"
        lines.append(f"layer {layer + 1}: {'expert' if gate else 'shared'}{score}")
    return "\n".join(lines)


# Transcripts ---------------------------------------------------------------------------------


def transcripts_html(scene: Scene) -> str:
    """A line for each way to set the gates, and one for the other run: against the reference, and
    against what the learned gates gave."""
    if not scene.modes:
        return ""
    rows = [_row(_MODES[heard.mode], heard, scene) for heard in scene.modes]
    if scene.other is not None:
        rows.append(_row(scene.title(scene.other), scene.other, scene))
    titles = ["gates" if scene.modes[0].run.has_gates else "run"]
    told = scene.modes[0].errors() is not None
    titles += ["reference above, transcript below" if told else "transcript", "errors"]
    titles += ["learned gates above, this below"]
    cells = "".join(f'<th style="{_CELL};border:0">{title}</th>' for title in titles)
    return card(
        f"<b>{html.escape(scene.name(scene.modes[0].run))}</b>, {html.escape(scene.clip['id'])}"
        f'<table style="border-collapse:collapse;color:#111;font-size:100%">'
        f"<tr>{cells}</tr>{''.join(rows)}</table>"
    )


def _row(title: str, heard: Heard, scene: Scene) -> str:
    counted = heard.errors()
    against, errors = f'<div dir="auto">{html.escape(heard.text) or "<i>(nothing)</i>"}</div>', "–"
    if counted is not None:
        against = difference(heard.reference, heard)
        errors = f"{counted[0]} in {counted[1]} {counted[2]}"
    chosen = heard is scene.heard or heard is scene.other
    name = f"<b>{html.escape(title)}</b>" if chosen else html.escape(title)
    cells = [name, against, errors, _change(heard, learned(scene))]
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


def learned(scene: Scene) -> Heard | None:
    """What the first run said with its own gates, which the others are compared with."""
    return next((heard for heard in scene.modes if heard.mode == "learned"), None)


def _change(heard: Heard, base: Heard | None) -> str:
    if base is None or heard is base:
        return "–"
    if heard.text == base.text:
        return "the same text"
    return difference(base.text, heard)


def difference(text: str, heard: Heard) -> str:
    """``text`` above and what was heard below, aligned, both normalised."""
    above, below = normalize(text, NORMALIZER), normalize(heard.text, NORMALIZER)
    if above == below:
        return html.escape(below) or "<i>(nothing)</i>"
    return aligned_html(above, below, find_language(heard.run.language).headline)
