"""Our numbers against those of the authors' public code, which nobody here wrote.

``pytest tests/model/test_golden.py --golden DIR`` takes any folder in golden/README.md's format;
without the option, tests/golden, a copy of the public set without convert/converted.safetensors.
Tolerances are that file's. Everything goes through the functions that users and training use:
from_pretrained, load_experts, generate, divergences, and objective with conventions="authors".

What our design answers differently, and why:

- Language None crashes the public code. Here forward(), given a prompt without a language, takes
  the shared route, which is checked against ``none/*``, made with its skip branch. generate()
  without a language detects one for each row, as Whisper does, and routes by it: no golden value
  can say so, test_model.py does.
- Task "translate" crashes it too. Here it takes the shared route, because experts learn to
  transcribe; the mixture that was meant (expert encoder, shared decoder) is checked on forward().
- Its sampler fills batches with one language each, but the last ones mix languages and go through
  the first sample's expert. Here a run trains one language, so there is no sampler: complete
  batches are checked, the mixed tails do not exist. At inference a batch may mix languages, and
  each row goes through its own expert.
- Experts of all languages stay unfrozen there, but only the active one gets gradients. Here only
  that one is unfrozen; the gradients are checked with all unfrozen.
- A budget of the model inside the budget of the trainer takes two absolute values. Here there is
  one budget. 0.0 is a legal one: gate_weight 0.0 switches the loss off.
- "KLseq" divides by clips instead of positions, padding included: it is KL with T times the
  weight, T the padded length of the labels.
- The halves of JS are not given apart: their mean is what is trained on, and compared.
- Learnable sigma and KD warm-up are not offered: no published recipe uses them.
- restart_gates and add_language draw gates in two further ways. Here an expert always starts as in
  the conversion; remove_expert() and add_expert() start it anew.
- A file that lacks tensors is accepted there, and leaves random weights. Here it is refused: see
  test_expert_faults.py.
"""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from golden_bundles import (
    Bundle,
    Compare,
    budget_settings,
    code_of,
    languages_of,
    losses_of,
    runs_of,
)
from golden_models import (
    EVERYWHERE,
    configured,
    experts_of,
    forward,
    generate,
    load_base,
    load_student,
    load_teacher,
    recorded_gates,
    states_of,
    train_step,
    whisper_small,
    write_checkpoint,
)
from safetensors.torch import load_file
from torch.utils.data import BatchSampler

from distilwhisper_lib import DistilWhisperForConditionalGeneration
from distilwhisper_lib.losses.divergences import cross_entropy, gate_budget
from distilwhisper_lib.losses.objective import gate_means, gate_noise, loss_parts
from distilwhisper_lib.losses.teacher import Teacher
from distilwhisper_lib.model.authors import their_name
from distilwhisper_lib.scoring.rates import score
from distilwhisper_lib.scoring.text import normalize_whisper

LOGITS = {"atol": 1e-4}
SOFT_GATES = {"atol": 1e-5}
GRADIENTS = {"rtol": 1e-4}  # of the tensor's largest magnitude
LOSSES = {"rtol": 1e-5}
INPUTS = re.compile(
    r"(noise|gates)/.*|input_features|decoder_input_ids|(.*/)?labels|.*/(student|teacher)_logits"
)


def pytest_generate_tests(metafunc):
    golden = Path(metafunc.config.getoption("golden"))
    if not (golden / "base").is_dir():
        raise pytest.UsageError(f"--golden {golden}: no folder of golden vectors")
    for name, values in (
        ("language", lambda: languages_of(golden)),
        ("run_name", lambda: list(runs_of(golden))),
        ("case", lambda: [k for k, v in losses_of(golden).items() if "ce_loss" in v]),
    ):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values())


@pytest.fixture(scope="module")
def golden(pytestconfig):
    return Path(pytestconfig.getoption("golden"))


@pytest.fixture
def compare(pytestconfig):
    from conftest import TALLIES

    return lambda bundle: Compare(pytestconfig.stash[TALLIES], bundle)


