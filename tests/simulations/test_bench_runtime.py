"""The runtime benchmark: contestants in processes of their own, the same work for all, mistakes in one line."""

import json
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fleetdraft.common.shape import DecoderShape
from fleetdraft.simulations.bench import drafting, trainers, training
from fleetdraft.simulations.bench.curriculum import Curriculum
from fleetdraft.simulations.bench.material import LLAMA_68M, Drafter, random_drafter, write_material
from fleetdraft.simulations.bench.runtime import PROGRAM, main
from fleetdraft.simulations.bench.table import run
from fleetdraft.simulations.bench.worker import Worker, WorkerError, contest

CURRICULUM = Curriculum(vocabulary=96, texts=2, length=12, width=8, seed=3)
TINY = replace(
    LLAMA_68M, vocab_size=96, hidden_size=32, heads=2, kv_heads=1, head_dim=16, intermediate_size=48, rope_theta=300.0
)


@pytest.fixture(scope="module")
def drafter() -> Drafter:
    return random_drafter(TINY, seed=0)


@pytest.fixture(scope="module")
def folder(drafter: Drafter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_material(drafter, 8, tmp_path_factory.mktemp("material") / "int8")


def arguments(folder: Path, count: int) -> dict[str, object]:
    return {
        "folder": str(folder), "rank": 8, "alpha": 16.0, "threads": 1, "count": count,
        "curriculum": asdict(CURRICULUM),
    }  # fmt: skip


def test_a_worker_does_in_its_process_what_its_function_does_here(folder: Path) -> None:
    here = trainers.steps(**arguments(folder, 3))
    with Worker(trainers.steps, arguments(folder, 3)) as worker:
        laps = [worker.lap() for _ in range(2)]
    assert [lap.value for lap in laps] == pytest.approx([here(), here()], rel=1e-5)
    assert all(lap.seconds > 0 and lap.peak_bytes > 2**24 for lap in laps)


def test_a_worker_is_not_charged_for_the_memory_of_the_one_who_started_it(folder: Path) -> None:
    held = np.ones(2**26)
    with Worker(trainers.steps, arguments(folder, 1)) as worker:
        assert worker.lap().peak_bytes < held.nbytes / 2


def test_our_worker_imports_no_training_framework(folder: Path) -> None:
    with Worker(trainers.steps, arguments(folder, 1)) as worker:
        worker.lap()
        mapped = Path(f"/proc/{worker.pid}/maps").read_text()
    assert "onnxruntime" in mapped
    assert "libtorch" not in mapped


def test_the_first_lap_does_not_count(folder: Path) -> None:
    results = contest({"a": (trainers.steps, arguments(folder, 1))}, 2, seed=0)
    here = trainers.steps(**arguments(folder, 1))
    assert [lap.value for lap in results["a"].laps] == pytest.approx([here() for _ in range(3)][1:], rel=1e-5)


def test_a_contestant_that_fails_is_told_with_its_last_words(folder: Path) -> None:
    with (
        Worker(trainers.steps, arguments(folder / "nowhere", 1)) as worker,
        pytest.raises(WorkerError, match="exit code 1: .*nowhere is not a Hugging Face model directory"),
    ):
        worker.lap()


def test_many_adapters_in_one_call_learn_what_they_learn_one_by_one(drafter: Drafter) -> None:
    *_, difference = training.many_rows(drafter, CURRICULUM, threads=1, clients=3, laps=3)
    assert difference.value < 1e-5


def test_many_adapters_in_one_call_decode_what_they_decode_one_by_one(drafter: Drafter) -> None:
    *_, difference = drafting.many_rows(drafter, "int8", clients=3, threads=1, laps=2, seed=0)
    assert difference.value < 1e-5


def test_lessons_are_the_same_for_everybody_and_new_in_each_batch() -> None:
    first, second = (list(islice(CURRICULUM.batches(), 2)) for _ in range(2))
    assert all(
        (a.tokens == b.tokens).all() for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert any((a.tokens != b.tokens).any() for a, b in zip(*first, strict=True))


def test_the_peers_model_has_our_shape(folder: Path) -> None:
    assert DecoderShape.from_directory(folder / "peer") == TINY


def test_a_quick_run_has_every_figure_and_learns_down_to_the_peers_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    assert run(main, PROGRAM, ["--quick", "--threads", "1", "--json", str(file)]) == 0
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert {"int4: training step", "int4, LoRA r = 8: token", "int4: peak memory"} <= rows.keys()
    start, end = (rows[f"int4: loss at the {place} of 5 steps"] for place in ("start", "end"))
    assert end["ratio"] == pytest.approx(1, rel=1e-3)
    assert end["value"] < start["value"]
    assert end["peer_value"] < start["peer_value"]
    assert all(row["value"] > 0 for name, row in rows.items() if "difference" not in name)
    assert "transformers + peft" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--model", "nowhere"], ["--json", "."], ["--laps", "0"]])
def test_a_mistake_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, PROGRAM, words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
