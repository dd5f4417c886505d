"""It runs where nothing of ours is: one file, standard library, old Python."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipapp
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import SOURCE, Operator, SupervisedPod

FILES = sorted((SOURCE / "supervisor").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_python_3_9_and_the_standard_library(file: Path) -> None:
    tree = ast.parse(file.read_text(), feature_version=(3, 9))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            top = name.partition(".")[0]
            assert top == "supervisor" or top in sys.stdlib_module_names, f"{file.name} imports {name}"


def test_packed_into_one_file(start: Callable[..., SupervisedPod], api: FakeApi, tmp_path: Path) -> None:
    shutil.copytree(SOURCE / "supervisor", tmp_path / "pack" / "supervisor",
                    ignore=shutil.ignore_patterns("__pycache__"))
    packed = tmp_path / "supervisor.pyz"
    zipapp.create_archive(tmp_path / "pack", packed, main="supervisor.__main__:main", compressed=True)
    assert subprocess.run(["/usr/bin/python3", packed], capture_output=True, check=False).returncode == 78
    operator = Operator(api)
    pod = start(["sh", "-c", "echo done"], command=["/usr/bin/python3", "-I", str(packed)])
    operator.run(pod)
    operator.report("Finished")
    operator.put(phase="Done")
    assert pod.wait() == 0
    assert "[rank 0] done" in pod.output()
