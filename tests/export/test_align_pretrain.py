"""``fleetdraft align pretrain``: texts, rows, tokenizers, and a run that goes on exactly where it was stopped."""

import json
import os
import signal
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fleetdraft.client.spelling.text import TextCodec
from fleetdraft.common.errors import ConfigError, TrainingError, UserError
from fleetdraft.common.folder import locked
from fleetdraft.export.align import pretrain as module
from fleetdraft.export.align.documents import SEPARATOR, documents, is_held_out
from fleetdraft.export.align.errors import Stopped
from fleetdraft.export.align.metrics_log import MetricsLog
from fleetdraft.export.align.model import Shape
from fleetdraft.export.align.packed_rows import PackedRows, TextTokenizer, packed
from fleetdraft.export.align.pretrain import PretrainConfig, pretrain
from fleetdraft.export.align.schedule import Schedule
from fleetdraft.export.align.tokenizer_kinds import KINDS, write_tokenizer
from fleetdraft.export.align.training import Report

STORIES = [
    f"The {n}th fox saw {n * 7} hens, and ran to the {'red' if n % 2 else 'green'} barn.\n" * 3 for n in range(80)
]
SHAPE = Shape(
    hidden_size=16, num_hidden_layers=2, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, head_dim=8
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text(SEPARATOR.join(STORIES), encoding="utf-8")
    return path


@pytest.fixture
def config(text: Path, tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(
        texts=(text,),
        out=tmp_path / "whole",
        shape=SHAPE,
        schedule=Schedule(steps=7, batch_rows=2, row_tokens=16, warmup_steps=2),
        tokenizer_kind="llama3",
        vocab_size=512,
        context=64,
        held_out=0.2,
        save_s=1e9,
    )


def ignore(report: Report) -> None:
    pass


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def assert_same(a: Path, b: Path) -> None:
    """The same weights to the bit."""
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def during(step: int, event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has ``event`` happen while that step's batch is made, once."""
    chosen = PackedRows.chosen

    def hit(self: PackedRows, first: int, count: int) -> torch.Tensor:
        if first == (step - 1) * count and count > 1:
            monkeypatch.setattr(PackedRows, "chosen", chosen)
            event()
        return chosen(self, first, count)

    monkeypatch.setattr(PackedRows, "chosen", hit)


def test_a_run_that_was_told_to_stop_ends_as_one_that_was_not(config, tmp_path, monkeypatch) -> None:
    whole, parts = pretrain(config, ignore), replace(config, out=tmp_path / "parts")
    during(4, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    with pytest.raises(Stopped, match="stopped at step 4 of 7"):
        pretrain(parts, ignore)
    assert not (parts.out / "config.json").exists()
    resumed = pretrain(parts, ignore)
    assert_same(config.out, parts.out)
    assert resumed["validation_nats_per_token"] == whole["validation_nats_per_token"]


@pytest.mark.parametrize("save_s", [0.0, 1e9])
def test_a_run_that_was_killed_ends_as_one_that_was_not(config, tmp_path, monkeypatch, save_s) -> None:
    """With checkpoints after each step and with none."""
    pretrain(config, ignore)
    parts = replace(config, out=tmp_path / "parts", save_s=save_s)

    def die() -> None:
        raise MemoryError

    during(5, die, monkeypatch)
    with pytest.raises(MemoryError):
        pretrain(parts, ignore)
    assert (parts.work / "checkpoint.pt").exists() == (save_s == 0)
    pretrain(parts, ignore)
    assert_same(config.out, parts.out)


def test_a_finished_run_is_not_run_again_and_other_settings_are_refused(config) -> None:
    record = pretrain(config, ignore)
    before = (config.out / "model.safetensors").stat().st_mtime_ns
    assert pretrain(config, ignore) == record
    assert (config.out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"holds the result of other settings \(seed\); choose"):
        pretrain(replace(config, seed=1), ignore)


def test_a_place_that_holds_something_else_is_left_as_it_is(config, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is a file, expected a directory"):
        pretrain(replace(config, out=tmp_path / "file"), ignore)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "keep").write_text("mine")
    with pytest.raises(UserError, match="else holds something that was not made here"):
        pretrain(replace(config, out=tmp_path / "else"), ignore)
    assert [path.name for path in (tmp_path / "else").iterdir()] == ["keep"]


def test_a_place_where_another_process_works_is_left_to_it(config) -> None:
    config.out.mkdir()
    with locked(config.out), pytest.raises(ConfigError, match="whole is in use by another process"):
        pretrain(config, ignore)
    assert pretrain(config, ignore)["steps"] == 7


@pytest.mark.parametrize("damage", [b"garbage", b"", None])
def test_a_damaged_checkpoint_is_told_and_without_it_the_run_starts_afresh(config, monkeypatch, damage) -> None:
    during(4, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    with pytest.raises(Stopped):
        pretrain(config, ignore)
    checkpoint = config.work / "checkpoint.pt"
    if damage is None:
        torch.save({"job": "job"}, checkpoint)
    else:
        checkpoint.write_bytes(damage)
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged; delete it to start afresh$"):
        pretrain(config, ignore)
    checkpoint.unlink()
    assert pretrain(config, ignore)["steps"] == 7


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_a_damaged_record_is_told(config, content) -> None:
    config.out.mkdir()
    (config.out / "training.json").write_text(content)
    with pytest.raises(UserError, match=r"training\.json is damaged; delete .*whole or choose another directory$"):
        pretrain(config, ignore)


def test_the_result_is_a_model_with_its_tokenizer(config) -> None:
    record = pretrain(config, ignore)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(config.out), AutoTokenizer.from_pretrained(config.out)
    ids = torch.tensor([tokenizer("The 3th fox saw").input_ids])
    assert ids[0, 0] == model.config.bos_token_id
    assert model(ids).logits.shape == (1, ids.shape[1], record["vocab_size"])
    assert record["vocab_size"] <= 512
    assert record["tokens"] == 7 * 2 * 16
    assert not (config.work / "checkpoint.pt").exists()


def test_training_lowers_the_validation_loss(config) -> None:
    longer = replace(config, schedule=Schedule(steps=60, batch_rows=8, row_tokens=16, warmup_steps=5, peak_rate=1e-2))
    assert pretrain(longer, ignore)["validation_nats_per_token"] < 0.6 * np.log(512)


def test_a_loss_that_is_not_finite_ends_the_run(config, monkeypatch) -> None:
    monkeypatch.setattr(module, "mean_loss", lambda model, *_: model.lm_head.weight.sum() * torch.inf)
    with pytest.raises(TrainingError, match="diverged at step 1"):
        pretrain(config, ignore)


def test_a_given_tokenizer_is_used_as_it_is(config, tmp_path) -> None:
    write_tokenizer(KINDS["qwen2"].train(STORIES, 600), KINDS["qwen2"], tmp_path / "given")
    pretrain(replace(config, tokenizer=tmp_path / "given"), ignore)
    given, written = (folder / "tokenizer.json" for folder in (tmp_path / "given", config.out))
    assert given.read_bytes() == written.read_bytes()


# --- rows ----------------------------------------------------------------------------------------------------------


def test_every_row_comes_once_before_any_comes_again() -> None:
    rows = PackedRows(np.arange(101, dtype=np.uint16), 10, seed=3)
    epoch = rows.chosen(0, 10)
    assert sorted(row[0].item() for row in epoch) == list(range(0, 100, 10))
    assert sorted(row[0].item() for row in rows.chosen(10, 10)) == list(range(0, 100, 10))
    assert not torch.equal(epoch, rows.chosen(10, 10))
    assert torch.equal(rows.chosen(3, 9), torch.cat([epoch[3:], rows.chosen(10, 2)]))
    assert all(torch.equal(row, torch.arange(11) + row[0]) for row in epoch)


def test_texts_that_do_not_fill_a_row_are_told() -> None:
    with pytest.raises(UserError, match="the texts have 10 tokens, expected more than 10"):
        PackedRows(np.arange(10, dtype=np.uint16), 10, seed=0).chosen(0, 1)


def test_a_document_is_in_one_of_the_two_streams_whole(tmp_path) -> None:
    write_tokenizer(KINDS["llama3"].train(STORIES, 512), KINDS["llama3"], tmp_path)
    tokenizer = TextTokenizer.from_directory(tmp_path)
    streams = packed(STORIES, tokenizer, tmp_path / "tokens", "job", 0.3)
    words = tokenizer.words
    read = {
        part: tokenizer.encoder.decode(stream.tolist(), skip_special_tokens=False) for part, stream in streams.items()
    }
    begin, end = (tokenizer.encoder.id_to_token(token) for token in (words.bos_id, words.eos_id))
    for part, text in read.items():
        expected = [story for story in STORIES if is_held_out(story, 0.3) == (part == "validation")]
        assert text == "".join(f"{begin}{story}{end}" for story in expected)
        assert len(expected) > 10


def test_tokens_of_the_same_job_are_not_made_again(tmp_path) -> None:
    write_tokenizer(KINDS["llama3"].train(STORIES, 512), KINDS["llama3"], tmp_path)
    tokenizer = TextTokenizer.from_directory(tmp_path)
    first = packed(STORIES, tokenizer, tmp_path / "tokens", "job", 0.3)["train"].tolist()
    assert packed([], tokenizer, tmp_path / "tokens", "job", 0.3)["train"].tolist() == first
    assert packed(STORIES[:9], tokenizer, tmp_path / "tokens", "other", 0.3)["train"].tolist() != first


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.tokens", b"\1\0"),
        ("validation.tokens", b""),
        ("tokens.json", b"[]"),
        ("tokens.json", b"{"),
        ("train.tokens", None),
    ],
)
def test_tokens_that_are_damaged_are_made_again(tmp_path, name, content) -> None:
    write_tokenizer(KINDS["llama3"].train(STORIES, 512), KINDS["llama3"], tmp_path)
    tokenizer = TextTokenizer.from_directory(tmp_path)
    first = {part: stream.tolist() for part, stream in packed(STORIES, tokenizer, tmp_path / "t", "job", 0.3).items()}
    path = tmp_path / "t" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    again = packed(STORIES, tokenizer, tmp_path / "t", "job", 0.3)
    assert {part: stream.tolist() for part, stream in again.items()} == first


# --- documents -----------------------------------------------------------------------------------------------------


def test_documents_are_read_from_text_and_json_lines(tmp_path) -> None:
    (tmp_path / "a.txt").write_text(f"one{SEPARATOR}\ntwo\nlines\n{SEPARATOR}", encoding="utf-8")
    lines = [{"text": "three", "other": 1}, {"text": ["four", "five"]}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert list(documents([tmp_path])) == ["one", "two\nlines", "three", "four\nfive"]


def test_a_long_text_is_cut_at_blank_lines(tmp_path) -> None:
    text = "".join(f"{n}: {'word ' * 200}\n\n" for n in range(9))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    parts = list(documents([tmp_path / "a.txt"]))
    assert [part[0] for part in parts] == ["0", "4", "8"]
    assert "".join(parts) == text


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "not valid JSON"), ("[1]", "list, expected an object"), ('{"body": "x"}', "choose of body")],
)
def test_a_line_that_is_no_document_is_told_by_its_number(tmp_path, line, message) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "x"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(UserError, match=rf"a\.jsonl:2: .*{message}"):
        list(documents([tmp_path / "a.jsonl"]))


@pytest.mark.skipif(find_spec("datasets") is None, reason="the package datasets is not installed")
def test_documents_are_read_from_a_saved_data_set(tmp_path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "title": ["a", "b"]})
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(str(tmp_path / "split"))
    assert list(documents([tmp_path / "saved"])) == ["one", "two"]
    assert list(documents([tmp_path / "split"], ("title", "text"))) == ["a\none", "b\ntwo"]
    with pytest.raises(UserError, match="saved, row 1: field 'body' is no text, .*choose of text, title"):
        list(documents([tmp_path / "saved"], ("body",)))