@pytest.fixture(scope="module")
def models(golden, tmp_path_factory):
    """Fresh copies of the base and of the student with experts."""
    folder = tmp_path_factory.mktemp("models")
    base, student = load_base(golden, folder / "base"), load_student(golden, folder / "student")
    return {
        "base": lambda: copy.deepcopy(base),
        "student": lambda: copy.deepcopy(student),
    }


@pytest.fixture(scope="module")
def inputs(golden):
    return Bundle(golden, "base").tensors


# base and clsr_eval --------------------------------------------------------------------------


@torch.no_grad()
def test_base(golden, models, inputs, compare):
    compare, model = compare("base"), models["base"]()
    assert not model.languages
    out = forward(model, inputs, None, output_hidden_states=True)
    compare("logits", out.logits, inputs["logits"], **LOGITS)
    for name in [name for name in inputs if "_hidden_state" in name]:
        ours = getattr(out, name.split("/")[0])
        ours = ours[int(name.split("/")[1])] if "/" in name else ours
        compare(name, ours, inputs[name], **LOGITS)
    loss = cross_entropy(out.logits, inputs["labels"])
    compare("loss", loss[None], inputs["loss"], **LOSSES)
    from_labels = model(input_features=inputs["input_features"], labels=inputs["labels"])
    compare("logits from labels", from_labels.logits, inputs["logits"], **LOGITS)
    for variant in ("plain", "prompt"):
        ids = generate(model, golden, inputs, None, variant)
        compare(f"generate/{variant}", ids, inputs[f"generate/{variant}"])


@torch.no_grad()
def test_eval(golden, models, inputs, compare, language):
    """Hard gates, states, logits, both forced routes and greedy ids of one language."""
    compare, model = compare("clsr_eval"), models["student"]()
    bundle = Bundle(golden, "clsr_eval")
    expected, about = bundle.below(language), bundle.values["per_language"][language]
    scores = []
    for layer in model.routed_layers():
        gate = layer.clsr[code_of(language)].gate
        gate.register_forward_hook(lambda _, __, score: scores.append(score))
    out = forward(model, inputs, language, output_gates=True, output_hidden_states=True)
    compare(f"{language}/logits", out.logits, expected["logits"], **LOGITS)
    for side in ("encoder", "decoder"):
        for i, gates in enumerate(getattr(out.gates, side)):
            name = f"{side}_gate/{i}"
            compare(f"{language}/{name}", gates.values, expected[name])
            name = f"{side}_gate_logit/{i}"
            compare(f"{language}/{name}", scores.pop(0), expected[name], **LOGITS)
            mean = about["gate_mean_per_layer"][side][i]
            compare("mean gate of a layer", gates.values.mean().item(), mean, **LOSSES)
    for name in [name for name in expected if "_hidden_state" in name]:
        ours = getattr(out, name.split("/")[0])
        ours = ours[int(name.split("/")[1])] if "/" in name else ours
        compare(f"{language}/{name}", ours, expected[name], **LOGITS)
    ce = cross_entropy(out.logits, inputs["labels"], 0.1)
    compare("cross entropy", ce, about["ce_loss_label_smoothing_0.1"], **LOSSES)
    mean = gate_means(out.gates, EVERYWHERE).gate_mean
    for name in [name for name in about if name.startswith("gate_loss(")]:
        on, budget = budget_settings(name)
        compare(name, gate_budget(mean, budget) if on else mean, about[name], **LOSSES)
    name = "expert_only_logits"
    opened = forward(model, inputs, language, gate_mode="open").logits
    compare(f"{language}/{name}", opened, expected[name], **LOGITS)
    closed = forward(model, inputs, language, gate_mode="closed").logits
    compare("closed gates", closed, bundle.tensors["none/logits"], **LOGITS)
    for variant in ("plain", "prompt"):
        ids = generate(model, golden, inputs, language, variant)
        compare(f"{language}/generate/{variant}", ids, expected[f"generate/{variant}"])


