"""``fleetdraft align finetune``: the losses and the mixture of a step, the stop by block efficiency, and going on."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fleetdraft.common import losses as reference
from fleetdraft.common.bundle import BundleManifest
from fleetdraft.common.errors import ConfigError, FleetdraftError, UserError
from fleetdraft.common.folder import locked
from fleetdraft.common.losses import DIVERGENCES, HybridTerms
from fleetdraft.common.objective import Objective
from fleetdraft.export.align import block_efficiency
from fleetdraft.export.align import finetune as module
from fleetdraft.export.align.block_efficiency import BlockEfficiency
from fleetdraft.export.align.checkpoints import Checkpoint
from fleetdraft.export.align.dataset import read_dataset
from fleetdraft.export.align.distill import DistillConfig, distill
from fleetdraft.export.align.errors import Stopped
from fleetdraft.export.align.finetune import FinetuneConfig, Lora, finetune, losses
from fleetdraft.export.align.generation import Sampling
from fleetdraft.export.align.mixture import Answers, Mixture, collated
from fleetdraft.export.align.model import Shape
from fleetdraft.export.align.packed_rows import PackedRows
from fleetdraft.export.align.pretrain import PretrainConfig, pretrain
from fleetdraft.export.align.projection import Projector
from fleetdraft.export.align.schedule import Schedule
from fleetdraft.export.align.training import Report
from fleetdraft.export.bundle import BundleRecipe, build_bundle
from fleetdraft.export.parity import check_bundle

STORIES = [f"The {n}th fox saw {n * 7} hens, and ran to the {'red' if n % 2 else 'green'} barn." for n in range(80)]
SHAPE = Shape(
    hidden_size=16, num_hidden_layers=2, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, head_dim=8
)


def ignore(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def material(tmp_path_factory, tiny_model) -> Path:
    """A pre-trained drafter, two targets of other vocabularies with their answers, text, and held-out prompts."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": story}) for story in STORIES))
    pretrain(
        PretrainConfig(
            texts=(folder / "text.jsonl",), out=folder / "drafter", shape=SHAPE, tokenizer_kind="llama3",
            vocab_size=512, context=64, held_out=0.2,
            schedule=Schedule(steps=20, batch_rows=4, row_tokens=24, warmup_steps=2),
        ),
        ignore,
    )  # fmt: skip
    for name, layers in (("one", 1), ("two", 2)):
        tiny_model(num_hidden_layers=layers, max_position_embeddings=96).rename(folder / name)
    for name, stories in (("prompts", STORIES[:12]), ("unseen", STORIES[60:63])):
        lines = [json.dumps({"prompt": story[:14], "task": "stories"}) for story in stories]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    distill(
        DistillConfig(
            prompts=folder / "prompts.jsonl", targets=(folder / "one", folder / "two"), out=folder / "answers",
            temperatures=(0.0, 1.0), sampling=Sampling(width=8, max_new_tokens=12),
        ),
        ignore,
    )  # fmt: skip
    return folder


@pytest.fixture
def config(material, tmp_path) -> FinetuneConfig:
    return FinetuneConfig(
        drafter=material / "drafter",
        answers=(material / "answers",),
        out=tmp_path / "whole",
        texts=(material / "text.jsonl",),
        text_share=0.25,
        schedule=Schedule(steps=7, batch_rows=4, row_tokens=24, warmup_steps=2),
        longest=64,
        held_out=0.2,
        eval_steps=2,
        patience=5,
    )


class Told:
    """A measure that says what it was told of the models in the order in which it sees them."""

    def __init__(self, *values: float) -> None:
        self.values, self.seen = list(values), list[Path]()

    def __call__(self, drafter: Path) -> dict[str, float]:
        self.seen.append(drafter)
        assert (drafter / "model.safetensors").is_file()
        return {"one": self.values[len(self.seen) - 1] - 0.5, "two": self.values[len(self.seen) - 1] + 0.5}


def ever_better(drafter: Path) -> dict[str, float]:
    """The later the better."""
    return {"one": float(drafter.name.removeprefix("step-")) if drafter.name.startswith("step-") else 0.0}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def during(step: int, event, monkeypatch) -> None:
    """Has ``event`` happen while that step's batch is made, once."""
    batch = Mixture.batch

    def hit(self: Mixture, at: int):
        if at == step - 1:
            monkeypatch.setattr(Mixture, "batch", batch)
            event()
        return batch(self, at)

    monkeypatch.setattr(Mixture, "batch", hit)