@pytest.mark.skipif(find_spec("datasets") is None, reason="the package datasets is not installed")
def test_a_saved_data_set_trains_what_its_texts_train(config, tmp_path) -> None:
    import datasets

    pretrain(config, ignore)
    datasets.Dataset.from_dict({"text": [story.strip("\n") for story in STORIES]}).save_to_disk(str(tmp_path / "saved"))
    saved = replace(config, texts=(tmp_path / "saved",), out=tmp_path / "from-saved")
    pretrain(saved, ignore)
    assert_same(config.out, saved.out)


@pytest.mark.skipif(find_spec("datasets") is None, reason="the package datasets is not installed")
def test_a_saved_data_set_without_the_split_train_or_torn_is_told(tmp_path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["one"]})
    datasets.DatasetDict(test=rows, dev=rows).save_to_disk(str(tmp_path / "split"))
    with pytest.raises(UserError, match="has the splits dev, test, expected one named train"):
        list(documents([tmp_path / "split"]))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="torn is no whole saved data set"):
        list(documents([tmp_path / "torn"]))


def test_a_saved_data_set_without_the_package_to_read_it_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="is a saved data set; to read it: pip install datasets"):
        list(documents([tmp_path]))


def test_a_missing_source_is_told(tmp_path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(documents([tmp_path / "nothing.txt"]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("texts", ()), ("tokenizer_kind", "wordpiece"), ("vocab_size", 8), ("held_out", 0), ("context", 8)],
)
def test_a_setting_out_of_range_is_told(config, field, value) -> None:
    with pytest.raises(ConfigError, match=f"{field} is "):
        replace(config, **{field: value})


# --- tokenizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_tokenizer_gives_every_text_back(kind, tmp_path) -> None:
    write_tokenizer(KINDS[kind].train(STORIES, 512), KINDS[kind], tmp_path)
    codec = TextCodec.from_directory(tmp_path)
    text = "The 9th fox,\n\n  naïve – 狐 \U0001f98a ran."
    spelled = codec.vocabulary.spell(codec.plain_tokens(text)).decode()
    assert spelled.removeprefix(" " if codec.vocabulary.dummy_prefix else "") == text
    assert codec.vocabulary.eos


@pytest.mark.parametrize("kind", ["spm", "unigram"])
def test_no_piece_holds_a_line_break(kind) -> None:
    tokenizer = KINDS[kind].train(STORIES, 512)
    assert not [token for token in tokenizer.get_vocab() if "\n" in token]
    assert tokenizer.encode("\n\n").tokens[-2:] == ["<0x0A>", "<0x0A>"]


# --- metrics -------------------------------------------------------------------------------------------------------


def test_a_log_tells_no_step_twice(tmp_path) -> None:
    with MetricsLog(tmp_path, 0, every=2) as log:
        for step in range(1, 7):
            log.step(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    with MetricsLog(tmp_path, 4, every=2) as log:
        for step in range(5, 9):
            log.step(step, {"loss": float(step)})
        log.flush(8, validation=float("nan"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "loss": step - 0.5} for step in (2, 4, 6, 8)]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"step": "x"}'])
def test_a_damaged_line_of_a_log_is_told(tmp_path, line) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged; delete it"):
        MetricsLog(tmp_path, 4)


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="the package tensorboard is not installed")
def test_tensorboard_is_told_what_the_file_is_told_and_no_step_twice(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((0, 6), (4, 8)):  # interrupted after 6, gone on with from a checkpoint after 4
        with MetricsLog(tmp_path, first, every=2) as log:
            for step in range(first + 1, last + 1):
                log.step(step, {"loss": float(step)})
    told = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in told.Scalars("loss")] == [(2, 1.5), (4, 3.5), (6, 5.5), (8, 7.5)]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="the package tensorboard is not installed")
def test_a_run_writes_what_tensorboard_reads(config) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = pretrain(config, ignore)
    told = EventAccumulator(str(config.work / "tensorboard")).Reload()
    assert set(told.Tags()["scalars"]) == {"loss", "validation"}
    assert told.Scalars("validation")[-1].value == pytest.approx(record["validation_nats_per_token"], rel=1e-2)
