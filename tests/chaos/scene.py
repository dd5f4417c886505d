"""One job under test: what a fault finds and may break, and what can be waited for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from harness.devices import Devices
from harness.installation import Yard
from harness.job import GROUP, VERSION, Job, Object, Timeout

from chaos import processes
from chaos.journal import Journal, Step

BUILT_IN = "the chaos suite needs the built-in cluster: it breaks nodes, and reads their disks"


@dataclass
class Scene:
    """A running job. `undo` is emptied once training goes on after a fault; `number` counts faults from 0."""

    yard: Yard
    job: Job
    journal: Journal
    number: int = 0
    devices: Devices | None = None
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    kept: dict[str, str] = field(default_factory=dict)  # what a fault tells its check

    @property
    def namespace(self) -> str:
        """Of the job."""
        return self.job.namespace

    def world(self) -> Object:
        """The World's spec."""
        found = self.yard.api.custom.get_namespaced_custom_object(
            GROUP, VERSION, self.namespace, "worlds", self.job.name)
        return dict(found["spec"])

    def pod_name(self, place: int) -> str:
        """The pod that holds a place of the gang."""
        world = self.world()
        index = (world.get("places") or {}).get(str(place), place)
        return f"{self.job.name}-{index}-{(world.get('incarnations') or {}).get(str(index), 1)}"

    def pod(self, place: int) -> Object:
        """The same, whole. Raises Timeout if it is not there."""
        name = self.pod_name(place)
        found = next((pod for pod in self.job.pods() if pod["metadata"]["name"] == name), None)
        if found is None:
            raise Timeout(f"no pod {name}")
        return found

    def node(self, place: int) -> str:
        """Where it runs."""
        return str(self.pod(place)["spec"]["nodeName"])

    def apart(self) -> bool:
        """Whether every member has a node of its own."""
        size = int(self.world()["size"])
        return len({self.node(place) for place in range(size)}) == size

    def rank(self, place: int) -> int:
        """Pid of the rank, of which there is one a pod."""
        return processes.rank(self.pod(place)["metadata"]["uid"], place)

    @contextlib.contextmanager
    def pulses(self) -> Iterator[list[processes.PulseFile]]:
        """Those of the ranks that run now, to be read when they have ended."""
        with contextlib.ExitStack() as kept:
            ranks = [self.rank(place) for place in range(int(self.world()["size"]))]
            yield [kept.enter_context(processes.PulseFile(rank)) for rank in ranks]

    def spares(self) -> list[str]:
        """Names of the pods that run and hold no place."""
        held = {self.pod_name(place) for place in range(int(self.world()["size"]))}
        return [pod["metadata"]["name"] for pod in self.job.pods() if pod["metadata"]["name"] not in held
                and pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")]

    def wait(self, what: str, holds: Callable[[], object], seconds: float) -> None:
        """Poll until `holds` is true. Raises Timeout."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise Timeout(f"{self.job.name}: no {what} within {seconds:.0f} s; journal:\n{self.journal.text()}")
            time.sleep(0.05)

    def next_step(self, at: float, restarted: bool, seconds: float) -> Step:
        """Wait for the next finished step. Raises Timeout."""
        found: list[Step] = []

        def there() -> bool:
            step = self.journal.next_step(at, restarted)
            found.extend([step] if step is not None else [])
            return bool(found)

        self.wait("finished step after the fault", there, seconds)
        return found[0]
