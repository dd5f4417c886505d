"""The protocol as a model: whatever is lost, late, doubled or dead, runs never overlap, and every job ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from supervisor import events as e
from trainyard.plan.conditions import finished
from unit.protocol_model import Leader, Model, Pod
from unit.protocol_plan import PlanLeader

PICK = st.integers(min_value=0, max_value=11)


class Protocol(RuleBasedStateMachine):
    """Hypothesis decides what happens next. At the end all faults are mended, and the job has to finish."""

    leader: type[Any] = Leader

    @initialize(size=st.sampled_from([2, 3, 1]), far=st.sampled_from([True, True, False]), spares=st.integers(0, 2),
                keeps=st.booleans())
    def begin(self, size: int, far: bool, spares: int = 0, keeps: bool = False) -> None:
        self.model = Model(size, spares, keeps)
        self.leaders = [self.leader(self.model), self.leader(self.model)]
        if far:  # begin where most of what can go wrong is: in the middle of training
            self._until(lambda: any(self.model.complete(run) for run in self.model.members), 200)

    def _pod(self, pick: int) -> Pod | None:
        alive = [pod for pod in self.model.pods if not pod.gone]
        return alive[pick % len(alive)] if alive else None

    # What goes on -----------------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 1))
    def leader_reads(self, which: int) -> None:
        self.leaders[which].refresh()

    @rule(which=st.integers(0, 1), fresh=st.booleans())
    def leader_acts(self, which: int, fresh: bool) -> None:
        if fresh:
            self.leaders[which].refresh()
        self.leaders[which].act()

    @rule(pick=PICK, lag=st.sampled_from([0, 0, 0, 1, 2, 5]))
    def world_arrives(self, pick: int, lag: int) -> None:
        if pod := self._pod(pick):
            self.model.see_world(pod, lag)

    @rule(pick=PICK)
    def report_is_written(self, pick: int) -> None:
        if pod := self._pod(pick):
            self.model.write(pod)

    @rule(pick=PICK, count=st.integers(1, 6))
    def pod_goes_on(self, pick: int, count: int) -> None:
        if pod := self._pod(pick):
            for _ in range(min(count, len(pod.inbox))):
                pod.take(pod.inbox.popleft())

    @rule(pick=PICK)
    def imports_are_done(self, pick: int) -> None:
        if (pod := self._pod(pick)) and not pod.core.imported:
            pod.take(e.Imported())

    @rule(pick=PICK)
    def ranks_are_gone(self, pick: int) -> None:
        if pod := self._pod(pick):
            pod.kill_takes_effect()

    @rule(pick=PICK, left=st.sampled_from([True, True, False]))
    def rank_leaves_its_groups(self, pick: int, left: bool) -> None:
        if pod := self._pod(pick):
            pod.rank_answers(left)

    @rule(pick=PICK)
    def member_connects(self, pick: int) -> None:
        if pod := self._pod(pick):
            self.model.connect(pod)

    @rule(pick=PICK, up=st.booleans(), count=st.integers(1, 4))
    def message_arrives(self, pick: int, up: bool, count: int) -> None:
        if self.model.connections:
            numbers = sorted(self.model.connections)
            connection = self.model.connections[numbers[pick % len(numbers)]]
            for _ in range(count):
                self.model.deliver(connection, up)

    @rule(pick=PICK)
    def heartbeat(self, pick: int) -> None:
        if pod := self._pod(pick):
            self.model.beat(pod)

    @rule(seconds=st.sampled_from([0.3, 1.0, 3.5, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self._pass(seconds)

    @rule(rounds=st.sampled_from([8, 3, 1]))
    def all_goes_well_for_a_while(self, rounds: int) -> None:
        for _ in range(rounds):
            self._round(end=False)

    @rule(pick=PICK, how=st.sampled_from(["root", "consequence", "pod", "sigterm"]), api=st.booleans(),
          rounds=st.integers(1, 20))
    def something_breaks_while_training(self, pick: int, how: str, api: bool, rounds: int) -> None:
        """Straight to where it hurts: train, break one thing, with the API or without, go on for a while."""
        self.model.api_up = True
        self._until(lambda: any(self.model.complete(run) for run in self.model.members), 100)
        if not api:
            self.api_goes_down()
        if pod := self._pod(pick):
            if how == "pod":
                pod.die()
            elif how == "sigterm":
                pod.take(e.Terminate())
            else:
                self.model.rank_exits(pod, 1, how == "root")
        for _ in range(rounds):
            self._round(end=False)

    @rule()
    def training_ends(self) -> None:
        for run in self.model.members:
            if self.model.complete(run):
                self.model.succeeded.add(run)

    @rule(pick=PICK)
    def rank_finishes(self, pick: int) -> None:
        if (pod := self._pod(pick)) and pod.training in self.model.succeeded:
            self.model.rank_exits(pod, 0)

    # What goes wrong --------------------------------------------------------------------------------------------------

    @rule(pick=PICK, root=st.booleans())
    def rank_fails(self, pick: int, root: bool) -> None:
        if pod := self._pod(pick):
            self.model.rank_exits(pod, 1, root)

    @rule(pick=PICK)
    def rank_saves_and_stops(self, pick: int) -> None:
        if (pod := self._pod(pick)) and pod.drain:
            self.model.rank_exits(pod, 75)

    @rule(pick=PICK)
    def pod_dies(self, pick: int) -> None:
        if pod := self._pod(pick):
            pod.die()

    @rule(pick=PICK)
    def sigterm(self, pick: int) -> None:
        if pod := self._pod(pick):
            pod.take(e.Terminate())

    @rule(pick=PICK)
    def connection_breaks(self, pick: int) -> None:
        if pod := self._pod(pick):
            self.model.disconnect(pod)

    @rule(pick=PICK)
    def pod_loses_the_api(self, pick: int) -> None:
        if pod := self._pod(pick):
            pod.cut = True
            pod.take(e.ApiLost("cut"))

    @rule()
    def api_goes_down(self) -> None:
        self.model.api_up = False
        for pod in self.model.pods:
            pod.take(e.ApiLost("down"))

    @rule()
    def api_comes_back(self) -> None:
        self.model.api_up = True

    @rule(pick=PICK)
    def node_is_lost(self, pick: int) -> None:
        """The API forgets a pod that lives on behind a cut network. Never all members of a gang at once: a whole gang
        that is cut off together can go on, and is told apart only by the folders its checkpoints go to."""
        pod = self._pod(pick)
        if pod is not None and self.model.api_up and pod.training is not None:
            others = self.model.members.get(pod.training, set()) - {pod}
            if any(not other.deleted and not other.gone for other in others):
                pod.cut = pod.deleted = True
                pod.take(e.ApiLost("node"))

    @rule()
    def world_is_deleted(self) -> None:
        if self.model.world is not None and self.model.api_up:
            self.model.put_world(None, self.model.version)

    # ------------------------------------------------------------------------------------------------------------------

    @invariant()
    def runs_never_overlap(self) -> None:
        if hasattr(self, "model"):
            self.model.check()

    def _pass(self, seconds: float) -> None:
        end = self.model.now + seconds
        while True:
            due = [(at, number) for number, pod in enumerate(self.model.pods)
                   if not pod.gone and (at := pod.core.deadline()) is not None and at <= end]
            if not due:
                break
            at, number = min(due)
            self.model.now = max(self.model.now, at)
            self.model.pods[number].take(e.Timer())
        self.model.now = end
        self.model.kubelets()

    def _round(self, end: bool) -> None:
        """Everything that waits happens, once."""
        model = self.model
        for leader in self.leaders:
            leader.refresh()
            leader.act()
        for pod in list(model.pods):
            if pod.gone:
                continue
            model.see_world(pod)
            if not pod.core.imported:
                pod.take(e.Imported())
            model.connect(pod)
            model.beat(pod)
            while pod.inbox and not pod.gone:
                pod.take(pod.inbox.popleft())
            pod.rank_answers(True)
            pod.kill_takes_effect()
        for connection in list(model.connections.values()):
            while (connection.up or connection.down) and connection.number in model.connections:
                model.deliver(connection, bool(connection.up))
            model.check()
        for pod in list(model.pods):
            if not pod.gone:
                model.write(pod)
                self._rank_goes_on(pod, end)
        self._pass(0.5)
        model.check()

    def _rank_goes_on(self, pod: Pod, end: bool) -> None:
        """A rank saves when told to, ends if training has ended, and fails when a peer that it needs is gone."""
        model, run = self.model, pod.training
        if run is None or pod.dying or pod.asked:
            return
        if end and model.complete(run):
            model.succeeded.add(run)
        members = model.members[run]
        if run in model.succeeded:
            model.rank_exits(pod, 0)
        elif pod.drain:
            model.rank_exits(pod, 75)
        elif any(other.training != run or other.dying for other in members) and not pod.patient():
            model.rank_exits(pod, 1, root=False)

    def _until(self, done: Any, rounds: int, end: bool = False) -> bool:
        for _ in range(rounds):
            if done():
                return True
            self._round(end)
        return bool(done())

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        model = self.model
        model.api_up = True
        for pod in model.pods:
            pod.cut = False
        over = self._until(lambda: self._told_so() and all(pod.gone for pod in model.pods), 2000, end=True)
        assert over, self._story()
        codes = {pod.name: pod.exit_code for pod in model.pods}
        assert set(codes.values()) <= {0, 137, 143}, codes

    def _told_so(self) -> bool:
        """Whether the job has ended: its World says Done, or was deleted after the job's own status had said so."""
        model = self.model
        if model.world is not None:
            return model.world.phase == "Done"
        return model.status is not None and finished(model.status[1])

    def _story(self) -> str:
        lines = [f"not over at {self.model.now}: {self.model.world!r}"]
        for pod in self.model.pods:
            lines.append(f"{pod.name}: exit {pod.exit_code}, {pod.core.state} {pod.core.run}, trains {pod.training}, "
                         f"deleted {pod.deleted}, linked {pod.connection is not None}, "
                         f"report {self.model.reports.get(pod.name)!r}")
        return "\n".join(lines)


