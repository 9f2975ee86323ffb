"""``fleetdraft align distill``: what targets answer, what is kept of it, and that an interruption leaves no trace."""

import json
import math
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fleetdraft.common import embedded
from fleetdraft.common.errors import ConfigError, ModelError, UserError
from fleetdraft.common.folder import locked
from fleetdraft.export.align import distill as module
from fleetdraft.export.align.dataset import MANIFEST, check_unseen, read_dataset, read_shard
from fleetdraft.export.align.distill import DistillConfig, distill
from fleetdraft.export.align.errors import Stopped
from fleetdraft.export.align.generation import Request, Sampling, answers

PROMPTS = ["a fox", "the red barn and", "x", "hens", "a fox", "to the north of", "one two three four", "and"]
NONE = ()


@pytest.fixture(scope="module")
def targets(tiny_model) -> tuple[Path, Path]:
    return tiny_model(), tiny_model(num_hidden_layers=1, max_position_embeddings=24)


@pytest.fixture
def config(targets, tmp_path) -> DistillConfig:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS), encoding="utf-8")
    return DistillConfig(
        prompts=path,
        targets=targets,
        out=tmp_path / "whole",
        temperatures=(0.0, 0.7, 1.0),
        sampling=Sampling(width=5, max_new_tokens=10),
        batch=4,
        shard_prompts=3,
    )


def ignore(target: str, done: int, total: int) -> None:
    pass


def distill_on_one_thread(config: DistillConfig) -> None:
    """In a process of its own, which has as many as there are cores: that many sum in another order."""
    torch.set_num_threads(1)
    distill(config, ignore)


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def model(targets):
    return AutoModelForCausalLM.from_pretrained(targets[0]).eval()


def request(prompt: list[int], temperature: float = 1.0, seed: int = 0) -> Request:
    uniforms = np.random.default_rng([seed, *prompt]).random(12)
    return Request(prompt=tuple(prompt), temperature=temperature, uniforms=uniforms)


MIXED = [request([2, 40, 41]), request([7]), request([9, 9, 9, 80, 81, 3, 4], 0.0), request([30, 31], 0.3)]
SAMPLING = Sampling(width=6, max_new_tokens=12)


# --- generation ----------------------------------------------------------------------------------------------------


def test_an_answer_does_not_depend_on_its_batch(model) -> None:
    together = answers(model, MIXED, SAMPLING, NONE)
    for one, alone in zip(together, (answers(model, [each], SAMPLING, NONE)[0] for each in MIXED), strict=True):
        assert one.tokens.tolist() == alone.tokens.tolist()
        assert one.teacher_ids.tolist() == alone.teacher_ids.tolist()
        np.testing.assert_allclose(one.teacher_probs, alone.teacher_probs, atol=1e-5)


def test_teacher_rows_are_the_models_law_at_temperature_1(model) -> None:
    for asked, answer in zip(MIXED, answers(model, MIXED, SAMPLING, NONE), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*asked.prompt, *answer.tokens.tolist()]])).logits[0]
        law = torch.softmax(logits[len(asked.prompt) - 1 : -1], -1)
        np.testing.assert_allclose(
            law.gather(-1, torch.tensor(answer.teacher_ids).long()), answer.teacher_probs, atol=1e-5
        )
        np.testing.assert_allclose(law.topk(6).values, answer.teacher_probs, atol=1e-5)


