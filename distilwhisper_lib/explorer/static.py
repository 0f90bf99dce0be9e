"""The gate explorer's views as figures and tables: what the widget shows, on paper and in CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import hertz_to_mel

from distilwhisper_lib.explorer.html import MEAN, fill, learned, route, shares
from distilwhisper_lib.explorer.runs import NORMALIZER, POSITION, Heard, Scene
from distilwhisper_lib.figures import BLACK, BLUE, GREY, LIGHT, can_draw, language_name, save, style
from distilwhisper_lib.gates.recorder import PROMPT_TOKENS
from distilwhisper_lib.gates.routes import draw_routes
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.scoring.alignment import INSERTED, REMOVED, align
from distilwhisper_lib.scoring.text import normalize
from distilwhisper_lib.speech.audio import SAMPLE_RATE
from distilwhisper_lib.speech.log_mel import log_mel

_TICKS_HZ = (500, 1000, 2000, 4000, 8000)


# Sound ---------------------------------------------------------------------------------------


def sound_figure(scene: Scene) -> Figure | None:
    """Log-mel spectrogram of the clip, the runs' encoder gates under it, on one time axis.

    The black lines are the soft gates behind the routes, from 0 at the bottom of a layer's row to
    1 at its top. None when there is nothing to draw.
    """
    routed = [heard for heard in scene.shown if heard.frame_gates is not None]
    if scene.samples is None and not routed:
        return None
    heights = [1.5] if scene.samples is not None else []
    heights += [0.24 * len(heard.frame_gates) + 0.3 for heard in routed]
    with style():
        figure, axes = plt.subplots(
            len(heights), 1, figsize=(8.6, sum(heights) + 0.9), height_ratios=heights,
            sharex=True, squeeze=False,
        )  # fmt: skip
        plt.close(figure)
        panels = list(axes[:, 0])
        if scene.samples is not None:
            _draw_spectrogram(panels[0], scene.samples)
        for axis, heard in zip(panels[len(heights) - len(routed) :], routed, strict=True):
            _draw_encoder(axis, heard, scene.title(heard))
        panels[-1].set_xlabel("time (s)")
        panels[-1].set_xlim(0, _seconds(scene))
        if routed:
            _route_legend(figure, routed[0])
    return figure


def _seconds(scene: Scene) -> float:
    if scene.samples is not None:
        return len(scene.samples) / SAMPLE_RATE
    return max(heard.positions for heard in scene.shown) * POSITION / SAMPLE_RATE


def _draw_spectrogram(axis: Axes, samples: np.ndarray) -> None:
    extractor = WhisperFeatureExtractor()  # Whisper's 80 channels, whatever the model has
    mels = log_mel(extractor, [samples])[0].numpy()
    frames = -(-len(samples) // extractor.hop_length)
    axis.imshow(
        mels[:, :frames], cmap="cividis", aspect="auto", origin="lower",
        extent=(0, frames * extractor.hop_length / SAMPLE_RATE, 0, len(mels)),
    )  # fmt: skip
    top = hertz_to_mel(SAMPLE_RATE / 2, "slaney")
    places = [len(mels) * hertz_to_mel(hertz, "slaney") / top for hertz in _TICKS_HZ]
    axis.set_yticks(places, [f"{hertz / 1000:g}" for hertz in _TICKS_HZ])
    axis.set(ylabel="kHz (mel)", title="What Whisper hears: log-mel spectrogram")
    axis.grid(visible=False)


def _draw_encoder(axis: Axes, heard: Heard, title: str) -> None:
    span = (0.0, heard.positions * POSITION / SAMPLE_RATE)
    draw_routes(axis, heard.frame_gates.astype(float), span, "layer")
    axis.set_title(f"Encoder: {title}")
    if heard.frame_soft is None:
        return
    times = (np.arange(heard.positions) + 0.5) * POSITION / SAMPLE_RATE
    for layer, soft in enumerate(heard.frame_soft, start=1):
        for colour, width in (("white", 2.4), (BLACK, 1.0)):
            axis.plot(times, layer - 0.4 + 0.8 * soft, color=colour, linewidth=width)


def _route_legend(figure: Figure, heard: Heard) -> None:
    expert = f"{language_name(heard.run.language)} expert"
    handles = [
        Patch(facecolor=BLUE, label=expert),
        Patch(facecolor=LIGHT, edgecolor=GREY, linewidth=0.5, label="shared"),
    ]
    if heard.frame_soft is not None:
        handles.append(Line2D([], [], color=BLACK, label="soft gate, 0 to 1"))
    figure.legend(handles=handles, loc="outside lower right", ncols=3)


# Text in boxes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Box:
    """One unit of running text: a line of text, or two, one above the other."""

    lines: tuple[tuple[str, str], ...]  # text and colour
    background: str | None = None
    route: str = "shared"
    struck: bool = False  # the upper line
    underlined: bool = False  # the lower line
    gap: float = 4.0  # points before it


class _Flow:
    """Boxes set from left to right, in as many rows as it takes. Lengths in points, y downwards."""

    SIZE, LINE, MARGIN = 9.0, 13.0, 8.0

    def __init__(self, width: float) -> None:
        self.width, self.y = width * 72, self.MARGIN
        self.figure = Figure(figsize=(width, 1))
        self.figure.set_layout_engine("none")  # every place is worked out here
        self._renderer = FigureCanvasAgg(self.figure).get_renderer()
        self._drawn: list[tuple[float, float, float, _Box]] = []
        self._titles: list[tuple[float, str]] = []

    def title(self, text: str) -> None:
        self._titles.append((self.y, _drawable(text)))
        self.y += self.LINE + 3

    def boxes(self, boxes: Sequence[_Box]) -> None:
        x, height = self.MARGIN, 0.0
        for box in boxes:
            wide = max(self._width(text) for text, _ in box.lines) + 4
            if x + box.gap + wide > self.width - self.MARGIN and x > self.MARGIN:
                x, self.y = self.MARGIN, self.y + height + 5
            place = x + (box.gap if x > self.MARGIN else 0)
            height = self.LINE * len(box.lines)
            self._drawn.append((place, self.y, wide, box))
            x = place + wide
        self.y += height + 10

    def finished(self) -> Figure:
        height = self.y + self.MARGIN
        self.figure.set_size_inches(self.width / 72, height / 72)
        axis = self.figure.add_axes((0, 0, 1, 1))
        axis.set(xlim=(0, self.width), ylim=(height, 0))
        axis.axis("off")
        for y, text in self._titles:
            axis.text(self.MARGIN, y, text, va="top", fontsize=self.SIZE, fontweight="bold")
        for place, y, wide, box in self._drawn:
            self._draw(axis, place, y, wide, box)
        return self.figure

    def _draw(self, axis: Axes, x: float, y: float, wide: float, box: _Box) -> None:
        height = self.LINE * len(box.lines)
        if box.background:
            axis.add_patch(Rectangle((x, y), wide, height, facecolor=box.background, linewidth=0))
        if box.route != "shared":
            dots = "-" if box.route == "expert" else (0, (1, 1))
            axis.plot([x, x + wide], [y + height + 1] * 2, color=BLACK, linewidth=2, linestyle=dots)
        for number, (text, colour) in enumerate(box.lines):
            middle = y + self.LINE * (number + 0.5)
            axis.text(x + 2, middle, text, color=colour, va="center_baseline", fontsize=self.SIZE)
            end = x + 2 + self._width(text)
            if box.struck and number == 0:
                axis.plot([x + 2, end], [middle] * 2, color=colour, linewidth=0.9)
            if box.underlined and number == len(box.lines) - 1:
                axis.plot([x + 2, end], [middle + 5.5] * 2, color=colour, linewidth=0.9)

    def _width(self, text: str) -> float:
        drawn = self.figure.text(0, 0, text, fontsize=self.SIZE)
        wide = drawn.get_window_extent(self._renderer).width * 72 / self.figure.dpi
        drawn.remove()
        return wide


def _drawable(text: str) -> str:
    """Text that no font here can draw keeps its place; a dollar is no formula."""
    shown = "".join(c if c == " " or can_draw(c) else "▯" for c in text)
    return shown.replace("$", r"\$")


# Tokens --------------------------------------------------------------------------------------


def tokens_figure(scene: Scene, layer: int = MEAN) -> Figure | None:
    """The runs' transcripts token by token, coloured by a decoder layer's gates or their mean."""
    shown = [h for h in scene.shown if h.token_gates is not None and layer <= len(h.token_gates)]
    if not shown:
        return None
    where = "mean of the decoder's layers" if layer == MEAN else f"decoder layer {layer}"
    with style():
        flow = _Flow(8.6)
        for heard in shown:
            flow.title(f"{scene.title(heard)}: {where}")
            values = shares(heard.token_gates, layer)
            flow.boxes([_token_box(t, v) for t, v in zip(heard.tokens, values, strict=True)])
        flow.boxes([_key(1.0, "expert, underlined"), _key(0.5, "some layers"), _key(0, "shared")])
        return flow.finished()


def _token_box(token: str, share: float) -> _Box:
    background, colour = fill(share)
    text = _drawable(token.strip().replace("\ufffd", "▯")) or "␣"
    gap = 6.0 if token.startswith(" ") else 1.5
    return _Box(((text, colour),), background, route(share), gap=gap)


def _key(share: float, text: str) -> _Box:
    background, colour = fill(share)
    return _Box(((text, colour),), background, route(share), gap=10.0)


# Transcripts ---------------------------------------------------------------------------------


def transcripts_figure(scene: Scene) -> Figure | None:
    """Each transcript under the reference (without one, under the learned gates' transcript)."""
    if not scene.modes:
        return None
    with style():
        flow = _Flow(8.6)
        for heard in _each_transcript(scene):
            counted = heard.errors()
            told = "" if counted is None else f": {counted[0]} errors in {counted[1]} {counted[2]}"
            flow.title(scene.title(heard) + told)
            base = learned(scene)
            above = heard.reference if counted else (base.text if base else "")
            flow.boxes(list(_aligned_boxes(above, heard)) or [_Box((("(nothing)", GREY),))])
        return flow.finished()


def _each_transcript(scene: Scene) -> list[Heard]:
    return scene.modes + ([scene.other] if scene.other is not None else [])


def _aligned_boxes(reference: str, heard: Heard) -> Iterator[_Box]:
    metric = find_language(heard.run.language).headline
    texts = normalize(reference, NORMALIZER), normalize(heard.text, NORMALIZER)
    for piece in align(*texts, metric):
        wrong = piece.kind != "="
        above = (_drawable(piece.reference), REMOVED if wrong else BLACK)
        below = (_drawable(piece.hypothesis), INSERTED if wrong else BLACK)
        yield _Box(
            (above, below), struck=wrong, underlined=wrong, gap=4.0 if metric == "wer" else 0
        )


# Tables and files ----------------------------------------------------------------------------


def frames_table(scene: Scene) -> pd.DataFrame:
    """A row for each 20 ms of each run: route (1: expert) and, where known, gate of each layer."""
    tables = []
    for heard in scene.shown:
        if heard.frame_gates is not None:
            starts = np.arange(heard.positions) * POSITION / SAMPLE_RATE
            named = {"run": heard.run.run_id, "gates": heard.mode, "start (s)": starts.round(2)}
            layers = _layers(heard.frame_gates, heard.frame_soft)
            tables.append(pd.DataFrame(named | layers))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def tokens_table(scene: Scene) -> pd.DataFrame:
    """A row for each token of each run, the prompt's first: routes, gates and their mean."""
    tables = []
    for heard in scene.shown:
        if heard.token_gates is not None:
            places = range(1, len(heard.tokens) + 1)
            kinds = ["prompt" if place <= PROMPT_TOKENS else "text" for place in places]
            named = {"run": heard.run.run_id, "gates": heard.mode, "place": places, "kind": kinds}
            layers = _layers(heard.token_gates, heard.token_soft)
            mean = {"expert, mean of layers": heard.token_gates.mean(0).round(4)}
            tables.append(pd.DataFrame(named | {"token": heard.tokens} | mean | layers))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _layers(gates: np.ndarray, soft: np.ndarray | None) -> dict[str, np.ndarray]:
    columns = {f"expert, layer {i}": row for i, row in enumerate(gates, start=1)}
    if soft is not None:
        columns |= {f"gate, layer {i}": row.round(4) for i, row in enumerate(soft, start=1)}
    return columns


def transcripts_table(scene: Scene) -> pd.DataFrame:
    """A row for each way to set the gates, and one for the other run."""
    rows = []
    for heard in _each_transcript(scene):
        errors, units, unit = heard.errors() or (None, None, None)
        rows.append(
            {
                "run": heard.run.run_id,
                "gates": heard.mode if heard.run.has_gates else "none",
                "clip": heard.clip,
                "reference": heard.reference,
                "transcript": heard.text,
                "errors": errors,
                "in": units,
                "of": unit,
            }
        )
    return pd.DataFrame(rows)


def write_static(scene: Scene, layer: int, folder: Path) -> list[Figure | pd.DataFrame]:
    """Write each view as ``explorer-<view>-<run>``.png, .svg and .csv; returns what to display."""
    views = {
        "sound": (sound_figure(scene), frames_table(scene)),
        "tokens": (tokens_figure(scene, layer), tokens_table(scene)),
        "transcripts": (transcripts_figure(scene), transcripts_table(scene)),
    }
    shown: list[Figure | pd.DataFrame] = []
    run = scene.shown[0].run.run_id if scene.shown else "none"
    for view, (figure, table) in views.items():
        path = folder / f"explorer-{view}-{run}"
        if figure is not None:
            save(figure, path)
            shown.append(figure)
        if len(table):
            write_atomic(path.with_name(f"{path.name}.csv"), table.to_csv(index=False))
    return [*shown, views["transcripts"][1]] if scene.modes else shown
