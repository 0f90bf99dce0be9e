"""Whisper with language experts, on top of transformers' own Whisper.

The base keeps its stock weight names (``fc1`` and ``fc2`` *are* the shared branch) and the experts
live beside them under ``clsr``, so any stock checkpoint loads as it is, a model without experts
is stock Whisper bit for bit, and a saved base loads as stock Whisper again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSpeechSeq2Seq,
    GenerationConfig,
    WhisperForConditionalGeneration,
)
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import whisper_language
from distilwhisper_lib.model import authors, experts
from distilwhisper_lib.model.clsr import (
    SHARED,
    AnyExpert,
    GateMode,
    GateTrace,
    check_gate_mode,
)
from distilwhisper_lib.model.generation import complete
from distilwhisper_lib.model.hub import OPTIONS, Source, loading
from distilwhisper_lib.model.layers import (
    DistilWhisperConfig,
    RoutedDecoderLayer,
    RoutedEncoderLayer,
)
from distilwhisper_lib.model.low_rank import LowRankExpert
from distilwhisper_lib.model.rounding import rounded
from distilwhisper_lib.model.tensors import require_safe_torch


@dataclass
class DistilWhisperOutput(Seq2SeqLMOutput):
    """transformers' output plus the gates of this pass (with ``output_gates=True``).

    ``last_hidden_state``: (B, T, D), what the tied head reads; with ``with_logits=False``.
    """

    gates: GateTrace | None = None
    last_hidden_state: Tensor | None = None


class _ExpertsFromPrompt(GenerationMixin):
    """Reads each row's language from its decoder prompt.

    Whisper's ``generate`` calls ``super().generate`` once per 30 s segment with just the rows that
    are still running; standing there, in the method resolution order, makes mixed-language
    batches, beams, long recordings and temperature fallback route rightly by public names alone.
    """

    def generate(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        prompt = kwargs.get("decoder_input_ids")
        if kwargs.get("expert_ids") is None and prompt is not None:
            kwargs["expert_ids"] = self.expert_ids_of_prompt(prompt)
        return super().generate(inputs, *args, **kwargs)


class DistilWhisperForConditionalGeneration(WhisperForConditionalGeneration, _ExpertsFromPrompt):
    """Whisper whose layers route tokens between the shared FFN and one expert per language.

    Several languages can be resident and one batch can mix them. Rows whose language has no
    expert, and ``task="translate"``, use the shared branch.
    """

    config_class = DistilWhisperConfig
    config: DistilWhisperConfig
    # forward() takes **kwargs but ignores num_items_in_batch: without this line the Trainer
    # would not divide the loss by the accumulation steps.
    accepts_loss_kwargs = False
    _no_split_modules = ["RoutedEncoderLayer", "RoutedDecoderLayer"]
    # Rounded weights of a gate would flip tokens.
    _keep_in_fp32_modules_strict = ["gate"]

    def __init__(self, config: DistilWhisperConfig) -> None:
        super().__init__(config)
        encoder, decoder = self.model.encoder, self.model.decoder
        encoder.layers = nn.ModuleList(
            RoutedEncoderLayer(config, i) for i in range(config.encoder_layers)
        )
        decoder.layers = nn.ModuleList(
            RoutedDecoderLayer(config, i) for i in range(config.decoder_layers)
        )
        self.source = Source("")  # what it was loaded from
        self._unheard: frozenset[str] = frozenset()  # see _asked_for()
        self.post_init()

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Load a stock Whisper, a saved DistilWhisper or a checkpoint of the authors' layout.

        From a folder or a hub name. Fields of DistilWhisperConfig can be given by name, as with
        any transformers model. Raises UserError when there is no such model, or it cannot be read.
        """
        require_safe_torch()  # it may be a .bin
        source = Source(name or "", {key: kwargs[key] for key in OPTIONS if key in kwargs})
        given = "config" in kwargs
        with loading(name):
            fields = _read_config(source, optional=given)
            source = source.at_commit()
            kwargs |= source.options
            own = [] if given else [key for key in kwargs if hasattr(DistilWhisperConfig, key)]
            if authors.is_theirs(fields):
                fields |= {key: kwargs.pop(key) for key in own}
                model = cls._from_authors(source, fields, *args, **kwargs)
            else:
                # transformers would give our own fields to the generation config too, and
                # generate() would then take its gate_mode for a setting of that one.
                if (fields.pop("model_type", None) == "whisper" or own) and not given:
                    fields |= {key: kwargs.pop(key) for key in own}
                    kwargs["config"] = DistilWhisperConfig.from_dict(fields)
                model = super().from_pretrained(source.name or name, *args, **kwargs)
        loaded = model[0] if isinstance(model, tuple) else model
        loaded.source = source
        if source.name:
            complete(loaded.generation_config, loaded.config, source)
        return model

    @classmethod
    def _from_authors(
        cls, source: Source, fields: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Load the authors' layout, and any experts in it.

        The tensors are renamed here: transformers' own ``key_mapping`` would write the authors'
        names again in save_pretrained.
        """
        state, languages = authors.read_base(source)
        config = copy.deepcopy(kwargs.pop("config", None)) or DistilWhisperConfig.from_dict(fields)
        generation_config = authors.read_generation_config(source)
        generation_config = generation_config or GenerationConfig.from_model_config(config)
        complete(generation_config, config, source)
        tokens = {code: authors.language_token(generation_config, code) for code in languages}
        config.expert_tokens = tokens or None
        elsewhere = {"use_safetensors", "variant", "weights_only", "output_loading_info", *OPTIONS}
        model, info = super().from_pretrained(
            None,
            *args,
            config=config,
            state_dict=state,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported just below
            **{key: value for key, value in kwargs.items() if key not in elsewhere},
        )
        authors.check_complete(info, source.name)
        model.generation_config = generation_config
        model.name_or_path = model.config.name_or_path = str(source.name)
        return (model, info) if kwargs.get("output_loading_info") else model

    # Experts -----------------------------------------------------------------------------

    @property
    def languages(self) -> list[str]:
        """Whisper codes of the resident experts."""
        return self.config.expert_languages

    def routed_layers(self) -> list[RoutedEncoderLayer | RoutedDecoderLayer]:
        """Every layer that routes, the encoder's first."""
        return [*self.model.encoder.layers, *self.model.decoder.layers]

    @property
    def layer_names(self) -> list[str]:
        """The names that a gate_mode gives layers: encoder.1, ..., decoder.1, ..."""
        return [layer.route_name for layer in self.routed_layers()]

    def borrow_token(self, language: str, lender: str) -> None:
        """Let a language without a token speak under another's: generate() and experts take it.

        generate() then routes by the language that it is asked for, and what is detected is always
        the ``lender``. In forward() a prompt with the token is the borrower's. Raises UserError
        where the model has a token of the language's own, or none of the lender's.
        """
        (code, _), (theirs, _) = whisper_language(language), whisper_language(lender)
        known = self.config.speaks_as or {}
        token = self._language_token(theirs)
        if known.get(code) == theirs:
            return
        tokens = self.generation_config.lang_to_id
        if f"<|{code}|>" in tokens:
            owner = f"borrows that of {known[code]!r}" if code in known else "is the model's own"
            raise UserError(
                f"language {code!r} cannot speak as {theirs!r}: it has a token here already, which "
                f"{owner}; leave speaks_as out, or load the model again"
            )
        self.generation_config.lang_to_id = tokens | {f"<|{code}|>": token}
        self.config.speaks_as = known | {code: theirs}

    def add_expert(self, language: str, rank: int | None = None) -> str:
        """Give ``language`` (name or code) an expert in every layer; returns its code.

        Each expert starts as a copy of the layer's FFN, or, with a ``rank``, as no change of it;
        each gate as N(0, init_std) with bias 0. Raises UserError when it is there already or the
        tokenizer has no such language.
        """
        code, _ = whisper_language(language)
        if code in self.languages:
            raise UserError(f"language {code!r} has an expert already: remove_expert() it first")
        self._language_token(code)
        fresh = []
        for layer in self.routed_layers():
            expert = layer.new_expert(layer.fc1.weight.device, rank)
            for linear in (expert.gate.inner, expert.gate.outer):
                nn.init.normal_(linear.weight, std=self.config.init_std)
            nn.init.zeros_(expert.gate.inner.bias)
            for name in ("fc1", "fc2"):
                if rank is None:
                    getattr(expert, name).load_state_dict(getattr(layer, name).state_dict())
                else:
                    getattr(expert, name).reset()
            fresh.append(expert.to(layer.fc1.weight))
        self._attach(code, fresh)
        return code

    def _attach(self, code: str, fresh: list[AnyExpert]) -> None:
        """Give every layer its new expert: the model changes here and nowhere before."""
        token = self._language_token(code)
        for layer, expert in zip(self.routed_layers(), fresh, strict=True):
            layer.clsr[code] = expert.train(self.training)
        self.config.expert_tokens = {**(self.config.expert_tokens or {}), code: token}
        ranks = {k: v for k, v in (self.config.expert_ranks or {}).items() if k != code}
        if isinstance(fresh[0], LowRankExpert):
            ranks[code] = fresh[0].rank
        self.config.expert_ranks = ranks or None

    def remove_expert(self, language: str) -> None:
        """Take a language's experts and gates out of every layer."""
        code = self._resident(language)
        for layer in self.routed_layers():
            del layer.clsr[code]
        for name in ("expert_tokens", "expert_ranks"):
            known = getattr(self.config, name) or {}
            setattr(self.config, name, {k: v for k, v in known.items() if k != code} or None)

    def load_experts(
        self,
        language: str,
        source: str | Path | None = None,
        *,
        convert: bool = False,
        **hub: Any,
    ) -> dict[str, str]:
        """Load one language's experts; ``language`` is a name or a code, in any case.

        Returns what the file says of itself.

        ``source``: an expert file, or a folder or hub repository that is searched for
        ``expert.<name>.safetensors``, ``expert.<name>.bin`` and ``<code>-experts.bin``, in this
        order; None: where this model came from. ``hub``: revision, token, cache_dir,
        local_files_only, force_download, subfolder. ``convert``: also write our safetensors beside
        an authors' ``.bin``, and again when that has changed since, which is an error without it.
        All is checked first, and a failed load, a UserError, leaves the model as it was. Experts
        that are to be heard with other gates than 0 or 1 say so: the first one sets
        config.gate_mode. Those of a language without a token bring the one they borrow.
        """
        code, _ = whisper_language(language)
        place = self.source if source is None else Source(source)
        if not place.name:
            raise UserError(
                "this model was loaded from nowhere that could hold experts: name their source"
            )
        place = Source(place.name, place.options | hub)
        path = experts.up_to_date(experts.find_expert(code, place), convert)
        tensors, about = experts.read_expert(path, code)
        self._language_token(about.get("speaks_as", code))
        experts.check_expert(self, code, tensors)
        mode = about.get("gate_mode", "learned")
        if mode != self.config.gate_mode and set(self.languages) - {code}:
            raise UserError(
                f"expert file {path} is to be heard with {mode} gates, the experts that are here "
                f"with {self.config.gate_mode} ones: load them into a model each"
            )
        if "speaks_as" in about:
            self.borrow_token(code, about["speaks_as"])
        if convert and path.suffix != ".safetensors":
            experts.convert_expert(path, code)
        if code in self.languages and experts.rank_of(tensors) == self.rank_of(code):
            self.load_state_dict(experts.to_model_names(tensors, code), strict=False)
        else:
            self._attach(code, experts.build_experts(self, tensors))
        self.config.gate_mode = mode
        return about

    def save_experts(
        self,
        language: str,
        folder: str | Path,
        layout: str = "kit",
        dtype: torch.dtype = torch.float32,
        **metadata: str,
    ) -> Path:
        """Write one language's experts to ``folder/expert.<name>.safetensors``, with ``metadata``.

        layout "authors": to ``folder/expert.<name>.bin``, which the public code loads, and which
        has no room for metadata; low-rank experts become whole networks in it. ``dtype``: float32,
        float16 (half the file) or int8 (a quarter), see rounding.py; loading turns it back into the
        model's. Raises UserError for any other, for int8 in the authors' layout, and there for
        experts that are not heard with gates of 0 or 1, which it cannot say.
        """
        code = self._resident(language)
        if layout not in experts.LAYOUTS:
            raise UserError(
                f"layout {layout!r} is unknown: expected one of {', '.join(experts.LAYOUTS)}"
            )
        tensors = experts.from_model_names(self.state_dict(), code)
        if layout == "authors":
            self._check_authors_can_hear(dtype)
            gates = {name: tensor for name, tensor in tensors.items() if ".gate." in name}
            whole = experts.whole_networks(self, code)
            return experts.write_authors_expert(rounded(gates | whole, dtype), code, folder)
        tensors = rounded(tensors, dtype)
        about = {"base": self.name_or_path, "gate_mode": self.config.gate_mode, **metadata}
        if lender := (self.config.speaks_as or {}).get(code):
            about["speaks_as"] = lender
        return experts.write_expert(tensors, code, folder, about)

    def _check_authors_can_hear(self, dtype: torch.dtype) -> None:
        if self.config.gate_mode != "learned":
            raise UserError(
                f"layout 'authors' cannot say that gates are {self.config.gate_mode}, and the "
                "public code would hear hard ones: save in layout 'kit'"
            )
        if dtype == torch.int8:
            raise UserError(
                "layout 'authors' has no int8: save in float32 or float16, or in layout 'kit'"
            )

    def freeze_all_but_expert(self, language: str, gates_alone: bool = False) -> None:
        """Let only one language's experts and gates train, or its gates alone."""
        mine = f".clsr.{self._resident(language)}." + "gate." * gates_alone
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(mine in name)

    def rank_of(self, language: str) -> int | None:
        """The rank of a resident language's experts; None of whole feed-forward networks."""
        return (self.config.expert_ranks or {}).get(self._resident(language))

    def set_language_task(self, language: str | None = None, task: str = "transcribe") -> None:
        """What ``generate`` does when it is given neither ``language`` nor ``task``.

        Raises UserError for a language that the model has no token for.
        """
        if language is not None:
            code, language = whisper_language(language)
            self._language_token(code)
        self.generation_config.language = language
        self.generation_config.task = task

    def _resident(self, language: str) -> str:
        code, _ = whisper_language(language)
        if code not in self.languages:
            raise UserError(
                f"language {code!r} has no expert here (resident: {', '.join(self.languages)}): "
                "add_expert() or load_experts() it first"
            )
        return code

    def _language_token(self, code: str) -> int:
        return authors.language_token(self.generation_config, code)

    # Routing -----------------------------------------------------------------------------

    def expert_ids_of(self, language_ids: Tensor) -> Tensor:
        """Language token ids (B,) -> index of each row's expert, or SHARED (B,).

        On the CPU, where the layers look at them: on a GPU each look would wait for the device.
        """
        index = {
            token: i
            for i, (code, token) in enumerate((self.config.expert_tokens or {}).items())
            if code not in self._unheard
        }
        return torch.tensor([index.get(token, SHARED) for token in language_ids.tolist()])

    @contextmanager
    def _asked_for(self, languages: Sequence[str]) -> Iterator[None]:
        """Where just these codes are asked for: experts of others stay unheard that share a token.

        UserError where two of them share one, which then cannot tell their rows apart.
        """
        token = dict(self.config.expert_tokens or {}) | {
            code: self._language_token(code) for code in languages
        }
        owner: dict[int, str] = {}
        for code in languages:
            if (other := owner.setdefault(token[code], code)) != code:
                raise UserError(
                    f"languages {other!r} and {code!r} speak under one token: transcribe them in "
                    "calls of their own"
                )
        borrowers = self.config.speaks_as or {}
        self._unheard = frozenset(
            code
            for code in self.languages
            if owner.get(token[code], None if code in borrowers else code) != code
        )
        try:
            yield
        finally:
            self._unheard = frozenset()

    def expert_ids_of_prompt(self, prompt: Tensor) -> Tensor:
        """Decoder prompts (B, T), "... start language task ...", -> (B,) as expert_ids_of()."""
        start = (prompt == self.config.decoder_start_token_id).int().argmax(1)

        def token_after_start(offset: int) -> Tensor:
            position = (start + offset).clamp(max=prompt.shape[1] - 1)
            return prompt.gather(1, position[:, None]).squeeze(1)

        ids = self.expert_ids_of(token_after_start(1))
        tasks = getattr(self.generation_config, "task_to_id", None) or {}
        # An expert learns to transcribe: translation goes through the shared branch.
        translates = token_after_start(2).cpu() == tasks.get("translate", SHARED)
        return ids.masked_fill(translates, SHARED)

    @contextmanager
    def _hearing(self, input_features: Tensor | None) -> Iterator[None]:
        """Where ``fit_window`` lets features shorter than the window be heard in fewer positions.

        The fixed sinusoids begin at the same place in any window: the first ones are taken.
        """
        encoder, whole = self.model.encoder, self.config.max_source_positions
        positions = whole
        if self.config.fit_window and input_features is not None:
            stride = encoder.conv1.stride[0] * encoder.conv2.stride[0]
            positions = min(input_features.shape[-1] // stride, whole)
        self.config.max_source_positions = encoder.embed_positions.num_embeddings = positions
        try:
            yield
        finally:
            self.config.max_source_positions = encoder.embed_positions.num_embeddings = whole

    def encode(self, input_features: Tensor, languages: list[str]) -> BaseModelOutput:
        """The encoder alone, each row through its own expert: (B, mels, frames) -> (B, T, D).

        As ``generate(encoder_outputs=...)`` takes it, whatever route the decoder then follows.
        """
        codes = [whisper_language(name)[0] for name in languages]
        tokens = torch.tensor([self._language_token(code) for code in codes])
        with self._asked_for(codes):
            expert_ids = self.expert_ids_of(tokens)
        with self._hearing(input_features):
            return self.model.encoder(input_features, expert_ids=expert_ids)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Whisper's generate(), with ``language`` (or a list, one a row) by any name or code.

        Without a language it is Whisper that detects one for each row, through the shared route,
        and the row then goes through the expert of what was detected, if there is one. In
        forward(), a prompt without a language takes the shared route.
        """
        heard = kwargs.get("input_features", args[0] if args else None)
        tokens: list[str] = []
        if (given := kwargs.get("language")) is not None:
            config = kwargs.get("generation_config") or self.generation_config
            listed = given if isinstance(given, (list, tuple)) else [given]
            tokens = [_prompt_language(language, config) for language in listed]
            kwargs["language"] = tokens if listed is given else tokens[0]
        asked = [token.strip("<|>") for token in tokens] if self.config.speaks_as else None
        with self._hearing(heard), nullcontext() if asked is None else self._asked_for(asked):
            return super().generate(*args, **kwargs)

    def forward(
        self,
        input_features: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        encoder_outputs: Any = None,
        decoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        language_ids: Tensor | None = None,
        expert_ids: Tensor | None = None,
        gate_mode: GateMode | None = None,
        gate_noise: float = 0.0,
        straight_through: bool = False,
        output_gates: bool = False,
        with_logits: bool = True,
        **kwargs: Any,
    ) -> DistilWhisperOutput:
        """Whisper's forward, routed.

        ``language_ids``: language token of each row (B,); read from the decoder prompt when left
        out. ``expert_ids``: the same as indices, see expert_ids_of(). ``gate_mode``: "learned",
        "open" (expert everywhere), "closed" (shared everywhere), "soft" (both, weighed as in
        training) or a number, the share of tokens that the expert gets at random; or one of these
        by layer name, {"encoder.1": "closed"}, all others learned; None is config.gate_mode. Of
        training alone:
        ``gate_noise``, its alpha; ``straight_through``, gates that are 0 or 1 there too.
        ``output_gates``: return a GateTrace. ``with_logits=False``: stop before the head, and
        return the decoder's final hidden states instead of logits (and of any loss).
        """
        if gate_mode is not None:
            check_gate_mode(gate_mode, self.layer_names)
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = shift_tokens_right(
                labels, self.config.pad_token_id, self.config.decoder_start_token_id
            )
        if expert_ids is None and language_ids is not None:
            expert_ids = self.expert_ids_of(language_ids)
        if expert_ids is None and decoder_input_ids is not None:
            expert_ids = self.expert_ids_of_prompt(decoder_input_ids)
        trace = GateTrace() if output_gates else None
        if with_logits:
            kwargs["labels"] = labels
        inner = super().forward if with_logits else self.model
        with self._hearing(input_features):
            out = inner(
                input_features=input_features,
                decoder_input_ids=decoder_input_ids,
                encoder_outputs=encoder_outputs,
                decoder_attention_mask=decoder_attention_mask,
                past_key_values=past_key_values,
                expert_ids=expert_ids,
                gate_mode=gate_mode,
                gate_noise=gate_noise,
                straight_through=straight_through,
                gate_trace=trace,
                **kwargs,
            )
        if trace is not None:
            trace.complete = True
        return DistilWhisperOutput(**out, gates=trace)


def _prompt_language(language: str, generation_config: GenerationConfig) -> str:
    """A language as generate() takes it: its token as it stands, else its code."""
    if language in authors.language_tokens(generation_config):
        return language
    code, _ = whisper_language(language)
    authors.language_token(generation_config, code)
    return f"<|{code}|>"


def _read_config(source: Source, optional: bool) -> dict[str, Any]:
    """The fields of a checkpoint's config.json; empty when it has none and needs none."""
    try:
        if not source.name:
            return {}
        return DistilWhisperConfig.get_config_dict(source.name, **source.options)[0]
    except OSError:
        if optional:
            return {}
        raise


AutoConfig.register("distilwhisper", DistilWhisperConfig)
AutoModelForSpeechSeq2Seq.register(DistilWhisperConfig, DistilWhisperForConditionalGeneration)
