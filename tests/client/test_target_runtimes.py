"""Targets on every runtime behind one drafter: the same greedy text, and one line for what cannot be opened."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from conformance import QUANTISED, Workshop, needs, plain
from safetensors.numpy import load_file, save_file

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.evaluation.bench import Bench
from fleetdraft.client.evaluation.sizes import parameters
from fleetdraft.client.measurement import GreedyCheck, compare_greedy, measure
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.client.runtimes.target_runtimes import ONNX, RUNTIME_NAMES, runtime_name
from fleetdraft.common.cli import main
from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import ConfigError, FingerprintError, MissingExtraError, ModelError
from fleetdraft.common.files import write_json
from fleetdraft.export.bundle import BundleRecipe, build_bundle

OTHERS = tuple(name for name in RUNTIME_NAMES if name != ONNX)
ALONE = Options(max_new_tokens=24, draft_tokens=0)
DRAFTED = Options(max_new_tokens=24, draft_tokens=3)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("targets"))


@pytest.fixture(scope="session")
def shared_bundle(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Bundle]:
    """A bundle of two shared models, built once."""

    @cache
    def build(drafter: str, target: str) -> Bundle:
        out, models = tmp_path_factory.mktemp("bundle") / drafter, shared_dir / "models"
        build_bundle(models / drafter, [models / target], out, BundleRecipe())
        return Bundle.open(out)

    return build


def opened(workshop: Workshop, bundle: Bundle, runtime: str, source: Path) -> Pair:
    """A pair as a command opens it."""
    needs(runtime)
    return bundle.pair(str(workshop.path(runtime, source)), runtime=runtime.split()[0])


def shipped(workshop: Workshop, bundle: Bundle, name: str) -> Path:
    """A shipped target as a Hugging Face directory."""
    return plain(bundle.directory / "targets" / name, workshop.folder / name)


def greedy_texts(native: Pair, other: Pair, prompts: list[Prompt]) -> GreedyCheck:
    """How often the greedy text of a target is the same on two runtimes, without drafting."""
    total = GreedyCheck()
    for prompt in prompts:
        tokens = native.target_codec.prompt_tokens(prompt.text)
        pair = [each.alone.run(prompt.text, ALONE) for each in (native, other)]
        total += compare_greedy(native.target, tokens, *pair, ())
    return total


def stories(data: Path) -> Iterator[Prompt]:
    texts = (data / "tinystories/tinystories_sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    yield from (Prompt(text=text.strip()[:60], task="stories") for text in texts if len(text.strip()) > 60)


def questions(data: Path) -> Iterator[Prompt]:
    for line in (data / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines():
        yield Prompt(text=f"Question: {json.loads(line)['question']}\nAnswer:", task="gsm8k")


# --- the same text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spm", "bpe3"])
@pytest.mark.parametrize("runtime", OTHERS)
def test_greedy_text_is_the_same_on_every_runtime(
    bundle: Bundle, workshop: Workshop, prompts: list[Prompt], runtime: str, name: str
) -> None:
    source = shipped(workshop, bundle, name)
    told = greedy_texts(bundle.pair(name), opened(workshop, bundle, runtime, source), prompts[:12])
    print(f"{name} on {runtime}: {told}")
    assert told.different == 0
    assert told.ties <= 1
    assert told.identical + told.ties == 12


@pytest.mark.shared
@pytest.mark.parametrize(
    "drafter, target, texts",
    [("stories260k", "stories3m", stories), ("drafter-spm8k", "target-bbpe12k", questions)],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("runtime", OTHERS)
def test_greedy_text_of_shared_models_is_the_same_on_every_runtime(
    shared_bundle: Callable[[str, str], Bundle],
    shared_dir: Path,
    workshop: Workshop,
    runtime: str,
    drafter: str,
    target: str,
    texts: Callable[[Path], Iterator[Prompt]],
) -> None:
    bundle, source = shared_bundle(drafter, target), shared_dir / "models" / target
    chosen = list(islice(texts(shared_dir / "data"), 20))
    told = greedy_texts(bundle.pair(str(source)), opened(workshop, bundle, runtime, source), chosen)
    print(f"{target} on {runtime}: {told}")
    assert told.different == 0
    assert told.ties <= 1
    assert told.identical + told.ties == 20


@pytest.mark.parametrize("runtime", [*OTHERS, QUANTISED])
def test_drafting_changes_no_greedy_text_on_any_runtime(
    bundle: Bundle, workshop: Workshop, prompts: list[Prompt], runtime: str
) -> None:
    pair = opened(workshop, bundle, runtime, shipped(workshop, bundle, "spm"))
    drafted = measure(pair, prompts[:10], DRAFTED, {"drafted": bundle.adapter()}).drafted["drafted"]
    assert drafted.greedy.different == 0
    assert drafted.greedy.ties <= 1
    assert drafted.counters.accepted >= 30


# --- how a target finds its tokenizer -------------------------------------------------------------------------------


def test_a_target_that_no_bundle_was_built_for_is_drafted_for(
    bundle: Bundle, prompts: list[Prompt], shared_dir: Path
) -> None:
    """A directory has a tokenizer of its own, and that is all that draft paths need."""
    needs("transformers")
    pair = bundle.pair(str(shared_dir / "models/stories3m"), runtime="transformers")
    assert (pair.name, pair.family) == ("stories3m", "spm-4096")
    drafted = measure(pair, prompts[:6], DRAFTED, {"drafted": bundle.adapter()}).drafted["drafted"]
    assert drafted.greedy.different == 0
    assert drafted.counters.accepted > 0


def test_a_gguf_file_is_known_by_its_vocabulary(bundle: Bundle, workshop: Workshop, tmp_path: Path) -> None:
    needs("llamacpp")
    file = workshop.path("llamacpp", shipped(workshop, bundle, "bpe3"))
    pair = bundle.pair(str(file))
    assert pair.family == bundle.entry("bpe3").family
    assert pair.target_codec.vocabulary == bundle.pair("bpe3").target_codec.vocabulary


def test_a_gguf_file_of_another_vocabulary_is_an_error_until_its_tokenizer_lies_beside_it(
    bundle: Bundle, workshop: Workshop, shared_dir: Path, tmp_path: Path
) -> None:
    needs("llamacpp")
    source, file = shared_dir / "models/stories260k", tmp_path / "stories.gguf"
    file.write_bytes(workshop.path("llamacpp", source).read_bytes())
    with pytest.raises(FingerprintError, match=r"the vocabulary in .*stories\.gguf is none of spm, bpe3, bpe1; put"):
        bundle.pair(str(file))
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    assert bundle.pair(str(file)).family == "spm-512"


@pytest.mark.parametrize("runtime", OTHERS)
def test_padding_beyond_the_tokenizer_is_never_written(
    bundle: Bundle, workshop: Workshop, tmp_path: Path, runtime: str
) -> None:
    """Rows of a wider model than the bundle's target with the same tokenizer."""
    wide = plain(bundle.directory / "targets/bpe1", tmp_path / "wide", 8, 64)
    pair = opened(Workshop(tmp_path), bundle, runtime, wide)
    assert pair.target.vocab_size == pair.target_codec.vocabulary.width == 3584 + 8
    assert {3584 + n for n in range(8)} <= pair.target_codec.vocabulary.padding
    assert pair.alone.run("def f(", ALONE).token_ids == pair.drafted.run("def f(", DRAFTED).token_ids


