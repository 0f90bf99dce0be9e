"""Fixtures: no network, one thread, tiny random models with the embedded tokenizer."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg"}

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import settings
from transformers import GenerationConfig, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.utils import logging

from distilwhisper_lib.config.settings import locate, resolve
from distilwhisper_lib.data.corpora import read_folder
from distilwhisper_lib.model.layers import DistilWhisperConfig
from distilwhisper_lib.model.whisper import DistilWhisperForConditionalGeneration

logging.disable_progress_bar()
# The same inputs in every run; `python -m benchmarks.robustness.fuzz` tries others, and more.
settings.register_profile("suite", max_examples=50, deadline=None, derandomize=True, database=None)
settings.load_profile("suite")
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"
TALLIES = pytest.StashKey[dict]()  # bundle -> golden_bundles.Tally


def pytest_addoption(parser):
    parser.addoption(
        "--golden", metavar="DIR", default=str(GOLDEN), help="the recorded numbers of test_golden"
    )


def pytest_configure(config):
    config.stash[TALLIES] = {}


def pytest_terminal_summary(terminalreporter, config):
    for bundle, tally in config.stash[TALLIES].items():
        terminalreporter.write_line(f"golden {bundle}: {tally}")


@pytest.fixture(scope="session")
def processor() -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(locate("embedded/student"))


@pytest.fixture(scope="session")
def token(processor):
    """Special token -> id."""
    return processor.tokenizer.convert_tokens_to_ids


@pytest.fixture
def clean_figures():
    """A missing glyph or a squeezed layout is a warning; an open figure is shown twice."""
    import matplotlib.pyplot as plt  # late: most tests draw nothing

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert plt.get_fignums() == []


@pytest.fixture
def tiny_model(processor, token):
    """Factory of small random Whispers whose outputs differ from token to token.

    ``ranks``: language -> rank, of those whose experts are low-rank.
    """

    def make(
        *languages: str, seed: int = 0, ranks: dict[str, int] | None = None, **settings
    ) -> DistilWhisperForConditionalGeneration:
        torch.manual_seed(seed)
        end, start = token("<|endoftext|>"), token("<|startoftranscript|>")
        config = DistilWhisperConfig(
            vocab_size=len(processor.tokenizer),
            d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=150,
            max_target_positions=64, pad_token_id=end, bos_token_id=end, eos_token_id=end,
            decoder_start_token_id=start, begin_suppress_tokens=None, gate_dim=8, **settings,
        )  # fmt: skip
        model = DistilWhisperForConditionalGeneration(config).eval()
        model.generation_config = GenerationConfig(
            decoder_start_token_id=start, pad_token_id=end, eos_token_id=end, bos_token_id=end,
            is_multilingual=True, max_length=64, return_timestamps=False,
            lang_to_id={f"<|{code}|>": token(f"<|{code}|>") for code in LANGUAGES},
            task_to_id={task: token(f"<|{task}|>") for task in ("transcribe", "translate")},
            no_timestamps_token_id=token("<|notimestamps|>"),
            prev_sot_token_id=token("<|startofprev|>"),
            suppress_tokens=[i for i in range(start, len(processor.tokenizer))],
        )  # fmt: skip
        for language in languages:
            model.add_expert(language, (ranks or {}).get(language))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "embed_positions" not in name:
                    parameter.mul_(6)
                if ".clsr." in name:  # experts that differ from the FFN they were copied from
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    return make


@pytest.fixture
def speech_folder(tmp_path):
    """Factory of a small own-recordings folder of noises, with metadata.csv."""

    def make(name="speech", language="ca", splits=("train", "validation", "test"), clips=4):
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(0)
        rows = []
        for split in splits:
            for i in range(clips):
                file = f"{split}{i}.wav"
                seconds = 0.5 + 0.25 * i
                noise = rng.normal(0, 0.1, int(16_000 * seconds))
                soundfile.write(folder / file, noise, 16_000)
                rows.append((file, f"{split} frase {'abcdefgh'[i]}", language, split, f"s{i % 2}"))
        columns = ["file_name", "text", "language", "split", "speaker"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "metadata.csv", index=False)
        return folder

    return make


@pytest.fixture
def study_of(tmp_path, monkeypatch, tiny_model, processor, speech_folder):
    """Factory of factories of configurations over tiny random models and noise, in tmp_path."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("student", 0), ("teacher", 1)):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)

    def study(clips, **defaults):
        speech_folder("speech", clips=clips)
        speech_folder("ood", splits=("test",))

        def make(method, language="ca", **overrides):
            settings = dict(
                student="student", teacher="teacher", in_domain="folder/speech",
                out_of_domain="folder/ood", data_dir=str(tmp_path), batch_size=2, micro_batch=2,
                max_new_tokens=6, eval_batch_size=4, gate_dim=8, forgetting="",
            )  # fmt: skip
            return resolve(method, "demo", language, 7, settings | defaults | overrides)

        return make

    return study


@pytest.fixture
def table(speech_folder):
    """Six short clips in Catalan."""
    return read_folder(speech_folder(clips=6), "ca", "test")


@pytest.fixture
def kit(tmp_path):
    """A checkout with every notebook of the kit, empty, for the batch runner."""
    from kits import make_kit  # late: most tests run no notebook

    return make_kit(tmp_path)