def test_temperature_0_is_greedy(model) -> None:
    asked = request([5, 6, 7], 0.0)
    generated = model.generate(
        torch.tensor([asked.prompt]), attention_mask=torch.ones(1, 3, dtype=torch.long),
        max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    assert answers(model, [asked], SAMPLING, NONE)[0].tokens.tolist() == generated[0, 3:].tolist()


def test_draws_follow_the_tempered_law_cut_at_top_p(model) -> None:
    """4,000 first tokens at evenly spread numbers fall where the law has its mass."""
    count, sampling = 4000, Sampling(width=1, max_new_tokens=1, top_p=0.6)
    spread = (np.arange(count) + 0.5) / count
    asked = [Request(prompt=(5, 6), temperature=0.7, uniforms=np.array([number])) for number in spread]
    drawn = np.bincount([int(each.tokens[0]) for each in answers(model, asked, sampling, NONE)], minlength=288) / count
    with torch.no_grad():
        law = torch.softmax(model(torch.tensor([[5, 6]])).logits[0, -1].double() / 0.7, -1).numpy()
    order = np.argsort(-law)
    kept = order[: int(np.searchsorted(law[order].cumsum(), 0.6)) + 1]
    expected = np.zeros(288)
    expected[kept] = law[kept] / law[kept].sum()
    np.testing.assert_allclose(drawn, expected, atol=2 / count)


def test_an_answer_ends_at_its_end_token_at_the_limit_or_where_the_context_is_full(model, targets) -> None:
    free = answers(model, [request([5, 6])], SAMPLING, NONE)[0]
    assert len(free.tokens) == 12
    end = int(free.tokens[4])
    ended = answers(model, [request([5, 6]), request([8])], SAMPLING, (end,))[0]
    assert ended.tokens.tolist() == free.tokens[: free.tokens.tolist().index(end) + 1].tolist()
    assert len(ended.teacher_ids) == len(ended.tokens)
    short = AutoModelForCausalLM.from_pretrained(targets[1]).eval()
    assert len(answers(short, [request(list(range(2, 22)))], SAMPLING, NONE)[0].tokens) == 24 - 20


# --- the set -------------------------------------------------------------------------------------------------------


def test_the_set_holds_each_answer_once(config) -> None:
    manifest = distill(config, ignore)
    unique = list(dict.fromkeys(PROMPTS))
    assert len(manifest["prompts"]) == len(unique)
    for shards in read_dataset(config.out):
        texts = list(shards.texts())
        assert [text.prompt for text in texts] == sorted(text.prompt for text in texts)
        assert {text.prompt for text in texts} == set(range(len(unique)))
        assert len({(text.prompt, text.tokens.tobytes()) for text in texts}) == len(texts)
        for text in texts:
            assert text.teacher_ids.shape == (len(text.tokens) - text.start, 5)
        assert manifest["targets"][shards.name]["answers"] == len(texts)


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(config, tmp_path) -> None:
    for out in ("whole", "again"):
        distill(replace(config, out=tmp_path / out), ignore)
    assert content(tmp_path / "whole") == content(tmp_path / "again")
    distill(replace(config, out=tmp_path / "other", seed=1), ignore)
    sampled = [[t for s in read_dataset(tmp_path / out) for t in s.texts()] for out in ("whole", "other")]
    assert [t.tokens.tolist() for t in sampled[0]] != [t.tokens.tolist() for t in sampled[1]]
    greedy = [[t.tokens.tolist() for t in texts if t.temperature == 0] for texts in sampled]
    assert greedy[0] == greedy[1]


def test_a_finished_set_is_not_written_again_but_for_its_manifest(config) -> None:
    distill(config, ignore)
    files = [path for path in config.out.rglob("*") if path.is_file() and path.parent != config.out]
    assert len(files) > 4
    before = {path: path.stat().st_mtime_ns for path in files}
    distill(config, ignore)
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_answers_do_not_depend_on_the_order_of_prompts_or_on_batches(config, tmp_path) -> None:
    distill(config, ignore)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in reversed(PROMPTS)), encoding="utf-8")
    other = replace(config, prompts=turned, out=tmp_path / "turned", batch=3, shard_prompts=2)
    distill(other, ignore)
    found = [
        {(s.name, t.temperature, t.tokens.tobytes()) for s in read_dataset(out) for t in s.texts()}
        for out in (config.out, other.out)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("shard", [1, 4])
def test_a_killed_distillation_ends_with_the_bytes_of_a_whole_one(config, tmp_path, monkeypatch, shard) -> None:
    distill(config, ignore)
    parts, written = replace(config, out=tmp_path / "parts"), []
    write = module.write_shard

    def die(path, *rest) -> None:
        if len(written) == shard:
            path.with_name(f".{path.name}.torn").write_bytes(b"half")
            raise MemoryError
        written.append(path)
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", die)
        with pytest.raises(MemoryError):
            distill(parts, ignore)
    before = {path: path.stat().st_mtime_ns for path in written}
    assert not (parts.out / MANIFEST).exists()
    distill(parts, ignore)
    assert {path: path.stat().st_mtime_ns for path in written} == before
    assert {name: data for name, data in content(parts.out).items() if not name.endswith(".torn")} == content(
        config.out
    )


def test_a_distillation_that_is_told_to_stop_ends_with_the_bytes_of_a_whole_one(config, tmp_path) -> None:
    distill(config, ignore)
    parts = replace(config, out=tmp_path / "parts")

    def stop(target: str, done: int, total: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="stopped while"):
        distill(parts, stop)
    distill(parts, ignore)
    assert content(parts.out) == content(config.out)


def test_a_set_of_other_settings_or_of_something_else_is_not_touched(config, tmp_path) -> None:
    distill(config, ignore)
    with pytest.raises(UserError, match=r"holds the set of other settings \(seed, shard_prompts\); choose"):
        distill(replace(config, seed=7, shard_prompts=config.shard_prompts + 1), ignore)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("x")
    with pytest.raises(UserError, match="holds something else"):
        distill(replace(config, out=tmp_path / "else"), ignore)
    with pytest.raises(UserError, match="file is a file, expected a directory"):
        distill(replace(config, out=tmp_path / "else" / "file"), ignore)


def test_a_place_where_another_process_works_is_left_to_it(config) -> None:
    config.out.mkdir()
    with locked(config.out), pytest.raises(ConfigError, match="whole is in use by another process"):
        distill(config, ignore)
    assert (config.out / MANIFEST).exists() is False
    distill(config, ignore)


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"schema": 1}', '{"schema": 1, "prompts": [], "targets": []}',
     '{"schema": 1, "prompts": [], "targets": {"a": {"files": {}}}}'],
)  # fmt: skip
def test_a_damaged_manifest_is_told(config, content) -> None:
    config.out.mkdir()
    (config.out / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged; delete it and run the same align distill again$"):
        read_dataset(config.out)
    with pytest.raises(UserError, match="is damaged"):
        check_unseen(["a"], [config.out])


def test_a_held_out_prompt_that_was_distilled_from_is_told(config) -> None:
    distill(config, ignore)
    check_unseen(["a wolf"], [config.out])
    with pytest.raises(UserError, match="1 of 2 held-out prompts were distilled from"):
        check_unseen(["a wolf", "hens"], [config.out])


def test_a_damaged_shard_is_told(config) -> None:
    distill(config, ignore)
    shard = next(config.out.rglob("shard-00000.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ModelError, match="does not match its digest"):
        read_dataset(config.out)
    shard.write_bytes(data[:100])
    with pytest.raises(ModelError, match="is no shard"):
        list(read_shard(shard))


def test_a_target_without_all_its_weights_is_refused_instead_of_filled_with_random_ones(config) -> None:
    """A bundle's own models are such: their weights are packed under other names."""
    packed = Path(embedded.__file__).parents[1] / "client" / "embedded" / "targets" / "spm"
    with pytest.raises(ModelError, match="spm lacks 156 weights, lm_head.weight among them") as caught:
        distill(replace(config, targets=(packed,)), ignore)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_distillation_whose_process_is_killed_ends_with_the_bytes_of_a_whole_one(config, tmp_path) -> None:
    """SIGKILL, in a process of its own, while it answers."""
    many = tmp_path / "many.jsonl"
    many.write_text("\n".join(json.dumps({"prompt": f"{prompt} {n}"}) for n in range(8) for prompt in PROMPTS))
    whole = replace(config, prompts=many, shard_prompts=2)
    parts = replace(whole, out=tmp_path / "parts")
    process = multiprocessing.get_context("spawn").Process(target=distill_on_one_thread, args=(parts,))
    process.start()
    deadline = time.monotonic() + 120
    while not (written := list(parts.out.rglob("shard-00003.safetensors"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (parts.out / MANIFEST).exists()
    before = written[0].stat().st_mtime_ns
    for each in (whole, parts):
        distill(each, ignore)
    assert written[0].stat().st_mtime_ns == before
    assert content(parts.out) == content(whole.out)


def test_a_prompt_that_fills_the_context_is_left_out(config, tmp_path) -> None:
    long = tmp_path / "long.jsonl"
    long.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in ["x" * 30, "y"]), encoding="utf-8")
    manifest = distill(replace(config, prompts=long, out=tmp_path / "long"), ignore)
    counted = {entry["answered_prompts"] for entry in manifest["targets"].values()}
    assert counted == {1, 2}


@pytest.mark.parametrize("line", ['{"prompt": ""}', '{"text": "x"}', "{", "3"])
def test_a_line_that_is_no_prompt_is_told_by_its_number(config, line) -> None:
    config.prompts.write_text(f'{{"prompt": "x"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"prompts\.jsonl:3: "):
        distill(config, ignore)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("targets", ()),
        ("temperatures", (-1.0,)),
        ("temperatures", (1.0, 1.0)),
        ("temperatures", (0.0, math.nan)),
        ("temperatures", (math.inf,)),
        ("batch", 0),
    ],
)
def test_a_setting_out_of_range_is_told(config, field, value) -> None:
    with pytest.raises(ConfigError, match=f"{field} is "):
        replace(config, **{field: value})