# --- what is chosen, and one line for what cannot be ----------------------------------------------------------------


def test_a_directory_without_all_weights_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """transformers would go on with random ones."""
    needs("transformers")
    lacking = plain(bundle.directory / "targets/bpe1", tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensors that transformers reads, such as model\.norm\.weight"):
        bundle.pair(str(lacking), runtime="transformers")


def test_weights_in_blocks_are_refused_with_the_ways_out(bundle: Bundle) -> None:
    """A shipped target's are, which transformers does not know."""
    needs("transformers")
    directory = bundle.directory / "targets/bpe1"
    with pytest.raises(ModelError, match=f"in blocks.* leave out --target-runtime.* gguf --model {directory} --out"):
        bundle.pair(str(directory), runtime="transformers")


def test_a_runtime_recognises_its_own_and_a_name_overrides(tmp_path: Path) -> None:
    write_json(tmp_path / "genai_config.json", {})
    assert runtime_name(None, str(tmp_path)) == "genai"
    assert runtime_name(None, "some/model.gguf") == "llamacpp"
    assert runtime_name(None, "spm") == runtime_name(None, None) == ONNX
    assert runtime_name("transformers", str(tmp_path)) == "transformers"
    with pytest.raises(ConfigError, match="target_runtime is 'vllm', expected one of onnx, transformers, genai, llam"):
        runtime_name("vllm", None)


@pytest.mark.parametrize(
    "runtime, target, line",
    {
        "no target": ("genai", None, "--target is not given, expected a directory with a genai_config.json, which"),
        "no file": ("llamacpp", "none.gguf", "no none.gguf, expected a GGUF file, which --target-runtime llamacpp"),
        "not its kind": ("genai", ".", "holds no genai_config.json"),
        "no GGUF": ("llamacpp", "text.gguf", "text.gguf cannot be opened by llama.cpp"),
        "no model": ("transformers", ".", "cannot be opened by transformers"),
        "no such runtime": ("vllm", None, "--target-runtime is 'vllm', expected one of onnx, transformers, genai"),
    }.values(),
)
def test_what_cannot_be_opened_is_one_line(
    runtime: str,
    target: str | None,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if target in (".", "text.gguf"):
        needs(runtime)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.gguf").write_text("this is no model")
    words = ["generate", "--prompt", "x", "--target-runtime", runtime]
    assert main([*words, "--target", target] if target else words) == 2
    said = capfd.readouterr().err.strip()
    assert line in said
    assert "\n" not in said


@pytest.mark.parametrize("runtime", OTHERS)
def test_a_missing_extra_is_named_in_one_line(runtime: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in an installation that has it: the modules are hidden from the import."""
    for module in ("torch", "transformers", "onnxruntime_genai", "llama_cpp"):
        monkeypatch.setitem(sys.modules, module, None)
    for file in ("transformers", "genai", "llamacpp"):
        monkeypatch.delitem(sys.modules, f"fleetdraft.client.runtimes.{file}_decoder", raising=False)
    with pytest.raises(MissingExtraError, match=rf"'--target-runtime {runtime}' needs the extra \[{runtime}\]"):
        bundle.pair(str(bundle.directory / "bundle.json"), runtime=runtime)


def test_generate_and_eval_run_on_a_named_runtime(
    bundle: Bundle, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("transformers")
    prompts, out, target = tmp_path / "p.jsonl", tmp_path / "rows.json", str(shipped(workshop, bundle, "bpe1"))
    prompts.write_text(json.dumps({"prompt": "import os\n"}) + "\n")
    words = ["generate", "--bundle", EMBEDDED, "--prompt", "import os\n", "--max-new-tokens", "12", "--json"]
    assert main([*words, "--target", "bpe1"]) == 0
    native = json.loads(capsys.readouterr().out)
    assert main([*words, "--target", target, "--target-runtime", "transformers"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == native["text"]
    measured = ["eval", "--prompts", str(prompts), "--target", target, "--target-runtime", "transformers"]
    assert main([*measured, "--max-new-tokens", "8", "--json", str(out)]) == 0
    [row] = json.loads(out.read_text())["results"]
    count = parameters(bundle.entry("bpe1").shape)
    assert row["target"] == "bpe1"
    assert (row["memory"]["target_parameters"], row["memory"]["target_bytes"]) == (count, 4 * count)


def test_eval_names_a_missing_extra_before_it_measures_another_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "large.gguf").touch()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.delitem(sys.modules, "fleetdraft.client.runtimes.llamacpp_decoder", raising=False)
    monkeypatch.setattr(Bench, "cell", lambda *_: pytest.fail("measured"))
    words = [
        "eval",
        "--prompts",
        str(tmp_path / "p.jsonl"),
        "--target",
        "spm",
        "--target",
        str(tmp_path / "large.gguf"),
    ]
    assert main(words) == 2
    assert "'--target-runtime llamacpp' needs the extra [llamacpp]" in capsys.readouterr().err


def test_a_runtime_that_is_not_asked_for_is_not_imported() -> None:
    script = (
        "import sys; from fleetdraft.client.bundle import Bundle; from pathlib import Path; "
        f"Bundle.open(Path('{EMBEDDED}')).pair('spm'); "
        "print(sorted({'torch', 'transformers', 'onnxruntime_genai', 'llama_cpp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_neither_disk_nor_hub_knows_is_one_line(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs("transformers")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="nobody/nothing is no directory, and cannot be had from the hub"):
        bundle.pair("nobody/nothing", runtime="transformers")


def test_a_name_of_the_hub_is_read_from_its_cache(
    bundle: Bundle, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs("transformers")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder, commit = tmp_path / "models--owner--small", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / commit).symlink_to(shipped(workshop, bundle, "bpe1"))
    pair = bundle.pair("owner/small", runtime="transformers")
    assert pair.name == "small"
    assert pair.alone.run("import os\n", ALONE).text == bundle.pair("bpe1").alone.run("import os\n", ALONE).text