@torch.no_grad()
def test_no_language_is_the_base(golden, models, inputs, compare):
    compare, model = compare("clsr_eval"), models["student"]()
    bundle = Bundle(golden, "clsr_eval")
    out = forward(model, inputs, None)
    compare("none/logits", out.logits, bundle.tensors["none/logits"], **LOGITS)
    name = "none/encoder_last_hidden_state"
    compare(name, out.encoder_last_hidden_state, bundle.tensors[name], **LOGITS)
    ce = cross_entropy(out.logits, inputs["labels"], 0.1)
    golden_ce = bundle.values["other"]["none"]["ce_loss_label_smoothing_0.1"]
    compare("none/cross entropy", ce, golden_ce, **LOSSES)


@torch.no_grad()
def test_expert_encoder_with_shared_decoder(golden, models, inputs, compare, language):
    model = models["student"]()
    rows = len(inputs["labels"])
    encoder_outputs = model.model.encoder(
        inputs["input_features"], expert_ids=experts_of(model, language, rows)
    )
    logits = model(
        encoder_outputs=encoder_outputs,
        decoder_input_ids=inputs["decoder_input_ids"],
        expert_ids=experts_of(model, None, rows),
    ).logits
    name = f"{language}/translate_intended_logits"
    compare("clsr_eval")(name, logits, Bundle(golden, "clsr_eval").tensors[name], **LOGITS)


@torch.no_grad()
def test_tie(golden, models, inputs, compare):
    model, bundle = models["student"](), Bundle(golden, "clsr_eval")
    language = bundle.values["other"]["tie"]["language"]
    for layer in model.routed_layers():
        layer.clsr[code_of(language)].gate.outer.weight.zero_()
    out = forward(model, inputs, language, output_gates=True)
    compare("clsr_eval")("tie/logits", out.logits, bundle.tensors["tie/logits"], **LOGITS)
    assert all(g.values.eq(1).all() for g in (*out.gates.encoder, *out.gates.decoder))


# clsr_train ----------------------------------------------------------------------------------


def test_train(golden, models, inputs, compare, monkeypatch, run_name):
    """Soft gates, outputs, every loss part and every gradient of one training step."""
    compare, recorded = compare("clsr_train"), runs_of(golden)[run_name]
    expected = Bundle(golden, "clsr_train").below(run_name)
    variants = {name.rpartition("/")[2] for name in runs_of(golden)}
    expected = {k: v for k, v in expected.items() if k.split("/")[0] not in variants}
    model = models["student"]().train()
    for name, parameter in model.named_parameters():  # as the public code: all languages
        parameter.requires_grad_(".clsr." in name)
    printed, ours = train_step(golden, model, inputs, run_name, monkeypatch)
    for name in sorted(set(printed) & set(recorded)):
        # Close to the budget, |mean - budget| keeps few of the mean's digits.
        tolerance = {"atol": 1e-6} if name == "gate_loss" else LOSSES
        compare(f"{run_name}/{name}", printed[name], recorded[name], **tolerance)
    for name, tensor in expected.items():
        tolerance = GRADIENTS if "grad/" in name else SOFT_GATES if "_gate/" in name else LOGITS
        compare(f"{run_name}/{name}", ours[name], tensor, **tolerance)
    gradients = {name: t for name, t in ours.items() if name.startswith("grad/")}
    assert gradients.keys() == {name for name in expected if name.startswith("grad/")}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    compare(f"{run_name}/norm of all gradients", norm, recorded["grads_norm"], rtol=1e-4)
    without = {
        their_name(name)
        for name, parameter in model.named_parameters()
        if f".clsr.{code_of(recorded['language'])}." in name and parameter.grad is None
    }
    assert without == set(recorded["active_params_without_grad"])
    if "logits_equal_base" in recorded:
        compare(f"{run_name}/logits of the base", ours["logits"], inputs["logits"], **LOGITS)


def test_teacher(golden, inputs, compare):
    states, head = Teacher(load_teacher(golden)).targets(inputs)
    logits = states @ head.T
    expected = Bundle(golden, "clsr_train").tensors["teacher_logits"]
    compare("clsr_train")("teacher_logits", logits, expected, **LOGITS)


