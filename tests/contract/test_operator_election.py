"""Two operators: one leads, and the other takes over when it is time."""

from __future__ import annotations

import time
from pathlib import Path

from chart.helm import NAMESPACE
from contract.apiserver import run_apiserver
from contract.operator_process import REPOSITORY, run_operator, until
from contract.playground import Playground
from trainyard.api import SCHEMA_VERSION


def test_a_follower_takes_over_from_a_killed_leader(kubeconfig: Path, here: Playground, tmp_path: Path) -> None:
    here.node("a")
    with run_operator(kubeconfig, tmp_path, "one", namespace=NAMESPACE) as one:
        until("one leads", 40, lambda: one.leads)
        with run_operator(kubeconfig, tmp_path, "two", namespace=NAMESPACE) as two:
            until("two is ready to follow", 20, lambda: two.ready()[0] == 200)
            assert not two.leads
            here.submit("before")
            here.until_pods(2)
            one.kill()
            killed = time.monotonic()
            here.submit("orphan")
            here.until_pods(4, seconds=40)
            print(f"new leader after a kill: gang created {time.monotonic() - killed:.1f} s later")
            assert two.leads


def test_a_follower_takes_over_at_once_from_one_that_is_asked_to_end(
        kubeconfig: Path, here: Playground, tmp_path: Path) -> None:
    here.node("a")
    with run_operator(kubeconfig, tmp_path, "one", namespace=NAMESPACE) as one:
        until("one leads", 40, lambda: one.leads)
        with run_operator(kubeconfig, tmp_path, "two", namespace=NAMESPACE) as two:
            until("two is ready to follow", 20, lambda: two.ready()[0] == 200)
            begun = time.monotonic()
            assert one.stop() == 0
            until("two leads", 4, lambda: two.leads)
            print(f"new leader after SIGTERM: {time.monotonic() - begun:.1f} s")
            assert two.stop() == 0


def test_a_leader_that_was_asleep_writes_nothing(kubeconfig: Path, here: Playground, tmp_path: Path) -> None:
    here.node("a")
    with run_operator(kubeconfig, tmp_path, "one", namespace=NAMESPACE) as one:
        until("one leads", 40, lambda: one.leads)
        with run_operator(kubeconfig, tmp_path, "two", namespace=NAMESPACE) as two:
            until("two is ready to follow", 20, lambda: two.ready()[0] == 200)
            one.freeze()
            until("two leads", 40, lambda: two.leads)
            wrote = len([line for line in one.lines() if "created pod" in line["msg"]])
            here.submit("job")
            one.thaw()
            here.until_pods(2)
            until("one has noticed", 10, lambda: not one.leads)
            assert len([line for line in one.lines() if "created pod" in line["msg"]]) == wrote
            assert two.leads


def test_it_does_not_lead_with_a_crd_that_is_too_old(tmp_path: Path) -> None:
    with run_apiserver() as server:
        server.install_crds(REPOSITORY / "crds")
        server.kubectl("annotate", "--overwrite", "crd", "worlds.trainyard.dev", "trainyard.dev/schema-version=0")
        with run_operator(server.kubeconfig, tmp_path, "new", namespace="default") as operator:
            until("it says why", 10, lambda: "schema-version" in operator.ready()[1])
            status, text = operator.ready()
            assert status == 503
            assert "worlds.trainyard.dev" in text
            assert not operator.leads
            assert operator.health()[0] == 200
            right = f"trainyard.dev/schema-version={SCHEMA_VERSION}"
            server.kubectl("annotate", "--overwrite", "crd", "worlds.trainyard.dev", right)
            until("it leads", 20, lambda: operator.leads)
            assert operator.ready() == (200, "ok")
