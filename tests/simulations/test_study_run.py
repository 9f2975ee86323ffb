"""`fleetdraft study` on the shipped models: arms in worker processes, failures, kills, and going on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.common.cli import main
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import ConfigError, UserError
from fleetdraft.simulations.study.arm import arms
from fleetdraft.simulations.study.plan import Study
from fleetdraft.simulations.study.pool import work
from fleetdraft.simulations.study.report import document
from fleetdraft.simulations.study.run import StudyRun
from fleetdraft.simulations.study.workshop import Workshop

MODELS = Bundle.open(EMBEDDED).directory
TEXT = f"""
title = "tiny"
kind = "table"
drafter = "{MODELS}/drafter"
seeds = [0, 1]
train_prompts = 4
unseen_prompts = 2
max_new_tokens = 8
keep_adapters = true
[defaults]
rank = 4
steps = 1
[[targets]]
directory = "{MODELS}/targets/spm"
[[tasks]]
name = "logging"
train = "{MODELS}/prompts/logging.train.jsonl"
unseen = "{MODELS}/prompts/logging.heldout.jsonl"
[[methods]]
name = "none"
steps = 0
[[methods]]
name = "learns"
"""
STREAM = (
    TEXT.replace('"table"', '"stream"')
    + f"""
[[targets]]
directory = "{MODELS}/targets/bpe1"
"""
    + "".join(
        f'[[segments]]\nstream = "swap"\ntarget = "{target}"\ntask = "logging"\nprompts = 4\n'
        for target in ("spm", "bpe1", "spm")
    )
)
COMMAND = """
import sys
from pathlib import Path
from fleetdraft.simulations.study.plan import Study
from fleetdraft.simulations.study.run import StudyRun
run = StudyRun(study=Study.read(Path(sys.argv[1])), folder=Path(sys.argv[2]))
run.open(resume=False)
run.execute(workers=1)
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyRun:
    folder = tmp_path_factory.mktemp("study")
    run = StudyRun(study=Study.read(written(folder, TEXT)), folder=folder / "run")
    run.open(resume=False)
    found = run.execute(workers=2)
    document(found).write(found.to_json(), run.folder, "study")
    return run


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "arms").iterdir()}


def test_each_arm_writes_its_figures_and_what_it_learned(finished: StudyRun) -> None:
    value = json.loads((finished.folder / "study.json").read_text())
    assert value["failures"] == {}
    assert sorted(value["arms"]) == sorted(arm.key for arm in arms(finished.study))
    learned = value["arms"]["spm_logging_learns_s0_t0"]
    # It learns after the fourth prompt, and nothing came after it.
    assert (learned["steps"], learned["learning"]["prompts"], learned["counters"]["prompts"]) == (1, 4, 2)
    assert learned["counters"]["drafted"] > 0
    assert sorted(path.name for path in (finished.folder / "adapters").iterdir()) == [
        "spm_logging_learns_s0_t0",
        "spm_logging_learns_s1_t0",
    ]


def test_resuming_a_finished_study_does_nothing_again_and_finds_the_same(finished: StudyRun) -> None:
    before = times(finished.folder)
    again = StudyRun(study=finished.study, folder=finished.folder)
    again.open(resume=True)
    cells = [cell.to_json() for cell in again.execute(workers=2).cells]
    assert times(finished.folder) == before
    assert cells == json.loads((finished.folder / "study.json").read_text())["cells"]


def test_another_study_in_the_same_folder_is_refused(finished: StudyRun, tmp_path: Path) -> None:
    other = Study.read(written(tmp_path, TEXT.replace("train_prompts = 4", "train_prompts = 5")))
    with pytest.raises(ConfigError, match="holds a study of other settings"):
        StudyRun(study=other, folder=finished.folder).open(resume=True)
    with pytest.raises(ConfigError, match="already holds a study; go on with --resume"):
        StudyRun(study=other, folder=finished.folder).open(resume=False)


def test_a_study_that_is_refused_leaves_its_folder_free(tmp_path: Path) -> None:
    for old, new in (("/drafter", "/nowhere"), ("logging.train", "nowhere"), ("/targets/spm", "/nowhere")):
        run = StudyRun(study=Study.read(written(tmp_path, TEXT.replace(old, new))), folder=tmp_path / "run")
        with pytest.raises(UserError, match="nowhere"):
            run.open(resume=False)
        assert not run.folder.exists() or not list(run.folder.iterdir())