def test_what_trains(golden, models):
    """Freezing leaves one language; over all languages, what the public code leaves."""
    model, names = models["student"](), set()
    for code in model.languages:
        model.freeze_all_but_expert(code)
        trains = {their_name(n) for n, p in model.named_parameters() if p.requires_grad}
        assert trains and not trains & names
        names |= trains
    about = Bundle(golden, "clsr_train").values["runs"]["trainable_after_freezing"]
    assert names == set(about["names"])
    assert len(names) == about["count"]


def test_noise_beyond_the_end_and_at_the_start(golden):
    run = configured("clsr")
    facts = Bundle(golden, "clsr_train").values["runs"]
    assert facts["step_1.0_identical_to_step_0.0"] and facts["step_1.7_identical_to_step_1.0"]
    assert gate_noise(run, 0.0) == gate_noise(run, 1.0) == gate_noise(run, 1.7) == 5.0


def test_open_gates_in_training_are_the_expert_alone(golden, models, inputs, compare, language):
    model = models["student"]().train()
    logits = forward(model, inputs, language, gate_mode="open").logits
    expected = Bundle(golden, "clsr_eval").tensors[f"{language}/expert_only_logits"]
    compare("clsr_train")(f"{language}: open gates in training", logits, expected, **LOGITS)


def test_every_dropout(golden, models, inputs, compare, monkeypatch, tmp_path):
    """Probability, mode and size of each dropout call, in order."""
    recorded = Bundle(golden, "clsr_train").values["runs"]["dropout_calls_in_order"]
    model = load_student(
        golden,
        tmp_path,
        gate_dropout=0.1,
        expert_dropout=0.3,
        attn_implementation="eager",
        **recorded["config"],
    ).train()
    calls = []

    def record(x, p=0.5, training=True, inplace=False):
        calls.append([p, training, x.numel()])
        return x

    monkeypatch.setattr(torch.nn.functional, "dropout", record)
    forward(model, inputs, languages_of(golden)[0])
    expected = [[p, on, math.prod(shape)] for p, on, shape in recorded["calls"]]
    compare("clsr_train")("dropout calls", calls, expected)


# losses --------------------------------------------------------------------------------------


def test_losses(golden, compare, case):
    """Every kind at every temperature and sigma pair, with its gradients."""
    compare, bundle = compare("losses"), Bundle(golden, "losses")
    tensors, recorded = bundle.tensors, losses_of(golden)[case]
    labels, teacher = tensors[f"{case}/labels"], tensors[f"{case}/teacher_logits"]
    student = tensors[f"{case}/student_logits"].clone().requires_grad_()
    gates, trace = recorded_gates(tensors)
    mean = gate_means(trace, EVERYWHERE).gate_mean
    compare(f"{case}/mean gate", mean, recorded["mean_gate"], **LOSSES)
    value = {"same": {"atol": 1e-6}, "peaky": {"rtol": 1e-4}}.get(case, LOSSES)
    slope = {"same": {"atol": 1e-6}, "peaky": {"atol": 1e-6}}.get(case, GRADIENTS)
    for key in [key for key in recorded if key.startswith("gate_loss(")]:
        budget = float(re.search(r"budget=([\d.]+)", key)[1])
        run = configured("clsr", budget=budget)
        parts = loss_parts(run, states_of(student), labels, mean)
        compare(f"{case}/{key}", parts.gate, recorded[key], **LOSSES)
        compare(f"{case}/cross entropy", parts.ce, recorded["ce_loss"], **LOSSES)
        (gradient,) = torch.autograd.grad(parts.ce, student)
        compare(f"{case}/grad_ce", gradient, tensors[f"{case}/grad_ce"], **GRADIENTS)
    for kind in ("JS5", "KL", "KLseq"):
        # A mean over clips is the mean over positions, times the positions of a clip; so are
        # the absolute tolerances.
        times = labels.shape[1] if kind == "KLseq" else 1
        for key, about in recorded[kind].items():
            name, temperature = f"{case}/{kind}/{key}", float(key.removeprefix("T"))
            for sigma_key, total in about["total"].items():
                sigma = json.loads(sigma_key.removeprefix("sigma="))
                run = configured(kind, sigma, times, temperature=temperature)
                mean = gate_means(trace, EVERYWHERE).gate_mean
                parts = loss_parts(run, states_of(student), labels, mean, states_of(teacher))
                compare(f"{name}/{sigma_key}", parts.total, total, **value | {"rtol": 1e-5})
                wanted = f"{name}/sigma_{'_'.join(f'{s:g}' for s in sigma)}/grad_total"
                if wanted in tensors:
                    leaves = {wanted: student} | {
                        f"{wanted}_{k.split('/', 1)[1].replace('/', '_gate/')}": v
                        for k, v in gates.items()
                    }
                    slopes = torch.autograd.grad(parts.total, leaves.values(), retain_graph=True)
                    for leaf, gradient in zip(leaves, slopes, strict=True):
                        if leaf in tensors:
                            compare(leaf, gradient, tensors[leaf], **slope)
            wider = {k: v * (times if k == "atol" else 1) for k, v in value.items()}
            compare(f"{name}/kd", times * parts.distil, about["kd_loss"], **wider)
            (gradient,) = torch.autograd.grad(times * parts.distil, student)
            wider = {k: v * (times if k == "atol" else 1) for k, v in slope.items()}
            compare(f"{name}/grad_kd", gradient, tensors[f"{name}/grad_kd"], **wider)
            assert torch.isfinite(gradient).all() == about["grad_finite"]


