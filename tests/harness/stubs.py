"""`python -m harness.stubs`: write the gRPC stubs of the agent from its .proto files, `--check`: say which are stale.

Stands with the tests because the compiler (grpcio-tools) is a tool of development; the operator's image has no need of
it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from grpc_tools import protoc

OPERATOR = Path(__file__).resolve().parents[2] / "operator"
WIRE = OPERATOR / "trainyard" / "agent" / "wire"


def compiled() -> dict[Path, bytes]:
    """What the compiler makes of every .proto file, by the path where it belongs. Raises RuntimeError."""
    protos = [str(path.relative_to(OPERATOR)) for path in sorted(WIRE.glob("*.proto"))]
    with tempfile.TemporaryDirectory() as folder:
        code = protoc.main(["protoc", f"-I{OPERATOR}", f"--python_out={folder}", f"--pyi_out={folder}",
                            f"--grpc_python_out={folder}", *protos])
        if code:
            raise RuntimeError(f"protoc ended with exit code {code}; what is wrong stands above")
        made = Path(folder)
        return {OPERATOR / path.relative_to(made): path.read_bytes()
                for path in sorted(made.rglob("*")) if path.is_file()}


def stale() -> dict[Path, bytes]:
    """The stubs that are missing or not what the .proto files say, with what they should be."""
    return {path: text for path, text in compiled().items() if not path.is_file() or path.read_bytes() != text}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m harness.stubs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    options = parser.parse_args(arguments)
    wrong = stale()
    for path, text in wrong.items():
        shown = path.relative_to(OPERATOR.parent)
        if options.check:
            print(f"{shown} is not what its .proto file says; run `make generate`", file=sys.stderr)
        else:
            path.write_bytes(text)
            print(f"wrote {shown}")
    return 1 if wrong and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
