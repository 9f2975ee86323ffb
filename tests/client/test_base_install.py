"""The device's promise: generate, adapt, eval and compare load no torch, transformers, onnx or Flower."""

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "onnx", "onnxscript", "peft", "flwr", "ray", "matplotlib")

SCRIPT = """
import json, sys
from fleetdraft.common.cli import main
codes = [main(words) for words in json.loads(sys.argv[1])]
loaded = sorted(name for name in json.loads(sys.argv[2]) if name in sys.modules)
print(json.dumps({"codes": codes, "loaded": loaded}))
"""


def test_the_devices_commands_load_nothing_heavy(tmp_path: Path) -> None:
    prompts, adapter = tmp_path / "p.jsonl", tmp_path / "adapter"
    prompts.write_text("".join(json.dumps({"prompt": f"def f{i}(self):\n"}) + "\n" for i in range(4)))
    commands = [
        ["generate", "--prompt", "import os\n", "--max-new-tokens", "8", "--json"],
        ["adapt", "--prompts", str(prompts), "--out", str(adapter), "--max-new-tokens", "8"],
        ["generate", "--prompt", "import os\n", "--max-new-tokens", "8", "--adapter", str(adapter)],
        ["eval", "--prompts", str(prompts), "--max-new-tokens", "8", "--target", "bpe1", "--out", str(tmp_path / "e")],
        ["compare", str(tmp_path / "e/eval.json"), str(tmp_path / "e/eval.json")],
    ]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands), json.dumps(HEAVY)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = json.loads(result.stdout.splitlines()[-1])
    assert told == {"codes": [0, 0, 0, 0, 0], "loaded": []}
    assert (adapter / "adapter_model.safetensors").is_file()