def test_gate_loss_variants(golden, compare):
    compare, variants = compare("losses"), losses_of(golden)["gate"]
    tensors = Bundle(golden, "losses").tensors
    _, trace = recorded_gates(tensors)
    mean = gate_means(trace, EVERYWHERE).gate_mean
    for name, value in variants.items():
        if name.startswith("model gate_loss("):
            on, budget = budget_settings(name)
            compare(name, gate_budget(mean, budget) if on else mean, value, **LOSSES)
        elif budget := re.match(r"trainer gate_loss with budget ([\d.]+)", name):
            off = float(budget[1]) == 0.0
            run = configured("clsr", budget=float(budget[1]), gate_weight=float(not off))
            parts = loss_parts(run, states_of(torch.zeros(1, 1, 2)), torch.zeros(1, 1).long(), mean)
            compare(name, run.gate_weight * parts.gate, value, **({} if off else LOSSES))
        elif name.startswith("no teacher"):
            logits, labels = tensors["pad/student_logits"], tensors["pad/labels"]
            parts = loss_parts(configured("clsr"), states_of(logits), labels, mean)
            compare(name, parts.total, value, **LOSSES)


# expert and convert --------------------------------------------------------------------------


def expert_file(golden):
    """(path of the recorded .bin, its language)."""
    (path,) = (golden / "expert").glob("expert.*.bin")
    return path, path.name.split(".")[1]


@torch.no_grad()
@pytest.mark.parametrize("source", ["file", "folder", "folder of codes"])
def test_expert_file(golden, models, inputs, compare, source, tmp_path):
    """A recorded .bin in a model without experts, under every name that it may have."""
    compare, bundle = compare("expert"), Bundle(golden, "expert")
    path, language = expert_file(golden)
    if source == "folder of codes":
        (tmp_path / f"{code_of(language)}-experts.bin").write_bytes(path.read_bytes())
    place = {"file": path, "folder": path.parent, "folder of codes": tmp_path}[source]
    model = models["base"]()
    model.load_experts(language, place)
    logits = forward(model, inputs, language).logits
    compare("logits_after_load", logits, bundle.tensors["logits_after_load"], **LOGITS)


def test_expert_is_written_as_recorded(golden, models, compare, tmp_path):
    compare, bundle = compare("expert"), Bundle(golden, "expert")
    path, language = expert_file(golden)
    model = models["student"]()
    written = model.save_experts(language, tmp_path, layout="authors")
    assert written.name == path.name
    ours, theirs = (torch.load(p, weights_only=True) for p in (written, path))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        compare(name, ours[name], theirs[name])
    shapes = {name: list(tensor.shape) for name, tensor in ours.items()}
    compare("keys and shapes", shapes, bundle.json("keys_tiny.json"))


