"""``fleetdraft adapter``: what its commands write, print and refuse, without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from fleetdraft.common.bundle import BundleManifest, base_fingerprint, file_digests
from fleetdraft.common.embedded import EMBEDDED, located
from fleetdraft.common.errors import UserError
from fleetdraft.common.lora import LoraAdapter
from fleetdraft.common.peft_format import CONFIG, TENSORS, plain_config, tensor_name
from fleetdraft.common.shape import DecoderShape
from fleetdraft.common.weights import read_weights
from fleetdraft.export import cli_adapter
from fleetdraft.export.merged import MARKER

HEAVY = ("torch", "transformers", "onnx", "onnxscript", "peft", "flwr")


@pytest.fixture(scope="module")
def model(tiny_model) -> Path:
    return tiny_model(num_hidden_layers=1)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory) -> Path:
    """The part of a bundle that adapters depend on."""
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    shutil.copytree(model, out / "drafter")
    BundleManifest(
        precision="fp32", shape=DecoderShape.from_directory(model), rank=4, alpha=8.0, targets=(),
        base=base_fingerprint(out / "drafter"), files=file_digests(out),
    ).write(out)  # fmt: skip
    return out


@pytest.fixture
def own(bundle, random_adapter, tmp_path) -> Path:
    """An adapter of the bundle, with the keys of a release."""
    manifest = BundleManifest.read(bundle)
    random_adapter(manifest.layout).save(tmp_path / "own", manifest.base, {"lineage": {"number": 3}})
    return tmp_path / "own"


@pytest.fixture
def foreign(tmp_path) -> Path:
    """An adapter of one projection without fingerprints."""
    directory = tmp_path / "foreign"
    directory.mkdir()
    rng = np.random.default_rng(0)
    sizes = {"A": (6, 32), "B": (32, 6)}
    tensors = {tensor_name((0, "q_proj"), f): rng.standard_normal(s).astype(np.float32) for f, s in sizes.items()}
    save_file(tensors, directory / TENSORS)
    (directory / CONFIG).write_text(json.dumps(plain_config(6, 12, "org/base") | {"use_rslora": True}))
    return directory


def run(*words: object) -> str:
    """Output of a command that ends well."""
    return CliRunner().invoke(cli_adapter.adapter, [str(word) for word in words], catch_exceptions=False).stdout


def refusal(*words: object) -> str:
    """The one line of a command that refuses its input."""
    with pytest.raises(UserError) as caught:
        run(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(*places: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}


def load(directory: Path, bundle: Path) -> LoraAdapter:
    manifest = BundleManifest.read(bundle)
    return LoraAdapter.load(directory, manifest.layout, manifest.base)


def test_show_tells_rank_scaling_modules_and_fingerprints(own, foreign):
    shown = json.loads(run("show", own, "--json"))
    assert (shown["ranks"], shown["scalings"], shown["layers"]) == ([4], [2.0], [0])
    about = json.loads((own / "fleetdraft.json").read_text())
    assert {key: shown[key] for key in about.keys() - {"schema"}} == {k: v for k, v in about.items() if k != "schema"}
    shown = json.loads(run("show", foreign, "--json"))
    assert (shown["rslora"], shown["scalings"], shown["projections"]) == (True, [12 / 6**0.5], ["q_proj"])
    assert (shown["base_model"], shown["parameters"]) == ("org/base", 2 * 6 * 32)
    assert "digest" not in shown
    assert "base_model   org/base" in run("show", foreign)


def test_import_says_that_the_base_is_not_verified_and_with_base_that_it_is(foreign, bundle, model, tmp_path):
    out, words = tmp_path / "out", ("import", foreign, "--bundle", bundle, "--truncate", "--out", tmp_path / "out")
    told = json.loads(run(*words, "--json"))
    assert told["base_check"] == "unverified"
    assert "cannot be verified" in told["warning"] and "org/base" in told["warning"]
    assert "warning: the base cannot be verified" in run(*words)
    assert load(out, bundle).digest == told["digest"]
    verified = json.loads(run(*words, "--base", model, "--json"))
    assert verified["base_check"] == "weights" and "warning" not in verified
    noted = json.loads((out / "fleetdraft.json").read_text())["imported"]
    assert (noted["truncated_projections"], noted["base_model"]) == (1, "org/base")
    assert 0 < noted["relative_error"] < 1


def test_a_rank_above_the_bundles_needs_truncate(foreign, bundle, tmp_path):
    message = refusal("import", foreign, "--bundle", bundle, "--out", tmp_path / "out")
    assert "has rank 6" in message and "--truncate" in message
    assert not (tmp_path / "out").exists()


def test_every_export_comes_back(own, bundle, tmp_path):
    adapter, arguments = load(own, bundle), ("--bundle", bundle, "--adapter", own)
    run("export", *arguments, "--format", "onnx", "--out", tmp_path / "a.onnx_adapter")
    run("export", *arguments, "--format", "peft", "--out", tmp_path / "peft")
    assert json.loads(run("show", tmp_path / "a.onnx_adapter", "--json"))["tensors"]
    for source in (tmp_path / "a.onnx_adapter", tmp_path / "peft"):
        told = json.loads(run("import", source, "--bundle", bundle, "--out", tmp_path / "back", "--json"))
        assert (told["base_check"], told["digest"]) == ("fingerprint", adapter.digest)  # scaling 2: nothing is rounded


@pytest.mark.parametrize("base", [True, False])
def test_a_merged_export_is_base_plus_adapter(own, bundle, model, tmp_path, base):
    words = ("export", "--bundle", bundle, "--adapter", own, "--format", "merged", "--out", tmp_path / "m", "--json")
    told = json.loads(run(*words, *(("--base", model) if base else ())))
    shape = DecoderShape.from_directory(model)
    expected = load(own, bundle).merged(read_weights(model, shape))
    for name, value in read_weights(tmp_path / "m", shape).items():
        np.testing.assert_array_equal(value, expected[name])
    about = json.loads((tmp_path / "m" / MARKER).read_text())
    assert (about["merged_into"], about["adapter"]) == ("original" if base else "bundle", told["digest"])


@pytest.mark.filterwarnings("ignore")  # of transformers and peft about each other
def test_a_peft_export_names_its_base_so_that_peft_finds_it(own, bundle, model, tmp_path):
    run("export", "--bundle", bundle, "--adapter", own, "--format", "peft", "--base", model, "--out", tmp_path / "p")
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "p").state_dict()
    for name, value in load_file(own / TENSORS).items():
        np.testing.assert_array_equal(loaded[name.replace(".weight", ".default.weight")].numpy(), value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export --bundle B --adapter OWN --format gguf --out X", "--format is 'gguf', expected one of peft, onnx"),
        ("export --bundle B --adapter OWN --format merged --dtype int8 --out X", "--dtype is 'int8', expected one of"),
        ("export --bundle B --adapter OWN --format onnx --base M --out X", "--base is given with --format onnx"),
        ("export --bundle B --adapter FOREIGN --format onnx --out X", "fleetdraft adapter import"),
        ("export --bundle B --adapter OWN --format peft --out OWN", "is the adapter that is read"),
        ("export --bundle B --adapter OWN --format peft --out FOREIGN", "is not replaced"),
        ("export --bundle B --adapter OWN --format merged --out M", "is not replaced"),
        ("export --bundle B --adapter OWN --format merged --out NOTE", "is a file"),
        ("export --bundle B --adapter OWN --format onnx --out NOTE", "is not replaced"),
        ("export --bundle B --adapter OWN --format onnx --out M", "is a directory"),
        ("export --bundle M --adapter OWN --format peft --out X", "is not a bundle"),
        ("import FOREIGN --bundle B --out FOREIGN", "is not replaced"),
        ("import OWN --bundle B --out OWN", "is the adapter that is read"),
        ("import M --bundle B --out X", "is not an adapter directory"),
        ("import NOTE --bundle B --out X", "is not a readable .onnx_adapter file"),
        ("import FOREIGN --bundle B --base B --truncate --out X", "is not a Hugging Face model directory"),
        ("export --bundle B --adapter OWN --format peft --out INSIDE", "is in the bundle"),
        ("export --bundle B --adapter OWN --format onnx --out INSIDE", "is in the bundle"),
        ("export --bundle B --adapter OWN --format merged --out INSIDE", "is in the bundle"),
        ("import FOREIGN --bundle B --truncate --out INSIDE", "is in the bundle"),
        ("show M", "is not an adapter directory"),
        ("show ABSENT", "is not an adapter directory"),
        ("show NOTE", "is not a readable .onnx_adapter file"),
    ],
)
def test_bad_input_is_one_line_and_destroys_nothing(words, message, own, foreign, bundle, model, tmp_path):
    (tmp_path / "note").write_text("mine")
    places = {
        "B": bundle, "OWN": own, "FOREIGN": foreign, "M": model, "X": tmp_path / "x", "NOTE": tmp_path / "note",
        "ABSENT": tmp_path / "absent", "INSIDE": tmp_path / "link" / "initial",
    }  # fmt: skip
    (tmp_path / "link").symlink_to(bundle / "drafter")
    before = contents(tmp_path, model, bundle)
    assert message in refusal(*(places.get(word, word) for word in words.split()))
    assert contents(tmp_path, model, bundle) == before


def test_the_commands_load_nothing_heavy(own, foreign, bundle, tmp_path):
    script = f"""
import sys
from typer.testing import CliRunner
from fleetdraft.export.cli_adapter import adapter
commands = [
    ["show", {str(own)!r}],
    ["import", {str(foreign)!r}, "--truncate", "--bundle", {str(bundle)!r}, "--out", {str(tmp_path / "i")!r}],
    *(["export", "--adapter", {str(own)!r}, "--bundle", {str(bundle)!r}, "--format", f, "--out", {str(tmp_path)!r} + f]
      for f in ("peft", "onnx", "merged")),
]
for words in commands:
    CliRunner().invoke(adapter, words, catch_exceptions=False)
print(sorted(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_embedded_is_the_shipped_bundle_unless_a_directory_has_that_name(tmp_path, monkeypatch):
    assert (located(EMBEDDED) / "bundle.json").is_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedded").mkdir()
    assert located(EMBEDDED) == EMBEDDED
