"""Whether a setting's value is one: its type, its range, what goes together."""

from __future__ import annotations

import json
import math
import re
import typing
from typing import Any, Literal

from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.io.checked import one_of, shown
from distilwhisper_lib.io.files import parse_json
from distilwhisper_lib.io.leaks import refuse_tokens
from distilwhisper_lib.languages import Language, code_in, find_language


def parse_overrides(overrides: dict[str, Any] | str | None) -> dict[str, Any]:
    """A dict or a JSON string, as a command line has it, as a dict; names are not checked.

    None of its values may hold a token: settings are written into records.
    """
    refuse_tokens("overrides", overrides)
    if isinstance(overrides, str):
        try:
            overrides = parse_json(overrides or "{}")
        except ValueError as error:
            told = error.msg if isinstance(error, json.JSONDecodeError) else reason(error)
            raise UserError(
                f"overrides {shown(overrides)} is not JSON ({told}): write it like "
                '{"max_steps": 2}'
            ) from None
    if overrides is None:
        return {}
    if not isinstance(overrides, dict):
        raise UserError(f"overrides {shown(overrides)}: expected a dict such as {{'max_steps': 2}}")
    return overrides


def coerce(name: str, value: Any, wanted: Any) -> Any:
    """Give ``value`` the type a field declares, or say what was expected.

    Command lines and YAML turn 1e-4 into a string and ``no`` into False, so numbers are read
    from strings and a bool is never taken for a number or a name.
    """
    if typing.get_origin(wanted) is Literal:
        return one_of(name, value, typing.get_args(wanted))
    options = typing.get_args(wanted) or (wanted,)
    if value is None and type(None) in options:
        return None
    kind = options[0]
    if isinstance(value, bool) is (kind is bool):
        if isinstance(value, kind):
            return value
        if kind in (int, float) and isinstance(value, (int, float, str)):
            try:
                number = float(value)
            except (ValueError, OverflowError):  # 400 digits
                number = None
            if number is not None and (kind is float or number.is_integer()):
                return kind(number)
    raise UserError(
        f"setting {name}={shown(value)} has the wrong type {type(value).__name__}: "
        f"expected {' or '.join('None' if o is type(None) else o.__name__ for o in options)}"
    )


_LONGEST = 30  # seconds: the window of every Whisper
_POSITIVE = ("batch_size", "micro_batch", "epochs", "gate_dim", "expert_rank", "gate_rate",
             "lora_rank", "max_new_tokens", "eval_batch_size", "learning_rate", "temperature",
             "clip_norm", "lora_alpha", "max_seconds", "train_size", "validation_size", "test_size",
             "forgetting_clips", "window_seconds", "averaged")  # fmt: skip
_NOT_NEGATIVE = ("gate_noise", "weight_decay", "gate_weight", "task_weight", "distil_weight",
                 "router_epochs", "epoch_clips", "workers", "patience")  # fmt: skip
_FRACTIONS = ("warmup_fraction", "label_smoothing", "gate_dropout", "expert_dropout", "skip",
              "budget", "lora_dropout", "adam_beta1", "adam_beta2",
              "expert_warmup", "straight_through_from", "timestamps")  # fmt: skip

_LARGEST = 2**53  # whole numbers up to here are the same in every JSON reader


def check_values(config: Any) -> None:
    """Raise UserError where a value of a RunConfig (whose file imports this one) is out of range,
    or two do not go together."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"setting {name}={value!r} is out of range: expected a finite number")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise UserError(f"setting {name}={shown(value)} is out of range: expected far less")
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"setting {name}={shown(value)} holds a NUL character: remove it")
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"setting {name}={value!r} is out of range: expected above 0")
    for name in _NOT_NEGATIVE:
        if (value := getattr(config, name)) < 0:
            raise UserError(f"setting {name}={value!r} is out of range: expected 0 or above")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed} is out of range: expected from 0 to 4294967295")
    if config.max_steps != -1 and config.max_steps < 1:
        raise UserError(f"setting max_steps={config.max_steps} is out of range: expected above 0")
    if not config.student.strip():
        raise UserError("setting student is empty: expected a hub name or a folder")
    if config.max_seconds > _LONGEST:
        raise UserError(
            f"setting max_seconds={config.max_seconds:g} is out of range: Whisper hears "
            f"{_LONGEST} s at once, and of a longer clip the sound would be cut and the text not"
        )
    if config.window_seconds is not None and config.window_seconds < config.max_seconds:
        raise UserError(
            f"window_seconds={config.window_seconds} cuts clips of up to max_seconds="
            f"{config.max_seconds:g}: set max_seconds to the window, or below"
        )
    heard = [find_language(name) for name in config.forgetting.split()]
    own = find_language(config.language)
    _check_language(own, config.speaks_as)
    for corpus, languages in ((config.in_domain, [own]), (config.out_of_domain, [own, *heard])):
        if re.split("[/@]", corpus)[0] == "fleurs":  # the only one that says what it has
            for language in languages:
                code_in("fleurs", language)
    for name in _FRACTIONS:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise UserError(f"setting {name}={value!r} is out of range: expected from 0 to 1")
    if config.timestamps and config.conventions == "authors":
        raise UserError(
            f"timestamps={config.timestamps:g} with conventions='authors', whose prompt says that "
            "there are none: leave one of them out"
        )
    if config.adapter == "token" and config.lora_layers != "feed_forward":
        raise UserError(
            f"lora_layers={config.lora_layers!r} with adapter='token', which changes no layer: "
            "leave one of them out"
        )
    if config.expert_warmup == 1 and not config.router_epochs and config.gate_mode != "open":
        raise UserError(
            "expert_warmup=1 with router_epochs=0 never trains a gate: set router_epochs above 0, "
            'or gate_mode to "open" for experts without gates'
        )
    if config.batch_size % config.micro_batch and config.batch_size > config.micro_batch:
        raise UserError(
            f"batch_size={config.batch_size} is no multiple of micro_batch={config.micro_batch}: "
            "choose a micro_batch that divides it"
        )


def check_teacher(config: Any) -> None:
    """Raise UserError where a run needs a teacher and its RunConfig names none.

    Not among check_values(): what a run without one would be called can be asked all the same.
    """
    if config.needs_teacher and not config.teacher.strip():
        raise UserError(
            f"method {config.method!r} needs a teacher, and the setting teacher names none: give a "
            "hub name or a folder, or choose another method"
        )


def _check_language(own: Language, speaks_as: str) -> None:
    if not own.known and not speaks_as:
        raise UserError(
            f"Whisper does not know the language {own.code!r}: lend it the token of a near one "
            'that it knows, as in {"speaks_as": "es"}'
        )
    if speaks_as == own.code or (speaks_as and not find_language(speaks_as).known):
        raise UserError(
            f"setting speaks_as={speaks_as!r} is no language whose token {own.code!r} could "
            "borrow: expected another one, and one that Whisper knows, such as 'es'"
        )
