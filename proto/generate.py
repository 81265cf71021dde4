"""Generates specwire's protobuf and gRPC code next to its .proto files.

`--check` generates into a temporary folder instead and fails if the committed files differ. The
mirror of package and folder is what lets protoc's own imports work without being rewritten.
"""

import argparse
import sys
import sysconfig
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(target: Path) -> None:
    """Writes the generated code under `target`; raises SystemExit where protoc fails."""
    sources = sorted(str(path) for path in ROOT.glob("specwire/v*/*.proto"))
    scripts = Path(sysconfig.get_path("scripts"))
    with as_file(files("grpc_tools") / "_proto") as well_known:
        status = protoc.main(
            [
                "protoc",
                f"-I{ROOT}",
                f"-I{well_known}",
                f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
                f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
                f"--python_out={target}",
                f"--grpc_python_out={target}",
                f"--mypy_out=quiet:{target}",
                f"--mypy_grpc_out=quiet:{target}",
                *sources,
            ]
        )
    if status:
        raise SystemExit(status)


def generated_files(folder: Path) -> dict[str, bytes]:
    """The generated files under `folder` by their relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in GENERATED
        for path in folder.glob(f"specwire/v*/{pattern}")
    }


def stale_files() -> list[str]:
    """The committed files that differ from what the .proto files generate now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        expected = generated_files(Path(folder))
    committed = generated_files(ROOT)
    return sorted(
        name
        for name in expected.keys() | committed.keys()
        if expected.get(name) != committed.get(name)
    )


def main() -> int:
    """Generates, or compares with --check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    stale = stale_files()
    for name in stale:
        print(f"proto/{name} is not what its .proto generates; run `make proto`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