class ProtocolOfTheOperator(Protocol):
    """The same with the operator's own plan() in place of the small leader."""

    leader = PlanLeader


@pytest.mark.parametrize("machine", [Protocol, ProtocolOfTheOperator])
@pytest.mark.parametrize("how", ["root", "consequence", "pod", "sigterm"])
@pytest.mark.parametrize("api", [True, False], ids=["api", "no api"])
@pytest.mark.parametrize("keeps", [True, False], ids=["regroup", "restart"])
def test_what_hurts_most(machine: type[Protocol], how: str, api: bool, keeps: bool) -> None:
    """The commonest faults, each once: what comes next is another run, or another attempt of the same one."""
    protocol = machine()
    protocol.begin(size=2, far=True, keeps=keeps)
    protocol.something_breaks_while_training(pick=0, how=how, api=api, rounds=20)
    newest = max(protocol.model.members)
    if api:
        assert newest > (1, 0)
    else:  # without the API only the same members can go on
        assert newest == ((1, 1) if how in ("root", "consequence") else (1, 0))
    if newest > (1, 0) and how != "sigterm":  # for then all save and stop
        assert protocol.model.regrouped == int(keeps)
    protocol.teardown()


@pytest.mark.parametrize("machine", [Protocol, ProtocolOfTheOperator])
@pytest.mark.parametrize("pick", [0, 1])
def test_a_spare_trains_in_the_place_of_a_dead_pod(machine: type[Protocol], pick: int) -> None:
    """The next run has the spare in it, and a lost pod that comes back stays out."""
    protocol = machine()
    protocol.begin(size=2, far=True, spares=1)
    protocol.all_goes_well_for_a_while(8)  # a spare is there
    assert protocol.model.reports["j-2-1"].kind == "Warm"
    lost = protocol.model.pods[pick]
    protocol.node_is_lost(pick)
    assert lost.deleted
    assert lost.training is not None
    protocol.all_goes_well_for_a_while(8)
    run = max(protocol.model.members)
    assert {pod.me.index for pod in protocol.model.members[run]} == {1 - pick, 2}
    lost.cut = False
    protocol.all_goes_well_for_a_while(3)
    assert lost.exit_code == 143
    assert max(protocol.model.members) == run
    protocol.teardown()


@pytest.mark.parametrize("machine", [Protocol, ProtocolOfTheOperator])
def test_a_world_deleted_before_anybody_told_of_its_generation(machine: type[Protocol]) -> None:
    """Members that wait in a generation which no status and no Report knows must follow the World made after it."""
    protocol = machine()
    protocol.begin(size=2, far=True)
    protocol.pod_dies(0)
    protocol.world_is_deleted()
    protocol.pod_dies(0)
    protocol.all_goes_well_for_a_while(1)
    protocol.world_is_deleted()
    protocol.teardown()


OFTEN = settings(max_examples=80, stateful_step_count=40, deadline=None,
                 suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
TestProtocol = Protocol.TestCase
TestProtocol.settings = OFTEN
TestProtocolOfTheOperator = ProtocolOfTheOperator.TestCase
TestProtocolOfTheOperator.settings = OFTEN
