"""The claims of the embedded models' training: batches, loss, attention, deepening, and going on after a stop."""

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer

from fleetdraft.export.align import attention
from fleetdraft.export.align.checkpoints import Checkpoint, Progress
from fleetdraft.export.align.errors import CheckpointForeign
from fleetdraft.export.align.likelihood import CrossEntropy, Likelihood
from fleetdraft.export.align.model import Shape
from fleetdraft.export.align.rows import IGNORED, NOTHING, inputs_and_labels
from fleetdraft.export.align.schedule import Schedule
from fleetdraft.export.align.tokenizer_kinds import train_llama3
from fleetdraft.export.align.training import Watch
from fleetdraft.simulations.embed.batches import Cursor, Reader, cut
from fleetdraft.simulations.embed.deepen import deepen, kept_positions
from fleetdraft.simulations.embed.pretrain import build, train
from fleetdraft.simulations.embed.shapes import MODELS

TEXTS = [f"def f{n}(x):\n    return x + {n}\n\n\n" * (n + 9) for n in range(12)]
SHAPE = Shape(
    hidden_size=16,
    num_hidden_layers=2,
    intermediate_size=24,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
SCHEDULE = Schedule(steps=6, batch_rows=2, row_tokens=16, warmup_steps=2)


@pytest.fixture(autouse=True)
def one_thread_and_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_llama3(TEXTS, 300)


@pytest.fixture
def reader(tokenizer: Tokenizer) -> Reader:
    ids = tokenizer.get_vocab()
    return Reader(
        tokenizer=tokenizer,
        texts=TEXTS,
        bos_id=ids["<|begin_of_text|>"],
        eos_id=ids["<|end_of_text|>"],
        row_tokens=16,
        seed=0,
    )


def watch() -> Watch:
    return Watch(validate=lambda: 0.0, report=lambda _: None, save_s=1e9)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_pieces_of_a_text_joined_are_the_text() -> None:
    text = "".join(TEXTS)
    pieces = cut(text, random.Random(0))
    assert len(pieces) > 1
    assert "".join(pieces) == text


def test_an_epoch_depends_on_the_seed_and_its_number_only(reader: Reader) -> None:
    assert torch.equal(reader.rows(1), reader.rows(1))
    assert not torch.equal(reader.rows(0)[:4], reader.rows(1)[:4])
    assert not torch.equal(reader.rows(0)[:4], replace(reader, seed=1).rows(0)[:4])


def test_whole_rows_hold_every_id_once_after_the_first(reader: Reader) -> None:
    rows = reader.whole()
    said = rows[:, 1:][rows[:, 1:] != NOTHING].tolist()
    assert reader.tokenizer.decode([rows[0, 0].item(), *said]) == "".join(TEXTS)
    assert said.count(reader.eos_id) == len(TEXTS)


def test_neither_the_beginning_of_a_text_nor_nothing_is_a_label() -> None:
    inputs, labels = inputs_and_labels(torch.tensor([[5, 7, 1, NOTHING]]), bos_id=1)
    assert inputs.tolist() == [[5, 7, 1]]
    assert labels.tolist() == [[7, IGNORED, IGNORED]]


def test_the_loss_and_its_gradient_are_pytorchs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 6, IGNORED, 3, 3])
    expected = torch.nn.functional.cross_entropy(logits, labels)
    actual = CrossEntropy.apply(logits, labels)
    gradients = [torch.autograd.grad(loss * 3, logits)[0] for loss in (expected, actual)]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_attention_is_pytorchs() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 6, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, 6, 8, generator=generator)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    actual, _ = attention.attend(SimpleNamespace(), query, key, value, None, scaling=8**-0.5)
    torch.testing.assert_close(actual, expected.transpose(1, 2))


def test_a_deepened_model_says_the_same(reader: Reader) -> None:
    model = build(SHAPE, reader, seed=0)
    deep = deepen(model, 5)
    ids = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(deep(ids).logits, model(ids).logits)
    assert len(deep.model.layers) == deep.config.num_hidden_layers == 5


def test_every_layer_of_a_deepened_model_learns(reader: Reader, tmp_path: Path) -> None:
    deep = deepen(build(SHAPE, reader, seed=0), 5)
    before = [layer.mlp.down_proj.weight.clone() for layer in deep.model.layers]
    train(deep, reader, SCHEDULE, Checkpoint(path=tmp_path / "c.pt", job="a"), watch(), Progress())
    assert all(
        not torch.equal(b, layer.mlp.down_proj.weight) for b, layer in zip(before, deep.model.layers, strict=True)
    )


def test_the_old_layers_are_evenly_spread() -> None:
    assert kept_positions(2, 6) == [0, 3]
    assert kept_positions(4, 22) == [0, 5, 11, 16]


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(reader: Reader, tmp_path: Path) -> None:
    whole = build(SHAPE, reader, seed=0)
    train(whole, reader, SCHEDULE, Checkpoint(path=tmp_path / "whole.pt", job="a"), watch(), Progress())
    checkpoint = Checkpoint(path=tmp_path / "parts.pt", job="a")
    stopped = _stop_after(3, reader, checkpoint)
    resumed = build(SHAPE, reader, seed=1)
    progress = train(resumed, reader, SCHEDULE, checkpoint, watch(), Progress())
    assert (stopped.step, progress.step) == (3, 6)
    assert torch.equal(weights(resumed), weights(whole))


def test_a_checkpoint_of_another_job_is_refused(reader: Reader, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    _stop_after(1, reader, Checkpoint(path=path, job="a"))
    with pytest.raises(CheckpointForeign, match="another job"):
        train(build(SHAPE, reader, 0), reader, SCHEDULE, Checkpoint(path=path, job="b"), watch(), Progress())


def test_the_rate_rises_to_its_peak_and_falls_to_its_floor() -> None:
    schedule = Schedule(steps=100, warmup_steps=10, peak_rate=0.01, floor=0.1)
    rates = [schedule.rate(step) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == pytest.approx(0.01)
    assert rates[100] == pytest.approx(0.001)


def test_likelihoods_add_up() -> None:
    a, b = Likelihood(nats=2.0, tokens=4, size_bytes=8), Likelihood(nats=4.0, tokens=2, size_bytes=4)
    assert a + b == b + a == Likelihood(nats=6.0, tokens=6, size_bytes=12)
    assert (a + b).nats_per_token == 1.0


def test_a_shortened_plan_keeps_its_proportions() -> None:
    plan = MODELS["spm"].shortened(41)
    assert [stage.schedule.steps for stage in plan.stages] == [32, 9]


def test_a_plan_that_does_not_rise_to_its_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must rise to 22"):
        replace(MODELS["spm"], stages=MODELS["spm"].stages[:1])


@dataclass(frozen=True, kw_only=True)
class Terminated(Reader):
    """Reads as its base does, while somebody ends the process during one of the steps."""

    during_step: int

    def batches(self, cursor: Cursor, batch_rows: int) -> Iterator[tuple[Cursor, torch.Tensor]]:
        for step, batch in enumerate(super().batches(cursor, batch_rows), start=1):
            if step == self.during_step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def _stop_after(steps: int, reader: Reader, checkpoint: Checkpoint) -> Progress:
    terminated = Terminated(**vars(reader), during_step=steps)
    return train(build(SHAPE, reader, 0), terminated, SCHEDULE, checkpoint, watch(), Progress())