def test_key_lists_of_whisper_small(golden, compare):
    compare, bundle = compare("expert"), Bundle(golden, "expert")
    expert = bundle.json("keys_whisper_small.json")
    code = code_of(expert["language"])
    model = whisper_small(golden)
    for layer in model.routed_layers():
        layer.clsr[code] = layer.new_expert("meta")
    shapes = {their_name(name): list(t.shape) for name, t in model.state_dict().items()}
    whole = bundle.json("full_keys_whisper_small.json")
    compare("all keys", shapes, whole["keys"])
    shapes.pop("proj_out.weight")  # tied, and counted once
    compare("all values", count(shapes), whole["n_parameters_total"])
    mine = {name: shape for name, shape in shapes.items() if f".{expert['language']}." in name}
    compare("expert keys", mine, expert["keys"])
    compare("number of keys", len(mine), expert["n_keys"])
    compare("values", count(mine), expert["n_parameters"])
    gates = {name: shape for name, shape in mine.items() if ".gate_" in name}
    compare("gate values", count(gates), expert["n_gate_parameters"])


@pytest.mark.parametrize("shrink", [32, 1])
def test_an_expert_file_of_whisper_small(golden, tmp_path, shrink):
    """The released files' key list, at reduced and at real dimensions (458 MB)."""
    expert = Bundle(golden, "expert").json("keys_whisper_small.json")
    language, released = expert["language"], {}
    for number, (name, shape) in enumerate(expert["keys"].items()):
        smaller = [max(1, size // shrink) for size in shape]
        released[name] = torch.full(smaller, float(number))
    path = tmp_path / f"expert.{language}.bin"
    torch.save(released, path)
    model = whisper_small(golden, shrink)
    model.load_experts(language, tmp_path)
    path.unlink()  # pytest keeps temporary folders for a while
    loaded = {their_name(name): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in released.items())
    if shrink > 1:
        written = model.save_experts(language, tmp_path / "again", layout="authors")
        again = torch.load(written, weights_only=True)
        assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in released.items()}


def count(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


@torch.no_grad()
def test_conversion(golden, models, inputs, compare):
    """add_expert() copies what their conversion copies, and draws gates from the same law."""
    compare, bundle = compare("convert"), Bundle(golden, "convert")
    base = load_file(golden / "base" / "model.safetensors")
    base["proj_out.weight"] = base["model.decoder.embed_tokens.weight"]  # tied
    copies, gates = bundle.json("key_map.json").values()
    torch.manual_seed(0)
    model = models["base"]()
    languages = bundle.values["facts"]["call"]["clsr_langs"]
    for language in languages:
        model.add_expert(language)
    converted = {their_name(name): tensor for name, tensor in model.state_dict().items()}
    assert converted.keys() == {name for names in copies.values() for name in names} | set(gates)
    for name, twins in copies.items():
        for twin in twins:
            compare(twin, converted[twin], base[name])
    deviations = {"gate_in.weight": [], "gate_out.weight": []}
    for name, about in gates.items():
        compare(f"shape of {name}", list(converted[name].shape), about["shape"])
        if name.endswith(".bias"):
            compare(f"zeros of {name}", bool((converted[name] == 0).all()), about["all_zero"])
        else:
            kind = re.search(r"gate_(?:in|out)", name)[0]
            deviations[f"{kind}.weight"].append(converted[name].flatten())
    for kind, drawn in deviations.items():
        drawn = torch.cat(drawn)
        recorded = bundle.values["facts"][f"{kind.replace('.', '_')}_std"]
        # Two draws of one law: five standard errors of the difference of their deviations.
        assert drawn.std().item() == pytest.approx(recorded, rel=5 / drawn.numel() ** 0.5)
    for language in languages:  # experts are copies: whatever the gates say, it is the base
        logits = forward(model, inputs, language).logits
        compare(f"{language}: logits of the base", logits, inputs["logits"], **LOGITS)


@torch.no_grad()
def test_converted_checkpoint_loads(golden, inputs, compare, tmp_path):
    """Their own weights and config.json, as their conversion leaves them."""
    bundle = Bundle(golden, "convert")
    weights = bundle.folder / "converted.safetensors"
    if not weights.exists():
        pytest.skip("tests/golden leaves converted.safetensors out, for its size")
    config = bundle.json("reference_config.json")
    folder = write_checkpoint(golden, weights, config, tmp_path, "distilwhisper")
    model = DistilWhisperForConditionalGeneration.from_pretrained(folder)
    state = {their_name(name): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in load_file(weights).items():
        compare("convert")(f"loaded {name}", state[name], tensor)
    for language in bundle.values["facts"]["call"]["clsr_langs"]:
        logits = forward(model, inputs, language).logits
        compare("convert")(f"{language}: loaded", logits, inputs["logits"], **LOGITS)


# sampler and normalizer ----------------------------------------------------------------------


def test_sampler(golden, compare):
    """A run in one language sees their complete batches of it, in their order; tails differ."""
    compare, cases = compare("sampler"), Bundle(golden, "sampler").json("cases.json")
    for case in cases["integer_group_cases"]:
        size, groups = case["batch_size"], case["group_ids"]
        complete = case["n_indices_in_complete_single_group_batches"] // size
        theirs = case["batches_after_chunking"][:complete]
        found = 0
        for group in sorted(set(groups)):
            mine = [index for index in case["order"] if groups[index] == group]
            ours = [batch for batch in BatchSampler(mine, size, False) if len(batch) == size]
            wanted = [batch for batch in theirs if groups[batch[0]] == group]
            compare(f"{case['name']}, group {group}", ours, wanted)
            found += len(wanted)
        assert found == complete


def test_normalizer(golden, compare):
    compare, cases = compare("normalizer"), Bundle(golden, "normalizer").json("cases.json")
    for case in cases["normalize"]:
        compare(case["input"], normalize_whisper(case["input"]), case["split_letters_true"])
    rows = {}
    for pair in cases["pairs"]:
        row = {"reference": pair["reference"], "hypothesis": pair["hypothesis"]}
        for name, text in row.items():
            compare(text, normalize_whisper(text), pair[f"normalized_{name}"])
        rows.setdefault(pair["lang"], []).append(row)
        errors = score([row], "ca")["whisper"]  # a language only names rows
        for metric in ("wer", "cer"):
            compare(f"{metric} of {text}", 100 * errors[metric][metric], pair[metric], atol=1e-9)
        for name in ("hits", "substitutions", "deletions", "insertions"):
            compare(f"{name} in {text}", errors["wer"][name], pair[f"word_{name}"])
    recorded = cases["corpus_metrics_over_all_pairs"]
    for metric in ("wer", "cer"):
        rates = {c: 100 * score(r, "ca")["whisper"][metric][metric] for c, r in rows.items()}
        for code, rate in rates.items():
            compare(f"{metric}_{code}", rate, recorded[f"{metric}_{code}"], atol=1e-9)
        mean = sum(rates.values()) / len(rates)
        compare(f"avg_{metric}", mean, recorded[f"avg_{metric}"], atol=1e-9)


# Everything ----------------------------------------------------------------------------------


def test_nothing_recorded_is_left_out(golden, request, pytestconfig):
    """Each tensor of every io.safetensors is an input or was compared by the tests above."""
    from conftest import TALLIES

    here = {item.name.split("[")[0] for item in request.session.items if item.path == request.path}
    if here != {name for name in globals() if name.startswith("test_")}:
        pytest.skip("only when all tests of this file are selected")
    for bundle in ("base", "clsr_eval", "clsr_train", "losses", "expert"):
        recorded = {n for n in Bundle(golden, bundle).tensors if not INPUTS.fullmatch(n)}
        assert recorded <= pytestconfig.stash[TALLIES][bundle].names
