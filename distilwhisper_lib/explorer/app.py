"""The gate explorer: choose a run and a clip, force the gates, see and read what changes.

``Explorer(config)`` in a notebook, with ipywidgets 7.7 (Colab) or 8. Where no frontend can show
widgets (GitHub, a page saved by papermill) its first state is a picture; `Explorer.static` writes
every view as files.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import soundfile
from IPython.display import HTML
from matplotlib.figure import Figure

from distilwhisper_lib.config.settings import DOMAINS, RunConfig
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.explorer.html import MEAN, card, notes_html, tokens_html, transcripts_html
from distilwhisper_lib.explorer.runs import (
    Clip,
    ListedRun,
    Listener,
    Scene,
    clips_of,
    find_runs,
    layers_of,
    own_clip,
)
from distilwhisper_lib.explorer.static import sound_figure, write_static
from distilwhisper_lib.figures import language_name, run_about, style, titles
from distilwhisper_lib.model.clsr import HARD_MODES
from distilwhisper_lib.speech.audio import SAMPLE_RATE

NONE, OWN = "", "own"
_VIEW = "application/vnd.jupyter.widget-view+json"
_WIDE = {"width": "100%", "max_width": "62em"}
_RECORDING = (
    "Your own clip: record it with any recorder (a phone offers one behind the button), then "
    "upload it as WAV, FLAC, MP3 or Ogg. It stays on the machine of this notebook. Jupyter lets "
    "about 10 MB through, a minute of stereo WAV, and a larger upload never arrives: give such a "
    "recording by its path there, or run this cell again."
)


class Explorer:
    """Controls and views over the runs of ``config``'s results folder, its language first.

    ``outputs``: where finished runs lie; ``clips``: how many of each test set can be chosen;
    ``published``: whether runs that came with the kit are offered beside one's own, as they are
    where there is none. Raises UserError when there is nothing at all to explore.
    """

    def __init__(
        self,
        config: RunConfig,
        outputs: str | Path = "outputs",
        clips: int = 50,
        published: bool = False,
    ) -> None:
        self.runs, self._faults = find_runs(config, outputs, published)
        self._routed = [run for run in self.runs if run.has_gates]
        if not self._routed:
            raise UserError(
                f"no run with gates in {outputs}/ or {config.results_dir / 'gates'}: run one of "
                "the notebooks 04 to 06 first"
            )
        self._clips, self._listener = clips, Listener()
        self._own: list[tuple[str, bytes | Path]] = []
        self._offered: dict[str, Clip] = {}
        self._quiet = False
        self.scene: Scene | None = None
        self._make_controls(config.language)
        self._make_views()
        self.box = widgets.VBox([*self._rows(), *self._views()], layout={"width": "100%"})
        self._offer(self.language)
        self.show()

    # Controls --------------------------------------------------------------------------------

    def _make_controls(self, language: str) -> None:
        codes = sorted({run.language for run in self._routed}, key=lambda code: code != language)
        self.language = _dropdown("language", [(language_name(code), code) for code in codes])
        self.run, self.other = _dropdown("run"), _dropdown("compare with")
        places = [(name, domain) for domain, name in DOMAINS.items()]
        self.domain = _dropdown("clips", [*places, ("my recordings", OWN)])
        self.clip = _dropdown("utterance")
        self.mode = widgets.ToggleButtons(
            options=list(HARD_MODES),
            tooltips=["each gate decides", "expert everywhere", "shared network everywhere"],
            style={"button_width": "6em"},
        )  # fmt: skip
        self.layer = _dropdown("colours tell")
        self.upload = widgets.FileUpload(
            accept="audio/*,.wav,.flac,.mp3,.ogg,.opus", multiple=False, description="upload a clip"
        )
        self.path = widgets.Text(
            description="or its path", placeholder="recordings/mine.wav", continuous_update=False,
            style={"description_width": "7em"},
        )  # fmt: skip
        chosen = (self.language, self.run, self.other, self.domain, self.clip, self.mode)
        for control in (*chosen, self.layer, self.upload, self.path):
            control.observe(self._changed, "value")

    def _rows(self) -> list[widgets.Widget]:
        wrap = {"flex_flow": "row wrap"}
        label = widgets.Label("gates", layout={"width": "7em", "justify_content": "flex-end"})
        return [
            widgets.HBox([self.language, self.run, self.other], layout=wrap),
            widgets.HBox([self.domain, self.clip], layout=wrap),
            widgets.HBox([label, self.mode, self.layer], layout=wrap),
            widgets.HBox([self.upload, self.path], layout=wrap),
            widgets.HTML(_RECORDING, layout=_WIDE),
        ]  # fmt: skip

    def _make_views(self) -> None:
        self.notes, self.sound, self.tokens, self.transcripts = (
            widgets.HTML(layout=_WIDE) for _ in range(4)
        )
        self.audio = widgets.Audio(value=b"", format="wav", autoplay=False, loop=False)

    def _views(self) -> list[widgets.Widget]:
        return [self.notes, self.audio, self.sound, self.tokens, self.transcripts]

    def _changed(self, change: dict[str, Any]) -> None:
        if self._quiet:
            return
        if change["owner"] is self.layer:
            self._draw_tokens()
            return
        with self._silently():
            self._offer(change["owner"])
        self.show()

    @contextmanager
    def _silently(self) -> Iterator[None]:
        """Controls that are set here do not each redraw everything."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _offer(self, changed: widgets.Widget) -> None:
        """Let the controls offer what the one that changed leaves to choose from."""
        with self._silently():
            if changed is self.upload:
                self._receive(uploaded(self.upload.value))
            if changed is self.path and (path := self.path.value.strip()):
                self._receive([(path, Path(path))])
            if changed is self.language:
                mine = [run for run in self._routed if run.language == self.language.value]
                _set_options(self.run, _run_options(mine))
            if changed in (self.language, self.run):
                run = self._run(self.run.value)
                others = [r for r in self.runs if r.language == run.language and r is not run]
                offered = [("no other run", NONE)] + _run_options(others)
                _set_options(self.other, offered)
                if changed is self.language:
                    self.other.value = self._first_other()
            if changed in (self.language, self.run, self.domain):
                self._offer_clips()

    def _first_other(self) -> str:
        """A run to compare with from the beginning: one that can show as much."""
        run = self._run(self.run.value)
        alike = [
            other.key
            for other in self._routed
            if other.language == run.language and bool(other.folder) == bool(run.folder)
        ]
        return next((key for key in alike if key != run.key), NONE)

    def _receive(self, received: list[tuple[str, bytes | Path]]) -> None:
        self._own = [*received, *(one for one in self._own if one not in received)]
        if received:
            self.domain.value = OWN
            self._offer_clips()
            self.clip.index = 0

    def _offer_clips(self) -> None:
        run = self._run(self.run.value)
        self._cannot_offer: list[str] = []
        try:
            if self.domain.value == OWN:
                clips = [own_clip(*one, run.language) for one in self._own]
            else:
                clips = clips_of(run, self.domain.value, self._clips)
        except UserError as error:
            clips, self._cannot_offer = [], [str(error)]
        self._offered = {clip["id"]: clip for clip in clips}
        kept = self.clip.value
        _set_options(self.clip, [(_clip_label(clip), clip["id"]) for clip in clips])
        if kept in self._offered and self.domain.value != OWN:
            self.clip.value = kept

    def _run(self, key: str) -> ListedRun:
        return next(run for run in self.runs if run.key == key)

    # Views -----------------------------------------------------------------------------------

    def show(self) -> None:
        """Listen to what the controls say, and draw it."""
        self.notes.value = card("listening …")
        clip = self._offered.get(self.clip.value)
        run = self._run(self.run.value)
        if clip is None:
            self.scene = None
            self._clear(self._cannot_offer or [self._nothing(run)])
            return
        other = self._run(self.other.value) if self.other.value else None
        self.scene = self._listener.scene(run, clip, self.mode.value, other)
        layers = layers_of(self.scene.shown)
        with self._silently():
            offered = [(f"decoder layer {i}", i) for i in range(1, layers + 1)]
            _set_options(self.layer, [("the mean of the decoder's layers", MEAN), *offered])
        self._draw(self.scene)

    def _nothing(self, run: ListedRun) -> str:
        if self.domain.value == OWN:
            return "no recording of yours yet: use the button above, or give its path"
        return run.missing or "this test set has no clip that can be used"

    def _draw(self, scene: Scene) -> None:
        figure, transcripts = sound_figure(scene), transcripts_html(scene)
        picture = "" if figure is None else _image(figure, "spectrogram and encoder gates")
        # All at once: what is slow to make must not leave one clip's sound above another's words.
        self._draw_audio(scene.samples)
        self.sound.value, self.transcripts.value = picture, transcripts
        self._draw_tokens()
        self.notes.value = notes_html([*self._faults, *scene.notes])

    def _draw_audio(self, samples: np.ndarray | None) -> None:
        if samples is not None:  # an empty recording is none that a browser can load
            self.audio.value = _wav(samples)
        self.audio.layout.display = "none" if samples is None else ""

    def _draw_tokens(self) -> None:
        self.tokens.value = "" if self.scene is None else tokens_html(self.scene, self.layer.value)

    def _clear(self, notes: list[str]) -> None:
        self._draw_audio(None)
        self.sound.value = self.tokens.value = self.transcripts.value = ""
        self.notes.value = notes_html([*self._faults, *notes])

    def static(self, folder: Path) -> list[Figure | pd.DataFrame | HTML]:
        """Write what is shown now as PNG, SVG and CSV in ``folder``; returns it for display()."""
        notes = [HTML(self.notes.value)] if self.notes.value else []
        if self.scene is None:
            return notes
        return [*notes, *write_static(self.scene, self.layer.value, folder)]

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The widgets, and a picture for those who cannot show them."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        bundle = {"text/plain": "Gate explorer: run this cell to use it", _VIEW: view}
        if self.scene is not None and (figure := sound_figure(self.scene)) is not None:
            bundle["image/png"] = base64.b64encode(_png(figure)).decode()
        return bundle