# --- going on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)])
@pytest.mark.parametrize("step", [3, 4])
def test_a_run_that_was_told_to_stop_ends_as_one_that_was_not(config, tmp_path, monkeypatch, lora, step) -> None:
    """Within the steps between two measures, and at the last of them."""
    whole, parts = replace(config, lora=lora), replace(config, lora=lora, out=tmp_path / "parts")
    expected = finetune(whole, ever_better, ignore)
    during(step, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    with pytest.raises(Stopped, match=f"stopped at step {step} of 7"):
        finetune(parts, ever_better, ignore)
    assert finetune(parts, ever_better, ignore)["measures"] == expected["measures"]
    assert same(whole.out, parts.out)


@pytest.mark.parametrize("save_s", [0.0, 1e9])
def test_a_run_that_was_killed_ends_as_one_that_was_not(config, tmp_path, monkeypatch, save_s) -> None:
    finetune(config, ever_better, ignore)
    parts = replace(config, out=tmp_path / "parts", save_s=save_s)

    def die() -> None:
        raise MemoryError

    during(6, die, monkeypatch)
    with pytest.raises(MemoryError):
        finetune(parts, ever_better, ignore)
    finetune(parts, ever_better, ignore)
    assert same(config.out, parts.out)


def test_a_run_that_was_killed_while_it_was_measured_measures_again_and_nothing_twice(config, tmp_path) -> None:
    expected = finetune(config, ever_better, ignore)
    seen = list[str]()

    def dying(drafter: Path) -> dict[str, float]:
        seen.append(drafter.name)
        if len(seen) == 3:
            raise MemoryError
        return ever_better(drafter)

    parts = replace(config, out=tmp_path / "parts")
    with pytest.raises(MemoryError):
        finetune(parts, dying, ignore)
    assert finetune(parts, dying, ignore)["measures"] == expected["measures"]
    assert seen == ["drafter", "step-0000002", *(f"step-000000{n}" for n in (4, 4, 6, 7))]
    assert same(config.out, parts.out)


@pytest.mark.slow
def test_a_run_whose_process_is_killed_ends_with_the_weights_of_a_whole_one(config, tmp_path) -> None:
    """SIGKILL, in a process of its own, in mid-training with checkpoints after each step."""
    whole = replace(config, schedule=replace(config.schedule, steps=60), eval_steps=60)
    parts = replace(whole, out=tmp_path / "parts", save_s=0.0)
    process = multiprocessing.get_context("spawn").Process(target=finetune, args=(parts, ever_better, ignore))
    process.start()
    checkpoint, deadline = Checkpoint(path=parts.work / "checkpoint.pt", job=""), time.monotonic() + 120
    while checkpoint.step < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 5 <= checkpoint.step < 60
    assert finetune(parts, ever_better, ignore)["measures"] == finetune(whole, ever_better, ignore)["measures"]
    assert same(whole.out, parts.out)


# --- the stop ------------------------------------------------------------------------------------------------------


def test_the_model_of_the_highest_block_efficiency_is_kept_not_the_last(config, tmp_path) -> None:
    told, kept = Told(1.0, 1.5, 2.0, 1.9, 1.8), dict[str, dict[str, torch.Tensor]]()

    def watched(drafter: Path) -> dict[str, float]:
        kept[drafter.name] = weights(drafter)
        return told(drafter)

    record = finetune(config, watched, ignore)
    assert [entry["mean"] for entry in record["measures"]] == pytest.approx([1.0, 1.5, 2.0, 1.9, 1.8])
    assert record["best_step"] == 4
    final = weights(config.out)
    assert all(torch.equal(final[name], kept["step-0000004"][name]) for name in final)
    assert not all(torch.equal(final[name], kept["step-0000007"][name]) for name in final)
    assert not list(config.work.glob("step-*"))


def test_a_run_ends_when_its_patience_does(config) -> None:
    told = Told(1.0, 1.5, 1.4, 1.3, 9.9)
    record = finetune(replace(config, patience=2), told, ignore)
    assert [entry["step"] for entry in record["measures"]] == [0, 2, 4, 6]
    assert (record["best_step"], record["steps"]) == (2, 6)


def test_fine_tuning_that_only_harms_leaves_the_pretrained_model(config, material) -> None:
    record = finetune(replace(config, patience=1), Told(2.0, 1.0), ignore)
    assert record["best_step"] == 0
    assert same(config.out, material / "drafter")


def test_other_settings_are_refused(config) -> None:
    finetune(config, ever_better, ignore)
    with pytest.raises(UserError, match=r"holds the result of other settings \(schedule\.peak_rate, seed\); choose"):
        finetune(replace(config, seed=1, schedule=replace(config.schedule, peak_rate=0.5)), ever_better, ignore)


def test_figures_of_two_measures_are_never_compared(config, monkeypatch) -> None:
    during(3, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    with pytest.raises(Stopped):
        finetune(config, ever_better, ignore)
    kept = (config.work / "history.json").read_bytes()
    other = replace(config, measured_by="other prompts")
    with pytest.raises(UserError, match=r"history\.json is of other settings \(measure\); choose"):
        finetune(other, ever_better, ignore)
    assert (config.work / "history.json").read_bytes() == kept
    finetune(config, ever_better, ignore)
    with pytest.raises(UserError, match="holds the result of other settings"):
        finetune(other, ever_better, ignore)


def test_what_decides_a_measures_figures_tells_it_from_others(material, tmp_path) -> None:
    first = BlockEfficiency(targets=(material / "one",), prompts=material / "unseen.jsonl", tell=ignore)
    same_content = tmp_path / "copy.jsonl"
    same_content.write_bytes(first.prompts.read_bytes())
    for alike in ({"prompts": same_content}, {"timeout_s": 9.0}):
        assert replace(first, **alike).identity == first.identity
    for other in (
        {"prompts": material / "prompts.jsonl"}, {"targets": (material / "two",)}, {"draft_tokens": 3},
        {"max_new_tokens": 9}, {"temperature": 0.5}, {"seed": 1},
    ):  # fmt: skip
        assert replace(first, **other).identity != first.identity


@pytest.mark.parametrize("content", ["[]", "{", '{"measures": 3}', '{"measures": [{"step": 2}]}'])
def test_a_damaged_history_is_told(config, monkeypatch, content) -> None:
    during(3, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    with pytest.raises(Stopped):
        finetune(config, ever_better, ignore)
    path = config.work / "history.json"
    job = json.loads(path.read_text())["job"]
    path.write_text(content.replace("{", f'{{"job": {json.dumps(job)}, ', 1) if content.endswith("}") else content)
    with pytest.raises(UserError, match=r"history\.json is damaged; delete .*training to start afresh$"):
        finetune(config, ever_better, ignore)


def test_a_model_is_not_measured_as_that_of_an_earlier_step(config, monkeypatch) -> None:
    during(3, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    with pytest.raises(Stopped):
        finetune(config, ever_better, ignore)
    (config.work / "history.json").unlink()
    with pytest.raises(UserError, match="has no measure of step 2 and is at step 3; delete it to start afresh"):
        finetune(config, ever_better, ignore)


def test_a_place_where_another_process_works_is_left_to_it(config) -> None:
    config.out.mkdir()
    with locked(config.out), pytest.raises(ConfigError, match="whole is in use by another process"):
        finetune(config, ever_better, ignore)
    assert not config.work.exists()


def test_lora_gives_an_adapter_that_merged_is_the_model(config, material) -> None:
    whole = replace(config, lora=Lora(rank=2, alpha=4), schedule=replace(config.schedule, peak_rate=1e-2))
    finetune(whole, ever_better, ignore)
    base = AutoModelForCausalLM.from_pretrained(material / "drafter")
    merged = PeftModel.from_pretrained(base, str(whole.out / "adapter")).merge_and_unload()
    final, before = weights(whole.out), weights(material / "drafter")
    for name, value in merged.state_dict().items():
        if name in final:
            torch.testing.assert_close(value, final[name])
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(final[name], before[name])
    assert torch.equal(final["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_a_place_that_holds_something_else_is_left_as_it_is(config, tmp_path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "keep").write_text("mine")
    with pytest.raises(UserError, match="else holds something that was not made here"):
        finetune(replace(config, out=tmp_path / "else"), ever_better, ignore)


# --- a step --------------------------------------------------------------------------------------------------------


def answers(material: Path, projection: str = "prefix") -> list[Answers]:
    width = json.loads((material / "drafter/config.json").read_text())["vocab_size"]
    return [
        Answers(
            texts=list(shards.texts()),
            projector=Projector.between(
                shards.directory, shards.vocab_size, material / "drafter", width, projection=projection, longest=64
            ),
        )
        for shards in read_dataset(material / "answers")
    ]


def mixture(material: Path, text_share: float, batch_rows: int = 4) -> Mixture:
    return Mixture(
        targets=answers(material),
        text=PackedRows(np.arange(400, dtype=np.uint16) % 250, 24, seed=0),
        text_share=text_share,
        batch_rows=batch_rows,
        objective=Objective(),
        seed=0,
    )


@pytest.mark.parametrize(("share", "batch_rows"), [(0.1, 8), (0.1, 3), (0.25, 4), (0.0, 4)])
def test_rows_are_mixed_in_the_exact_ratio(material, share, batch_rows) -> None:
    mixed = mixture(material, share, batch_rows)
    texts = found = 0
    for step in range(40):
        batch = mixed.batch(step)
        texts += 0 if batch.text is None else len(batch.text)
        found += 0 if batch.answers is None else len(batch.answers["tokens"])
        assert texts == int((step + 1) * batch_rows * share + 1e-9)
        assert texts + found == (step + 1) * batch_rows


def test_targets_take_turns_and_each_answer_comes_once_in_a_round(material) -> None:
    mixed = replace(mixture(material, 0.0), targets=answers(material))
    seen = list[tuple[int, bytes]]()
    for target in mixed.targets:
        projector = target.projector
        target.__dict__["projector"] = lambda text, p=projector: seen.append(text.tokens.tobytes()) or p(text)
    count = 2 * min(len(target.texts) for target in mixed.targets)
    for step in range(count // 4):
        mixed.batch(step)
    of = [{text.tokens.tobytes() for text in target.texts} for target in mixed.targets]
    assert all(seen[at] in of[at % 2] for at in range(len(seen)))
    for target in (0, 1):
        assert len(set(seen[target::2])) == len(seen[target::2])


@pytest.mark.parametrize("projection", ["direct", "prefix", "law"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_steps_loss_and_gradient_are_the_references(material, divergence, projection) -> None:
    model = AutoModelForCausalLM.from_pretrained(material / "drafter", dtype=torch.float64)
    objective = Objective(divergence=divergence, ngram_weight=0.2, samples=3)
    texts = [target.projector(target.texts[n]) for target in answers(material, projection) for n in (0, 3)]
    inputs = collated(texts, objective, np.random.default_rng(0))
    wide = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    logits = model(wide["tokens"]).logits.flatten(0, 1)[wide["rows"]].detach().requires_grad_()
    kl, nll, overlap = module.hybrid_loss(logits, wide)
    (gradient,) = torch.autograd.grad(kl + nll, logits)
    terms = {name: value.numpy() for name, value in wide.items() if name not in ("tokens", "rows", "beta", "eta")}
    expected = reference.hybrid_loss(
        logits.detach().numpy(), HybridTerms(**terms, beta=wide["beta"].item(), eta=wide["eta"].item())
    )
    assert (kl.item(), nll.item(), overlap.item()) == pytest.approx(
        (expected.kl, expected.nll, expected.overlap), rel=1e-6
    )
    np.testing.assert_allclose(gradient.numpy(), expected.gradient, atol=1e-9)


def test_a_steps_loss_weighs_answers_and_text_by_their_rows(material) -> None:
    model = AutoModelForCausalLM.from_pretrained(material / "drafter")
    batch = mixture(material, 0.25).batch(0)
    assert batch.share == 0.75
    parts = losses(model, batch, bos_id=None)
    only_text, only_answers = (
        losses(model, replace(batch, **gone), None) for gone in ({"answers": None}, {"text": None})
    )
    assert only_text.keys() == {"loss", "text"}
    torch.testing.assert_close(parts["loss"], only_text["loss"] + only_answers["loss"])
    torch.testing.assert_close(only_text["loss"], 0.25 * parts["text"])
    nats = torch.nn.functional.cross_entropy(
        model(batch.text[:, :-1]).logits.flatten(0, 1), batch.text[:, 1:].flatten()
    )
    torch.testing.assert_close(parts["text"], nats)


def test_a_warm_up_is_on_forward_kl(material) -> None:
    mixed = replace(mixture(material, 0.0), objective=Objective(divergence="tvd", warmup_steps=2))
    chosen = [DIVERGENCES[int(mixed.batch(step).answers["divergences"].argmax())] for step in range(4)]
    assert chosen == ["forward-kl", "forward-kl", "tvd", "tvd"]


@pytest.mark.parametrize("divergence", ["reverse-kl", "tvd++", "lk"])
def test_training_raises_the_expected_acceptance(config, divergence) -> None:
    longer = replace(
        config, objective=Objective(divergence=divergence, warmup_steps=30), text_share=0.0, texts=(), eval_steps=60,
        schedule=Schedule(steps=60, batch_rows=4, row_tokens=24, warmup_steps=5, peak_rate=1e-2),
    )  # fmt: skip
    finetune(longer, ever_better, ignore)
    logged = [json.loads(line) for line in (longer.work / "metrics.jsonl").read_text().splitlines()]
    overlaps = [line["overlap"] for line in logged]
    assert overlaps[-1] > overlaps[0] + 0.02


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("answers", ()),
        ("projection", "suffix"),
        ("eval_steps", 0),
        ("texts", ()),
        ("patience", 0),
        ("width", 0),
        ("longest", 1),
        ("text_share", 1.0),
    ],
)
def test_a_setting_out_of_range_is_told(config, field, value) -> None:
    with pytest.raises(ConfigError, match=field if field != "texts" else "text_share is 0.25 without texts"):
        replace(config, **{field: value})


# --- from raw text to a bundle -------------------------------------------------------------------------------------


def test_from_raw_text_to_a_bundle_measured_by_decoding(config, material, tmp_path) -> None:
    """The drafter was pre-trained on text; here it is fine-tuned, measured as devices decode, and bundled."""
    targets = (material / "one", material / "two")
    measure = BlockEfficiency(
        targets=targets, prompts=material / "unseen.jsonl", max_new_tokens=10, draft_tokens=3, tell=ignore
    )
    record = finetune(replace(config, eval_steps=4, schedule=replace(config.schedule, steps=4)), measure, ignore)
    assert [entry["step"] for entry in record["measures"]] == [0, 4]
    for entry in record["measures"]:
        assert entry["by_name"].keys() == {"one/stories", "two/stories"}
        assert all(1 <= value <= 4 for value in entry["by_name"].values())
    build_bundle(config.out, targets, tmp_path / "bundle", BundleRecipe(rank=2))
    check_bundle(tmp_path / "bundle")
    assert {target.name for target in BundleManifest.read(tmp_path / "bundle").targets} == {"one", "two"}


def test_a_measure_that_fails_says_why(material, tmp_path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": 3}\n')
    measure = BlockEfficiency(targets=(material / "one",), prompts=tmp_path / "bad.jsonl", tell=ignore)
    with pytest.raises(FleetdraftError, match=r"exit code 2: .*bad\.jsonl:1: \"prompt\" is int"):
        measure(material / "drafter")


def test_a_text_that_is_not_the_targets_own_is_told_and_the_figures_are_used(material, monkeypatch) -> None:
    """The law's test takes every outcome for one that chance does not make, and eval ends with exit code 1."""
    strict = "from fleetdraft.client.evaluation import report; report.ALARM = 1e9; "
    monkeypatch.setattr(block_efficiency, "_RUN", strict + block_efficiency._RUN)
    told = list[str]()
    measure = BlockEfficiency(
        targets=(material / "one",),
        prompts=material / "unseen.jsonl",
        tell=told.append,
        max_new_tokens=8,
        temperature=1.0,
    )
    assert measure(material / "drafter").keys() == {"one/stories"}
    assert len(told) == 1
    assert "does not follow the target's law" in told[0]
    assert told[0].endswith("; its figures are used")


def test_a_measure_that_takes_too_long_is_told_in_a_line(material) -> None:
    measure = BlockEfficiency(
        targets=(material / "one",), prompts=material / "unseen.jsonl", tell=ignore, timeout_s=0.01
    )
    with pytest.raises(FleetdraftError, match=r"^measuring block efficiency took more than 0\.01 s; the same command"):
        measure(material / "drafter")


def test_reports_tell_steps_and_validation(config) -> None:
    told = list[Report]()
    finetune(config, ever_better, told.append)
    assert [report.step for report in told] == [2, 4, 6, 7]
    assert all(report.validation > 0 for report in told)
