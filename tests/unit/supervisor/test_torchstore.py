"""The child that makes torch's store."""

from __future__ import annotations

import os
import select
from pathlib import Path

from supervisor.torchstore import TorchStore


def test_a_child_without_torch_that_is_not_reaped_yet(tmp_path: Path) -> None:
    """It has told that it has none and is about to end: nobody may be sent to a store that it would make."""
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexec /usr/bin/env python3 -S -c \"import socket,sys; "
                      "socket.socket(fileno=int(sys.argv[1])).send(b'{\\\"torch\\\": false}\\n')\" \"$3\"\n")
    python.chmod(0o755)
    store = TorchStore("127.0.0.1", [str(python), "x.py"], lambda: 4000, lambda text: None, True)
    store.open()
    assert store.prepare((1, 0)) is None
    ready = None
    while ready is None and store.link is not None:
        assert select.select([store.link], [], [], 30)[0], "the child says nothing"
        ready = store.read()
    assert ready is not None
    assert not ready.agent_store
    again = store.prepare((2, 0))
    assert again is not None
    assert not again.agent_store, "before its end is seen"
    if store.link is not None:
        assert select.select([store.link], [], [], 30)[0]
        store.read()
    assert store.link is None
    last = store.prepare((3, 0))
    assert last is not None
    assert not last.agent_store
    (pid,) = store.pids()
    os.waitpid(pid, 0)
    store.ended(pid, 0)
    store.close()
