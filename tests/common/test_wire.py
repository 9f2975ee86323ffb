"""The generated gRPC stubs are those of the .proto files."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

WIRE = Path(__file__).resolve().parents[2] / "common" / "wire"


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="needs grpcio-tools")
def test_the_stubs_in_the_tree_are_those_of_the_proto_files(tmp_path: Path) -> None:
    package = tmp_path / "in" / "fleetdraft"
    package.mkdir(parents=True)
    (package / "common").symlink_to(WIRE.parent)
    protos = sorted((package / "common" / "wire").glob("*.proto"))
    out = tmp_path / "out"
    out.mkdir()
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(package.parent), *outputs, *map(str, protos)]
    subprocess.run(command, check=True, timeout=60)
    generated = {path.name: path.read_text() for path in (out / "fleetdraft" / "common" / "wire").iterdir()}
    kept = {path.name: path.read_text() for path in WIRE.iterdir() if "_pb2" in path.name}
    assert len(protos) == 2
    assert generated == kept, "run: make stubs"