def test_a_refused_resumption_takes_nothing_back(finished: StudyRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    shutil.rmtree(folder / "bundles")
    study = Study.read(written(tmp_path, TEXT))
    (folder / "bundles").write_text("")  # so that none can be built
    with pytest.raises((UserError, OSError)):
        StudyRun(study=study, folder=folder).open(resume=True)
    assert (folder / "study-asked.json").exists()


def test_tasks_with_fewer_prompts_than_asked_for_are_told(finished: StudyRun, tmp_path: Path) -> None:
    assert finished.shortages() == ()
    text = TEXT.replace("train_prompts = 4", "train_prompts = 999").replace("unseen_prompts = 2", "unseen_prompts = 13")
    run = StudyRun(study=Study.read(written(tmp_path, text)), folder=tmp_path / "run")
    first, second = run.shortages()
    assert first.endswith("training prompts, not 999: all of them are used")
    assert second == "logging has 12 unseen prompts, not 13: all of them are used"
    stream = Study.read(written(tmp_path, STREAM.replace("prompts = 4\n[[seg", "prompts = 900\n[[seg")))
    (told,) = StudyRun(study=stream, folder=tmp_path / "run").shortages()
    assert "prompts, not 1804: swap comes to the first again" in told


def test_progress_counts_the_whole_study(finished: StudyRun, capfd: pytest.CaptureFixture[str]) -> None:
    finished.execute(workers=1)
    assert finished.arms.done == len(finished.arms.arms) == 3
    assert "arms 3/3" in capfd.readouterr().err


def test_an_interrupted_study_says_how_to_go_on(
    finished: StudyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stop(self: StudyRun, workers: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "arms" / f"{arms(finished.study)[0].key}.json").unlink()
    monkeypatch.setattr(StudyRun, "execute", stop)
    code = main(["study", str(written(tmp_path, TEXT)), "--out", str(folder), "--resume"])
    assert code == 130
    assert "2 of 3 arms are done; go on with --resume" in capfd.readouterr().err


def test_an_arm_gives_the_same_figures_in_any_process(finished: StudyRun) -> None:
    arm = arms(finished.study)[-1]
    again = Workshop(study=finished.study, folder=finished.folder).run(arm)
    told = json.loads((finished.folder / "arms" / f"{arm.key}.json").read_text())
    own = again.to_json()
    for name in ("counters", "learning"):
        assert {k: v for k, v in own[name].items() if k != "seconds"} == {
            k: v for k, v in told[name].items() if k != "seconds"
        }
    assert own["loss"] == told["loss"]


def test_a_failing_arm_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(MODELS / "targets/bpe1", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    text = TEXT.replace("seeds = [0, 1]", "seeds = [0]") + f'[[targets]]\ndirectory = "{broken}"\n'
    run = StudyRun(study=Study.read(written(tmp_path, text)), folder=tmp_path / "run")
    run.open(resume=False)
    found = run.execute(workers=1)
    assert sorted(found.failures) == ["broken_logging_learns_s0_t0", "broken_logging_no-training-full_s0_t0"]
    assert all(why.startswith("ModelError: ") and "\n" not in why for why in found.failures.values())
    assert [cell.target for cell in found.cells] == ["spm", "spm"]


def test_a_worker_that_dies_fails_its_arm_and_another_takes_its_place(finished: StudyRun) -> None:
    first, second = arms(finished.study)[:2]
    answers = work(Workshop(study=finished.study, folder=finished.folder), [first, second, first], workers=1)
    assert next(answers)[0] == first
    (child,) = children()  # at work on the second arm
    os.kill(child, signal.SIGKILL)
    arm, answer = next(answers)
    assert (arm, answer) == (second, "its process ended with exit code -9")
    arm, answer = next(answers)
    assert arm == first
    assert not isinstance(answer, str)
    answers.close()
    assert children() == []


def children() -> list[int]:
    """Living worker processes of this one."""
    import multiprocessing

    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


def test_a_stream_goes_through_its_segments_with_one_adapter(finished: StudyRun, tmp_path: Path) -> None:
    study = Study.read(written(tmp_path, STREAM))
    silent, learning = arms(study)[:2]
    workshop = Workshop(study=study, folder=tmp_path / "run")
    workshop.build()
    moments = workshop.run(learning).moments
    assert [moment.segment for moment in moments] == [0] * 4 + [1] * 4 + [2] * 4
    assert workshop.run(learning).steps == 3  # in each segment after the fourth prompt, its last
    assert workshop.run(silent).steps == 0


@pytest.mark.slow
def test_a_killed_study_goes_on_and_loses_only_what_was_at_work(tmp_path: Path) -> None:
    file, folder = written(tmp_path, TEXT.replace("[0, 1]", "[0, 1, 2, 3]")), tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", COMMAND, str(file), str(folder)]) as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob("arms/*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert psutil.wait_procs(workers, timeout=20)[1] == []  # they do not work on for nobody
    done = times(folder)
    assert done
    run = StudyRun(study=Study.read(file), folder=folder)
    run.open(resume=True)
    found = run.execute(workers=1)
    assert found.results.keys() == {arm.key for arm in arms(run.study)}
    assert done.items() <= times(folder).items()
