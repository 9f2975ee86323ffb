"""Experiment files: what is read, and what is refused with key and expectation."""

from pathlib import Path

import pytest

from fleetdraft.common.errors import ConfigError
from fleetdraft.simulations.experiment import Experiment

CLIENT = '[[clients]]\nname = "a"\ntarget = "spm"\nprompts = "p.jsonl"\nheld_out = "h.jsonl"\n'


def read(tmp_path: Path, text: str) -> Experiment:
    path = tmp_path / "e.toml"
    path.write_text(text, encoding="utf-8")
    return Experiment.read(path)


def test_defaults_and_paths_relative_to_the_file(tmp_path: Path) -> None:
    experiment = read(tmp_path, f'title = "t"\n[federation]\nrounds = 5\ntimeout_s = 9\n{CLIENT}')
    assert experiment.federation.rounds == 5
    assert experiment.federation.timeout_s == 9.0
    assert experiment.clients[0].prompts == tmp_path / "p.jsonl"
    assert experiment.clients[0].target == "spm"


def test_how_updates_become_a_release_is_a_setting(tmp_path: Path) -> None:
    text = 'title = "t"\n[federation]\nrule = "fedsvd"\nweights = "examples"\nevaluate_every = 1\n'
    text += '[federation.optimizer]\nname = "fedadam"\nlearning_rate = 0.01\n'
    text += f"[federation.balance]\nexponent = 0.5\nworst_family_rate = 1\n{CLIENT}"
    aggregation = read(tmp_path, text).federation.config(seed=0, clients=1).aggregation
    assert (aggregation.rule, aggregation.weights) == ("fedsvd", "examples")
    assert (aggregation.optimizer.name, aggregation.optimizer.learning_rate) == ("fedadam", 0.01)
    assert (aggregation.balance.exponent, aggregation.balance.worst_family_rate) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'title = "t"\nrouns = 3\n{CLIENT}', "unknown key 'rouns'"),
        (
            f'title = "t"\n[federation]\nround = 3\n{CLIENT}',
            r"\[federation\]: unknown key 'round'; did you mean 'rounds'",
        ),
        (CLIENT, "key 'title' is missing"),
        ('title = "t"\n', "key 'clients' is missing|clients is empty"),
        (f'title = "t"\nseed = "one"\n{CLIENT}', 'seed is "one", expected a whole number'),
        (f'title = "t"\nworkers = true\n{CLIENT}', "workers is true, expected a whole number"),
        (f'title = "t"\nworkers = 0\n{CLIENT}', "workers is 0, expected at least 1"),
        (f'title = "t"\n[generation]\ntemperature = -1.0\n{CLIENT}', "temperature is -1.0"),
        (f'title = "t"\n[learning]\nsteps = 0\n{CLIENT}', "steps is 0, expected at least 1"),
        (f'title = "t"\n[federation]\nrule = "mean"\n{CLIENT}', "rule is 'mean', expected one of"),
        (f'title = "t"\n[federation]\noptimizer = "fedadam"\n{CLIENT}', 'optimizer is "fedadam", expected a table'),
        (
            f'title = "t"\n[federation.balance]\nexponent = 2.0\n{CLIENT}',
            r"\[federation\]: balance: exponent is 2.0, expected a number from 0 to 1",
        ),
        (f'title = "t"\n{CLIENT}{CLIENT}', "the name 'a' is used twice"),
        (f'title = "t"\n{CLIENT}fault = "lazy"\n', "fault is 'lazy', expected one of"),
        ('title = "t"\nclients = 3\n', "clients is int, expected"),
        ("title = \n", "is not valid TOML"),
    ],
)
def test_refuses_with_key_and_expectation(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read experiment"):
        Experiment.read(tmp_path / "none.toml")


def test_the_demo_reads() -> None:
    from fleetdraft.simulations import cli

    demo = Experiment.read(cli.DEMO)
    assert len(demo.clients) == 12
    assert {client.target for client in demo.clients} == {"spm", "bpe3", "bpe1"}
