"""Two pods of two ranks with copies in memory: killed in every way, and back at the very step."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor.copies.slot import Slot
from train.gang import IMPORTS, Ended, Gang, train
from trainer.checkpoint import folder as folders

STEPS = 24


class Pods:
    """Copiers in memory folders, one a pod."""

    def __init__(self, number: int) -> None:
        self.folders: list[Path] = []
        self.copiers: list[subprocess.Popen[str]] = []
        self.one_node = False
        self.ranks_each = 2
        for _ in range(number):
            self.folders.append(Path(tempfile.mkdtemp(prefix="trainyard-test-", dir="/dev/shm")))
            self.copiers.append(self._start(self.folders[-1]))

    @property
    def ranks(self) -> int:
        """Of all of them together."""
        return len(self.folders) * self.ranks_each

    def _start(self, folder: Path) -> subprocess.Popen[str]:
        copier = subprocess.Popen([sys.executable, "-m", "supervisor.copies.copier", str(folder), "127.0.0.1"],
                                  stdin=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": IMPORTS})
        assert copier.stdin is not None
        copier.stdin.write("t" * 32 + "\n")
        copier.stdin.close()
        until(lambda: (folder / "port").exists())
        return copier

    def restart_copier(self, pod: int) -> None:
        """It dies, and the supervisor starts another in the same folder."""
        self.copiers[pod].kill()
        self.copiers[pod].wait()
        self.copiers[pod] = self._start(self.folders[pod])

    def replace(self, pod: int) -> None:
        """The pod is lost with its memory; another takes its place."""
        self.copiers[pod].kill()
        self.copiers[pod].wait()
        shutil.rmtree(self.folders[pod])
        self.folders[pod] = Path(tempfile.mkdtemp(prefix="trainyard-test-", dir="/dev/shm"))
        self.copiers[pod] = self._start(self.folders[pod])

    def close(self) -> None:
        for copier, folder in zip(self.copiers, self.folders, strict=True):
            copier.kill()
            copier.wait()
            shutil.rmtree(folder, ignore_errors=True)

    def environment(self, every: str = "1", copy_every: str = "1") -> Callable[[int], dict[str, str]]:
        def of_rank(rank: int) -> dict[str, str]:
            return {"LOCAL_RANK": str(rank % self.ranks_each), "LOCAL_WORLD_SIZE": str(self.ranks_each),
                    "TRAINYARD_MEMORY": str(self.folders[rank // self.ranks_each]), "TRAINYARD_MEMORY_EVERY": every,
                    "TRAINYARD_MEMORY_COPY_EVERY": copy_every,
                    "TRAINYARD_NODE": "node" if self.one_node else f"node-{rank // self.ranks_each}"}

        return of_rank


def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


@pytest.fixture
def pods(request: pytest.FixtureRequest) -> Iterator[Pods]:
    made = Pods(getattr(request, "param", 2))
    yield made
    made.close()


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "steps": STEPS, "export": False, "parallel": {"data": 1, "shard": 4}}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, dict[int, str]]:
    """Losses of the run that nobody disturbs, made by the first test that asks."""
    return {}


def expected(tmp_path: Path, config: dict[str, Any], known: dict[str, dict[int, str]], ranks: int = 4
             ) -> dict[int, str]:
    key = f"{ranks} {config['parallel']}"
    if key not in known:
        ended = train(tmp_path / "undisturbed", config, ranks=ranks)
        assert ended.codes == [0] * ranks, ended.text
        known[key] = ended.losses
    return known[key]


def kill_at(tmp_path: Path, config: dict[str, Any], pods: Pods, step: int, **settings: Any) -> tuple[Ended, int]:
    """A first generation whose ranks all die some time after `step`; and the last step that it told of, less those
    that were not copied because an earlier copy was still on its way."""
    with Gang(tmp_path / "first", [config] * pods.ranks, of_rank=pods.environment(), **settings) as gang:
        gang.wait_for(lambda progress: progress.get("memoryStep", 0) >= step)
        ended, told = gang.kill(), gang.progress()
        return ended, int(told["step"]) - int(told.get("memorySkipped", 0))


def resumed_from(ended: Ended) -> int:
    line = next((line for line in ended.out[0].splitlines() if "from copies in memory" in line), "")
    assert line, ended.text
    return int(line.split()[3])


def go_on(tmp_path: Path, config: dict[str, Any], pods: Pods, name: str = "second", **settings: Any) -> Ended:
    of_rank = pods.environment()
    with Gang(tmp_path / name, [config] * pods.ranks, generation="2", of_rank=of_rank, **settings) as gang:
        return gang.wait()


def test_no_finished_step_is_lost_with_the_ranks(tmp_path: Path, config: dict[str, Any], pods: Pods,
                                                 undisturbed: dict[str, dict[int, str]]) -> None:
    wanted = expected(tmp_path, config, undisturbed)
    _, told = kill_at(tmp_path, config, pods, 6)
    ended = go_on(tmp_path, config, pods)
    assert ended.codes == [0] * 4, ended.text
    first = resumed_from(ended)
    assert first >= told - 1, "rank 0 may have told of a step that another was just copying"
    assert ended.losses == {step: loss for step, loss in wanted.items() if step > first}


def test_a_lost_pods_state_comes_from_its_buddy(tmp_path: Path, config: dict[str, Any], pods: Pods,
                                                undisturbed: dict[str, dict[int, str]]) -> None:
    wanted = expected(tmp_path, config, undisturbed)
    kill_at(tmp_path, config, pods, 6)
    pods.replace(1)
    ended = go_on(tmp_path, config, pods)
    assert ended.codes == [0] * 4, ended.text
    first = resumed_from(ended)
    assert first >= 6
    assert ended.losses == {step: loss for step, loss in wanted.items() if step > first}


def test_the_other_pod_may_go_after_the_buddies_were_filled_again(
        tmp_path: Path, config: dict[str, Any], pods: Pods, undisturbed: dict[str, dict[int, str]]) -> None:
    wanted = expected(tmp_path, config, undisturbed)
    kill_at(tmp_path, config, pods, 3)
    pods.replace(1)
    with Gang(tmp_path / "second", [config] * 4, generation="2", of_rank=pods.environment()) as gang:
        filled = gang.wait_for(lambda progress: progress.get("memoryStep", 0) >= 3)
        assert filled["protection"] == "Node"
        gang.kill()
    pods.replace(0)
    with Gang(tmp_path / "third", [config] * 4, generation="3", of_rank=pods.environment()) as gang:
        ended = gang.wait()
    assert ended.codes == [0] * 4, ended.text
    assert ended.losses == {step: loss for step, loss in wanted.items() if step > resumed_from(ended)}


@pytest.mark.parametrize("pods", [3], indirect=True)
@pytest.mark.parametrize("durable", [False, True], ids=["memory", "disk"])
def test_shards_that_differ_in_size_are_copied_as_they_are_trained(
        tmp_path: Path, config: dict[str, Any], pods: Pods, undisturbed: dict[str, dict[int, str]], durable: bool
) -> None:
    """FSDP2 replaces the tensor of a smaller shard before its first forward."""
    pods.ranks_each = 1
    config = {**config, "batchSize": 6, "parallel": {"data": 1, "shard": 3}}
    wanted = expected(tmp_path, config, undisturbed, ranks=3)
    every: dict[str, Any] = {"checkpoint": tmp_path / "checkpoint", "every": 5}
    with Gang(tmp_path / "first", [config] * 3, of_rank=pods.environment(), **every) as gang:
        gang.wait_for(lambda progress: progress.get("durableStep", 0) >= 5 and progress["step"] > 7)
        gang.kill()
    for pod in range(3 if durable else 0):
        pods.replace(pod)
    ended = go_on(tmp_path, config, pods, **every)
    assert ended.codes == [0] * 3, ended.text
    first = STEPS - len(ended.losses)
    assert (f"from step-{first}.g1" in ended.out[0]) if durable else (first == resumed_from(ended)), ended.text
    assert ended.losses == {step: loss for step, loss in wanted.items() if step > first}


def test_a_lost_pods_state_comes_from_the_replicas(tmp_path: Path, config: dict[str, Any], pods: Pods,
                                                   undisturbed: dict[str, dict[int, str]]) -> None:
    config, pods.ranks_each = {**config, "parallel": {"data": 2, "shard": 1}}, 1
    wanted = expected(tmp_path, config, undisturbed, ranks=2)
    kill_at(tmp_path, config, pods, 6)
    assert json.loads((tmp_path / "first" / "progress-0.json").read_text())["protection"] == "Node"
    assert not [path for folder in pods.folders for path in folder.glob("held/*/*")], "no copies were sent"
    pods.replace(0)
    ended = go_on(tmp_path, config, pods)
    assert ended.codes == [0, 0], ended.text
    first = resumed_from(ended)
    assert first >= 6
    assert ended.losses == {step: loss for step, loss in wanted.items() if step > first}


def test_replicas_on_one_node_are_no_copies(tmp_path: Path, config: dict[str, Any], pods: Pods) -> None:
    pods.one_node, pods.ranks_each = True, 1
    kill_at(tmp_path, {**config, "parallel": {"data": 2, "shard": 1}}, pods, 3)
    assert json.loads((tmp_path / "first" / "progress-0.json").read_text())["protection"] == "Pod"
    assert list(pods.folders[1].glob("held/*/0.*"))


def test_a_damaged_copy_is_passed_over_for_the_buddys(tmp_path: Path, config: dict[str, Any], pods: Pods,
                                                      undisturbed: dict[str, dict[int, str]]) -> None:
    wanted = expected(tmp_path, config, undisturbed)
    kill_at(tmp_path, config, pods, 6)
    for path in (pods.folders[0] / "own").glob("*/0.*"):
        slot = Slot.open(str(path), write=True)
        if slot.known_sum() is not None:
            slot.data[100] ^= 8
        slot.close()
    ended = go_on(tmp_path, config, pods)
    assert ended.codes == [0] * 4, ended.text
    first = resumed_from(ended)
    assert ended.losses == {step: loss for step, loss in wanted.items() if step > first}


def test_a_bit_that_flips_in_a_copy_that_was_not_sent_is_found(tmp_path: Path, config: dict[str, Any], pods: Pods
                                                               ) -> None:
    pods.ranks_each = 1
    config = {**config, "steps": 10_000, "parallel": {"data": 1, "shard": 2}}
    root, of_rank = tmp_path / "ck", pods.environment("1", "1000000")
    with Gang(tmp_path / "first", [config] * 2, of_rank=of_rank, checkpoint=root, every=5) as gang:
        gang.wait_for(lambda progress: progress.get("durableStep", 0) >= 5)
        gang.kill()
        told = gang.progress()["step"]
    pods.restart_copier(1)  # which sums what the ranks have not come to order any more
    slots = [Slot.open(str(path), write=True) for path in pods.folders[1].glob("own/*/1.[0-9]")]
    whole = [slot for slot in slots if slot.number() is not None]
    assert len(whole) >= 2
    until(lambda: all(slot.known_sum() is not None for slot in whole))
    for slot in whole:
        slot.data[len(slot.data) // 2] ^= 1
    ended = go_on(tmp_path, {**config, "steps": told + 5}, pods, checkpoint=root, every=5)
    assert ended.codes == [0, 0], ended.text
    assert "in memory are not used" in ended.out[0]
    assert "is damaged: its CRC-32" in ended.out[0]
    assert "from step-" in ended.out[0]


def test_storage_that_hangs_keeps_neither_training_nor_the_last_checkpoint_from_being_used(
        tmp_path: Path, config: dict[str, Any], pods: Pods) -> None:
    """A pipe that nobody reads is a disk that takes for ever: whoever opens it to write waits."""
    pods.ranks_each = 1
    config = {**config, "steps": 100_000, "parallel": {"data": 1, "shard": 2}}
    root = tmp_path / "ck"
    stuck = [root / f"step-{step}.g1" for step in range(10, 400)]  # the second save, however long the first one takes
    for path in stuck:
        path.mkdir(parents=True)
        os.mkfifo(path / "__1_0.distcp")
    with Gang(tmp_path / "first", [config] * 2, of_rank=pods.environment(), checkpoint=root, every=5) as gang:
        gang.wait_for(lambda progress: any((path / "__0_0.distcp").exists() for path in stuck))
        begun = gang.progress()["step"]
        last = gang.wait_for(lambda progress: progress["step"] >= begun + 30)
        gang.kill()
    assert last["durableStep"] == 5
    assert last["memoryStep"] > begun, "copies go on, too"
    marker = folders.read_marker(root / "step-5.g1")[0]
    assert marker is not None
    assert folders.verify(root / "step-5.g1", marker.files) is None
    for pod in (0, 1):
        pods.replace(pod)

    def of_rank(rank: int) -> dict[str, str]:
        return {**pods.environment()(rank), "TRAINYARD_FINISHED_STEP": str(last["step"] + rank)}

    with Gang(tmp_path / "second", [{**config, "steps": 8}] * 2, generation="2", of_rank=of_rank, checkpoint=root,
              every=5) as gang:
        ended = gang.wait()
        progress = gang.progress()
    assert ended.codes == [0, 0], ended.text
    assert "from step-5.g1, saved by 2 ranks" in ended.out[0]
    assert (progress["resumedStep"], progress["finishedStep"]) == (5, last["step"]), "what all had finished"


def test_another_layout_loads_the_same_copies(tmp_path: Path, config: dict[str, Any], pods: Pods) -> None:
    kill_at(tmp_path, config, pods, 6)
    other = {**config, "parallel": {"data": 2, "shard": 1, "tensor": 2}}
    ended = go_on(tmp_path, other, pods)
    assert ended.codes == [0] * 4, ended.text
    first = resumed_from(ended)
    straight = train(tmp_path / "straight", config, ranks=4)
    for step, loss in ended.losses.items():
        assert float(loss) == pytest.approx(float(straight.losses[step]), rel=1e-5), step
    assert sorted(ended.losses) == list(range(first + 1, STEPS + 1))
    assert len(list((pods.folders[0] / "own").iterdir())) == 1  # the old layout's copies are gone


def test_a_newer_checkpoint_on_disk_wins(tmp_path: Path, config: dict[str, Any], pods: Pods) -> None:
    kill_at(tmp_path, config, pods, 3)
    train(tmp_path / "alone", {**config, "steps": 20}, ranks=4, checkpoint=tmp_path / "ck")
    ended = go_on(tmp_path, config, pods, checkpoint=tmp_path / "ck")
    assert ended.codes == [0] * 4, ended.text
    assert "from step-20.g1" in ended.out[0]


def test_memory_wins_over_newer_checkpoints_that_are_damaged(tmp_path: Path, config: dict[str, Any], pods: Pods
                                                             ) -> None:
    kill_at(tmp_path, config, pods, 3)
    train(tmp_path / "alone", {**config, "steps": 20}, ranks=4, checkpoint=tmp_path / "ck")
    for shard in (tmp_path / "ck").glob("step-*/*.distcp"):
        shard.write_bytes(bytes(shard.stat().st_size))
    ended = go_on(tmp_path, config, pods, checkpoint=tmp_path / "ck")
    assert ended.codes == [0] * 4, ended.text
    assert resumed_from(ended) >= 3


def test_a_copier_that_dies_is_replaced_under_running_ranks(tmp_path: Path, config: dict[str, Any], pods: Pods) -> None:
    with Gang(tmp_path / "run", [{**config, "steps": 10_000}] * 4, of_rank=pods.environment()) as gang:
        gang.wait_for(lambda progress: progress.get("memoryStep", 0) >= 3)
        pods.restart_copier(1)
        before = gang.progress()["memoryStep"]
        gang.wait_for(lambda progress: progress.get("memoryStep", 0) > before + 3, seconds=60)


def test_training_goes_on_while_a_copier_hangs(tmp_path: Path, config: dict[str, Any], pods: Pods) -> None:
    with Gang(tmp_path / "run", [{**config, "steps": 100_000}] * 4, of_rank=pods.environment()) as gang:
        gang.wait_for(lambda progress: progress.get("memoryStep", 0) >= 3)
        pods.copiers[1].send_signal(signal.SIGSTOP)
        before = gang.progress()["step"]
        gang.wait_for(lambda progress: progress["step"] > before + 3, seconds=40)
        lost = gang.wait_for(lambda progress: progress.get("memoryStep") is None, seconds=60)  # given up
        assert lost["protection"] == "Unprotected"
        assert lost["memorySkipped"] > 0
        told = gang.progress()["step"]
        gang.wait_for(lambda progress: progress["step"] > told + 5)
        first = gang.kill()
    assert "other pods still wait for an earlier one; 1 copy was left out so far" in first.out[0]
    pods.copiers[1].send_signal(signal.SIGCONT)
    ended = go_on(tmp_path, {**config, "steps": told + 10}, pods)
    assert ended.codes == [0] * 4, ended.text
    assert resumed_from(ended) >= told  # own copies went on being taken


def test_copies_damaged_everywhere_do_not_end_a_job_of_another_layout(tmp_path: Path, config: dict[str, Any],
                                                                      pods: Pods) -> None:
    pods.one_node = True
    kill_at(tmp_path, config, pods, 4)
    assert json.loads((tmp_path / "first" / "progress-0.json").read_text())["protection"] == "Pod"
    for copier in pods.copiers:  # nothing arrives meanwhile
        copier.kill()
        copier.wait()
    for path in (path for folder in pods.folders for path in folder.glob("*/*/1.*") if path.parent.name != "acks"):
        slot = Slot.open(str(path), write=True)
        seal = slot.seal()
        if seal is not None:
            slot.note_sum(seal["number"], slot.compute_sum() ^ 1)
        slot.close()
    for pod in (0, 1):
        pods.restart_copier(pod)
    ended = go_on(tmp_path, {**config, "parallel": {"data": 2, "shard": 1, "tensor": 2}, "steps": 6}, pods)
    assert ended.codes == [0] * 4, ended.text
    assert "in memory are not used" in ended.out[0]
    assert "not that of its node" in ended.out[0], "both pods are on one"
    assert sorted(ended.losses) == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_is_finished_by_the_copiers_of_ranks_that_died(
        tmp_path: Path, config: dict[str, Any], pods: Pods, undisturbed: dict[str, dict[int, str]]) -> None:
    wanted = expected(tmp_path, config, undisturbed)
    root = tmp_path / "ck"
    with Gang(tmp_path / "first", [config] * 4, of_rank=pods.environment(), checkpoint=root, every=10) as gang:
        gang.wait_for(lambda progress: progress.get("memoryStep", 0) >= 2)
        pods.copiers[1].send_signal(signal.SIGSTOP)  # two of the four files cannot be written
        path = root / "step-10.g1"
        gang.wait_for(lambda progress: all((path / f"__{rank}_0.distcp").exists() for rank in (0, 1)))
        begun = gang.progress()["step"]
        gang.wait_for(lambda progress: progress["step"] > begun + 1)
        ended = gang.kill()
    assert "stood still" in ended.out[0]
    assert folders.read_marker(path)[0] is None
    pods.copiers[1].send_signal(signal.SIGCONT)
    until(lambda: folders.read_marker(path)[0] is not None)
    marker = folders.read_marker(path)[0]
    assert marker is not None
    assert folders.verify(path, marker.files) is None
    for pod in (0, 1):
        pods.replace(pod)
    ended = go_on(tmp_path, config, pods, checkpoint=root, every=5)
    assert ended.codes == [0] * 4, ended.text
    assert f"from {path.name}, saved by 4 ranks" in ended.out[0], "as any other"
    assert ended.losses == {step: loss for step, loss in wanted.items() if step > marker.step}


def test_a_checkpoint_that_outlives_its_ranks_is_the_next_ranks_checkpoint(
        tmp_path: Path, config: dict[str, Any], pods: Pods, undisturbed: dict[str, dict[int, str]]) -> None:
    wanted = expected(tmp_path, config, undisturbed)
    root = tmp_path / "ck"
    with Gang(tmp_path / "first", [config] * 4, of_rank=pods.environment(), checkpoint=root, every=5) as gang:
        gang.wait_for(lambda progress: progress.get("durableStep", 0) >= 5)
        gang.kill()
    ended = go_on(tmp_path, config, pods, checkpoint=root, every=5)
    assert ended.codes == [0] * 4, ended.text
    assert ended.losses == {step: loss for step, loss in wanted.items() if step > resumed_from(ended)}
    assert folders.scan(root)[0].step == STEPS


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(("asked", "trained"), [(True, False), (False, False), (True, True)])
def test_memory_that_does_not_suffice(tmp_path: Path, config: dict[str, Any], pods: Pods, small: Path,
                                      asked: bool, trained: bool) -> None:
    """What was asked for is refused at the start; a job that has trained goes on without it."""
    of_rank = pods.environment() if asked else pods.environment("auto", "auto")
    root = tmp_path / "ck"
    if trained:
        with Gang(tmp_path / "before", [{**config, "steps": 1}] * 4, of_rank=of_rank, checkpoint=root) as gang:
            assert gang.wait().codes == [0] * 4
    pods.copiers[0].kill()
    pods.copiers[0].wait()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(pods.folders[0])
    pods.folders[0] = small
    pods.copiers[0] = pods._start(small)
    checkpoint: dict[str, Any] = {"checkpoint": root} if trained else {}
    with Gang(tmp_path / "run", [{**config, "steps": 2}] * 4, of_rank=of_rank, **checkpoint) as gang:
        ended = gang.wait()
        progress = gang.progress()
    if asked and not trained:
        assert set(ended.codes) == {78}, ended.text
        assert "can be used; give the pods more memory" in gang.reason(0)
    else:
        assert ended.codes == [0] * 4, ended.text
        assert [warning["reason"] for warning in progress["warnings"]] == ["NoMemoryCopies"]


def test_a_gang_that_has_shrunk_goes_on_with_fewer_copies_than_were_asked_for(tmp_path: Path, config: dict[str, Any],
                                                                              pods: Pods) -> None:
    pods.ranks_each = 1

    def of_rank(rank: int) -> dict[str, str]:
        return {**pods.environment()(rank), "TRAINYARD_MEMORY_COPIES": "1"}

    two, one = ({**config, "parallel": {"data": 1, "shard": shard}} for shard in (2, 1))
    with Gang(tmp_path / "two", [two] * 2, of_rank=of_rank) as gang:
        gang.wait_for(lambda progress: progress.get("memoryStep", 0) >= 3)
        gang.kill()
    pods.replace(1)
    with Gang(tmp_path / "one", [one], generation="2", of_rank=of_rank) as gang:
        ended = gang.wait()
        progress = gang.progress()
    assert ended.codes == [0], ended.text
    assert resumed_from(ended) >= 3
    assert progress["protection"] == "Unprotected"
    assert [warning["reason"] for warning in progress["warnings"]] == ["FewerMemoryCopies"]
