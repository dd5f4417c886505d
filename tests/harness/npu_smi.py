"""A program in the place of npu-smi on a cluster's nodes: it prints what was recorded, or rubbish, hangs, vanishes."""

from __future__ import annotations

import shutil

from unit.agent.recorded import recorded

from harness.installation import Yard

_PROGRAM = """#!/bin/sh
there="${0%/*}/$NODE_NAME"
[ -e "$there/hangs" ] && exec sleep 1000
file="$there/$(echo "$*" | tr ' ' _)"
[ -e "$file" ] || { echo "not supported: $*"; exit 1; }
exec cat "$file"
"""


class NpuSmi:
    """The driver of the nodes, in the folder that all of them share; each node has answers of its own."""

    def __init__(self, yard: Yard) -> None:
        self.folder = yard.cluster.shared / "npu"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._program = self.folder / "npu-smi"
        self.back()
        path = f"{yard.cluster.shared_path}/npu"
        self.arguments = ("--set", f"agent.hostPaths.npuSmi={path}/npu-smi,agent.hostPaths.driver={path}/driver,"
                          f"agent.hostPaths.hccnConf={path}/hccn.conf,agent.hostPaths.dcmi={path}/dcmi")
        """What `Yard.install` needs for the agents to find it."""

    def well(self, node: str) -> None:
        """The node has eight chips of a 910A, and all are OK."""
        (self.folder / node).mkdir(exist_ok=True)
        (self.folder / node / "hangs").unlink(missing_ok=True)
        self.prints(node, recorded("info-910a.txt").replace("Alarm", "OK   "), "info")
        self.prints(node, recorded("map-910.txt"), "info", "-m")
        self.prints(node, recorded("board-910a.txt"), "info", "-t", "board", "-i", "0", "-c", "0")

    def alarm(self, node: str) -> str:
        """One chip is in state Alarm, with two codes; returns the device's id."""
        self.prints(node, recorded("health-two.txt"), "info", "-t", "health", "-i", "5", "-c", "0")
        self.prints(node, recorded("info-910a.txt"), "info")
        return "Ascend910-5"

    def prints(self, node: str, text: str, *arguments: str) -> None:
        """From now on it answers these arguments so."""
        fresh = self.folder / "fresh"
        fresh.write_text(text)
        fresh.replace(self.folder / node / "_".join(arguments))

    def hangs(self, node: str) -> None:
        """It ends no more, until `well`."""
        (self.folder / node / "hangs").touch()

    def vanishes(self) -> None:
        """It is on no node any more."""
        self._program.unlink()

    def back(self) -> None:
        """It is there."""
        fresh = self.folder / "fresh"
        fresh.write_text(_PROGRAM)
        fresh.chmod(0o755)
        fresh.replace(self._program)
