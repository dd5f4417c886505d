"""The node's file system as the agent's container sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainyard.agent.host import Host
from trainyard.agent.tool import Tool
from trainyard.agent.types import Unreadable


def test_links_lead_where_they_would_on_the_node(tmp_path: Path) -> None:
    root = tmp_path / "host"
    for folder in ("opt/driver/bin", "usr/local", "var/real"):
        (root / folder).mkdir(parents=True)
    (root / "opt/driver/bin/npu-smi").write_text("here")
    (root / "usr/local/bin").symlink_to("/opt/driver/bin")
    (root / "usr/local/up").symlink_to("../../../../opt")  # no way out
    (root / "loop").symlink_to("/loop")
    (root / "dangling").symlink_to("/nowhere/file")
    host = Host(root)
    assert host.find("/usr/local/bin/npu-smi") == root / "opt/driver/bin/npu-smi"
    assert host.find("/usr/local/up/driver/../driver") == root / "opt/driver"
    assert host.has("/usr/local/bin/npu-smi")
    assert host.find("/dangling") == root / "nowhere/file"
    assert not any(map(host.has, ("/dangling", "/loop", "/usr/local/bin/nothing", "/opt/driver/bin/npu-smi/x")))
    assert Host().find("/etc/../etc") == Path("/etc").resolve()


async def test_tools_run_inside_the_nodes_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a chroot that takes no privileges; the real one is the end-to-end tests' part."""
    root, programs = tmp_path / "host", tmp_path / "programs"
    root.mkdir()
    programs.mkdir()
    (programs / "chroot").write_text('''#!/bin/sh
root="$1" program="$2"
shift 2
[ -d "$root" ] || { echo "chroot: cannot change root directory"; exit 125; }
[ -e "$root$program" ] || { echo "chroot: failed to run command '$program'"; exit 127; }
exec "$root$program" "$@"
''')
    (programs / "chroot").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    tool = Tool("/npu-smi", host=Host(root))
    with pytest.raises(Unreadable) as missing:
        await tool.run("info", seconds=10)
    assert missing.value.reason == "ToolMissing"
    (root / "npu-smi").write_text("#!/bin/sh\necho $*\n[ $1 = info ] || exit 127\n")
    (root / "npu-smi").chmod(0o755)
    assert await tool.run("info", "-m", seconds=10) == "info -m\n"
    with pytest.raises(Unreadable) as failed:
        await tool.run("other", seconds=10)
    assert failed.value.reason == "ToolFails", "its own code 127 is not chroot's"
    with pytest.raises(Unreadable) as no_root:
        await Tool("/npu-smi", host=Host(tmp_path / "none")).run("info", seconds=10)
    assert no_root.value.reason == "ToolFails"