def uploaded(value: Any) -> list[tuple[str, bytes]]:
    """(name, content) of each file of a FileUpload: a dict in ipywidgets 7, a tuple in 8."""
    if isinstance(value, dict):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


def _dropdown(description: str, options: Any = ()) -> widgets.Dropdown:
    return widgets.Dropdown(
        options=list(options), description=description, style={"description_width": "7em"},
        layout={"width": "auto", "min_width": "16em", "max_width": "40em"},
    )  # fmt: skip


def _set_options(control: widgets.Dropdown, options: list[tuple[str, Any]]) -> None:
    """New options; what was chosen stays so where it is still offered."""
    kept = control.value
    if list(control.options) != options:
        control.options = options
    values = [value for _, value in options]
    if values:
        control.value = kept if kept in values else values[0]


def _run_options(runs: list[ListedRun]) -> list[tuple[str, str]]:
    """Each run as the controls call it, and its key."""
    options = []
    for run, title in zip(runs, titles(run_about([run.record for run in runs])), strict=True):
        where = "" if run.folder else ", example only"
        options.append((f"{title} ({run.run_id}{where})", run.key))
    return options


def _clip_label(clip: Clip) -> str:
    text = " ".join(str(clip["text"] or "").split())
    return f"{clip['id']}: {text[:60]}{'…' if len(text) > 60 else ''}" if text else clip["id"]


def _wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _image(figure: Figure, alternative: str) -> str:
    data = base64.b64encode(_png(figure)).decode()
    return (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(alternative)}" '
        'style="max-width:100%;background:#fff">'
    )
