"""Another vendor's device plugin on a node: devices that a file tells of, under any resource."""

from __future__ import annotations

import json
import time

from kubernetes.client.exceptions import ApiException

from harness.installation import SYSTEM, Yard
from harness.job import Timeout

_NAME = "foreign-plugin"
_PROGRAM = """
import json, pathlib, sys, time
from concurrent.futures import ThreadPoolExecutor
import grpc
from trainyard.agent.wire import deviceplugin_pb2 as pb, deviceplugin_pb2_grpc as rpc

FOLDER, FILE = pathlib.Path("/var/lib/kubelet/device-plugins"), pathlib.Path("/foreign/devices.json")


class Plugin(rpc.DevicePluginServicer):
    def GetDevicePluginOptions(self, request, context):
        return pb.DevicePluginOptions()

    def ListAndWatch(self, request, context):
        said = None
        while context.is_active():
            devices = json.loads(FILE.read_text())
            if devices != said:
                said = devices
                yield pb.ListAndWatchResponse(devices=[pb.Device(ID=i, health=h) for i, h in devices.items()])
            time.sleep(0.05)

    def Allocate(self, request, context):
        return pb.AllocateResponse(
            container_responses=[pb.ContainerAllocateResponse() for _ in request.container_requests])


(FOLDER / "foreign.sock").unlink(missing_ok=True)
server = grpc.server(ThreadPoolExecutor(8))
rpc.add_DevicePluginServicer_to_server(Plugin(), server)
server.add_insecure_port(f"unix:{FOLDER}/foreign.sock")
server.start()
with grpc.insecure_channel(f"unix:{FOLDER}/kubelet.sock") as channel:
    rpc.RegistrationStub(channel).Register(
        pb.RegisterRequest(version="v1beta1", endpoint="foreign.sock", resource_name=sys.argv[1]), timeout=10)
server.wait_for_termination()
"""


class Foreign:
    """The plugin on one node, in a pod that nobody makes again."""

    def __init__(self, yard: Yard, node: str, resource: str) -> None:
        self.yard, self.node, self.resource = yard, node, resource
        self._folder = yard.cluster.shared / "foreign"
        self._folder.mkdir(exist_ok=True)

    def says(self, **health: str) -> None:
        """Its devices from now on; _ stands for -."""
        fresh = self._folder / "fresh"
        fresh.write_text(json.dumps({name.replace("_", "-"): state for name, state in health.items()}))
        fresh.replace(self._folder / "devices.json")

    def start(self) -> None:
        """Make the pod."""
        container = {
            "name": "plugin", "image": self.yard.operator_image, "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", _PROGRAM, self.resource], "securityContext": {"runAsUser": 0},
            "volumeMounts": [{"name": "plugins", "mountPath": "/var/lib/kubelet/device-plugins"},
                             {"name": "shared", "mountPath": "/foreign"}]}  # fmt: skip
        self.yard.api.core.create_namespaced_pod(SYSTEM, {"metadata": {"name": _NAME}, "spec": {
            "nodeName": self.node, "containers": [container], "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False, "volumes": [
                {"name": "plugins", "hostPath": {"path": "/var/lib/kubelet/device-plugins"}},
                {"name": "shared", "hostPath": {"path": f"{self.yard.cluster.shared_path}/foreign"}}]}})  # fmt: skip

    def stop(self, seconds: float = 30) -> None:
        """Kill it, and wait until the pod is gone; nothing happens if there is none."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.yard.api.core.delete_namespaced_pod(_NAME, SYSTEM, grace_period_seconds=0)
            except ApiException as error:
                if error.status == 404:
                    return
                raise
            if time.monotonic() > deadline:
                raise Timeout(f"{_NAME} is still there after {seconds:.0f} s")
            time.sleep(0.2)
