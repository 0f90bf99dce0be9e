"""transcribe() with the settings that its tests share: few tokens, small batches, no bar."""

from __future__ import annotations

from typing import Any

from distilwhisper_lib.evaluation.decoding import transcribe


def run(model, processor, table, path=None, **options) -> list[dict[str, Any]]:
    options = {"max_new_tokens": 6, "batch_size": 4, "progress": False} | options
    return transcribe(model, processor, table, path, **options)
