"""A pod that loses a peer, with real processes: it says whether its own ranks wait as well."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from unit.supervisor.fake_api import FakeApi
from unit.supervisor.pods import Operator, SupervisedPod

# A rank with the shipped trainer's pulse that has finished nine steps of 0.1 s, and waits in its tenth.
WAITS = """
import os, time
from supervisor import pulse
content = pulse.HEADER.pack(pulse.MAGIC, 0, pulse.PHASES.index("step"), 0, 9, 9, time.monotonic(), 0.1)
with open(os.environ["TRAINYARD_PULSE"], "wb") as file:
    file.write(content.ljust(pulse.SIZE, b"\\0"))
print("waits", flush=True)
time.sleep(1000)
"""


def test_a_lost_peer_is_told_of_with_the_ranks_that_wait_for_it(start: Callable[..., SupervisedPod],
                                                                api: FakeApi) -> None:
    operator = Operator(api, size=2)
    pods = [start(["/usr/bin/python3", "-c", WAITS], index=index, nodes=2) for index in (0, 1)]
    operator.run(pods[0])
    for pod in pods:
        pod.wait_output("waits\n")
    os.kill(pods[1].process.pid, signal.SIGSTOP)  # so that it does not tell of its rank, which ends first
    pods[1].stop()
    told = api.wait_report(lambda pod, spec: pod == pods[0].name and spec.get("stalled"))
    assert (told["kind"], told["lost"]) == ("PeerLost", [1])
