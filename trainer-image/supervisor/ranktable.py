"""HCCL's rank table, from what every member says of its devices. Pure.

A member's *place* is one line of JSON, `{"pod", "server", "host", "ip", "superPod", "devices": [[id, ip, super-pod's
number], ...]}`; a *table* is the places of all members by index. The file that HCCL reads is made from it on every pod.
Between pods a table travels as what has changed since one that the receiver has, compressed: after a loss, one line.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import zlib
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

Table = Tuple[str, ...]  # places by index

VERSIONS = ("", "1.0", "1.2")  # of RANK_TABLE_VERSION
PART = 24 * 1024  # bytes of a table in one frame
ANNOTATION_FILE = "/etc/trainyard-podinfo/ascend-910-configuration"  # MindCluster's annotation, where there is one


class Unusable(ValueError):
    """A rank table that HCCL would choke on; `index` is the place of the member at fault."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


class Unknown(ValueError):
    """There can be no rank table, and HCCL may find its peers without one; why."""


def wants_table(environment: Mapping[str, str]) -> bool:
    """Whether the pod's devices are Ascend NPUs, and nobody has given it a rank table of his own."""
    return environment.get("TRAINYARD_HCCL") == "true" and not environment.get("RANK_TABLE_FILE")


def place_of(environment: Mapping[str, str], annotation: str = "") -> Optional[str]:
    """What this pod knows of its devices: from TRAINYARD_DEVICES, which Trainyard's device plugin sets, else from
    MindCluster's annotation. None if neither says anything; ValueError names what is wrong with it."""
    text, source = environment.get("TRAINYARD_DEVICES", ""), "TRAINYARD_DEVICES"
    if not text.strip():
        text, source = annotation, "annotation ascend.kubectl.kubernetes.io/ascend-910-configuration"
    if not text.strip():
        return None
    try:
        read = json.loads(text)
        place = _from_plugin(read) if source == "TRAINYARD_DEVICES" else _from_mindcluster(read)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{source} cannot be read ({error!r}): {text[:200]}") from None
    place["devices"].sort(key=lambda device: int(device[0]))  # as they are numbered inside the container
    host = environment.get("TRAINYARD_HOST_IP") or place["host"]
    place.update({
        "pod": environment.get("TRAINYARD_POD", ""), "ip": environment.get("TRAINYARD_POD_IP", ""), "host": host,
        "server": place["server"] or environment.get("TRAINYARD_NODE") or host,
    })
    return json.dumps(place, separators=(",", ":"), sort_keys=True)


def _from_plugin(read: List[Dict[str, Any]]) -> Dict[str, Any]:
    first = read[0]
    return {
        "server": "",  # the node's name will do: its number in a super-pod is another node's in the next
        "host": "", "superPod": str(first.get("superPod") or ""),
        "devices": [[str(int(one["physical"])), str(one.get("ip") or ""), str(one.get("superDevice") or "")]
                    for one in read],
    }


def _from_mindcluster(read: Dict[str, Any]) -> Dict[str, Any]:
    pod = str(read.get("super_pod_id", ""))
    return {
        "server": str(read.get("server_id") or ""), "host": str(read.get("host_ip") or ""),
        "superPod": "" if pod.startswith("-") else pod,  # -1 and -2 mean none
        "devices": [[str(int(one["device_id"])), str(one.get("device_ip") or ""), str(one.get("super_device_id") or "")]
                    for one in read["devices"]],
    }


# HCCL's own defaults are too short: under Trainyard lost peers are noticed by the supervisors, in seconds, and up to 30
# minutes of one rank's evaluation or saving are no hang.
TIMEOUTS = {"HCCL_CONNECT_TIMEOUT": "600", "HCCL_EXEC_TIMEOUT": "2040"}  # s


# The file -------------------------------------------------------------------------------------------------------------


def check(places: Sequence[Optional[str]], ranks: int) -> Table:
    """The table of these members with `ranks` processes each. Unknown, or Unusable with pod, device and value."""
    silent = [index for index, place in enumerate(places) if not place]
    if silent:
        raise Unknown(f"{len(silent)} of {len(places)} pods do not know their devices' addresses "
                      f"(the first is index {silent[0]})")
    table = tuple(place for place in places if place)
    read = [json.loads(place) for place in table]
    for place in read:
        if len(place["devices"]) != ranks:
            raise Unknown(f"{place['pod']} has {len(place['devices'])} devices and {ranks} ranks; HCCL's table has one "
                          "rank a device")
    if not any(ip for place in read for _, ip, _ in place["devices"]):
        raise Unknown("no device has an address in the network between nodes")
    addresses: Dict[str, str] = {}
    alone = len({place["server"] for place in read}) == 1
    for index, place in enumerate(read):
        for device, ip, _ in place["devices"]:
            if not (_is_address(ip) or (alone and not ip)):
                raise Unusable(index, f"pod {place['pod']}, node {place['server']}, device {device}: device_ip is "
                               f"{ip!r}, expected an IP address; HCCL cannot connect without it. Set the address of "
                               "the device (hccn_tool -i N -ip -s ...) and see that the device plugin reports it")
            here = f"pod {place['pod']}, node {place['server']}, device {device}"
            if ip and addresses.setdefault(ip, here) != here:
                raise Unusable(index, f"{here}: device_ip is {ip!r}, which is also that of {addresses[ip]}; "
                               "HCCL cannot tell them apart. Give each device an address of its own (hccn_tool "
                               "-i N -ip -s ...)")
    return table


def _is_address(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return False


def render(table: Table, version: str = "") -> Dict[str, Any]:
    """The contents of RANK_TABLE_FILE. `version` is 1.0 or 1.2; empty: 1.2 if every device's place in a super-pod is
    known. Pods that share a server are one entry of the list; servers come in the order of their first rank."""
    servers: Dict[str, Dict[str, Any]] = {}
    super_pods: Dict[str, List[str]] = {}
    places = [json.loads(place) for place in table]
    known = all(place["superPod"] and all(device[2] for device in place["devices"]) for place in places)
    version = version or ("1.2" if known else "1.0")
    rank = 0
    for place in places:
        server = servers.setdefault(place["server"], {
            "server_id": place["server"], "host_ip": place["host"], "container_ip": place["ip"], "device": [],
        })
        for device, ip, super_device in place["devices"]:
            entry = {"device_id": device, "rank_id": str(rank)}
            if ip:
                entry["device_ip"] = ip
            if version == "1.2":
                entry["super_device_id"] = super_device
            server["device"].append(entry)
            rank += 1
        members = super_pods.setdefault(place["superPod"], [])
        if place["server"] not in members[-1:]:
            members.append(place["server"])
    contents: Dict[str, Any] = {
        "status": "completed", "version": version, "server_count": str(len(servers)),
        "server_list": list(servers.values()),
    }
    if version == "1.2":
        contents["super_pod_list"] = [
            {"super_pod_id": name, "server_list": [{"server_id": server} for server in dict.fromkeys(members)]}
            for name, members in super_pods.items()
        ]
    return contents


# On the way -----------------------------------------------------------------------------------------------------------


def digest(table: Table) -> str:
    """What tables are told apart by."""
    return hashlib.sha256("\n".join(table).encode()).hexdigest()[:16]


class Part(NamedTuple):
    """A piece of a packed table, as the master sends it."""

    table: str  # digest of the table that the whole makes
    at: int
    size: int  # bytes of the whole
    data: str  # base64


def pack(old: Table, new: Table) -> bytes:
    """What makes `new` out of `old`, which may be empty."""
    changed = {index: place for index, place in enumerate(new) if index >= len(old) or old[index] != place}
    return zlib.compress(json.dumps({"size": len(new), "old": digest(old), "changed": changed}).encode(), 6)


def unpack(old: Table, packed: bytes) -> Table:
    """The reverse. ValueError if it was made for another `old`."""
    read = json.loads(zlib.decompress(packed))
    if read["old"] != digest(old):
        raise ValueError("made for another table")
    places = list(old[:read["size"]]) + [""] * (read["size"] - len(old))
    for index, place in read["changed"].items():
        places[int(index)] = place
    return tuple(places)


class Shelf:
    """The master's: the newest tables, and what was packed of them, made once for all members that ask."""

    KEPT = 3

    def __init__(self) -> None:
        self._tables: Dict[str, Table] = {}
        self._packed: Dict[Tuple[str, str], bytes] = {}

    def put(self, table: Table) -> str:
        """Keep a table; its digest."""
        name = digest(table)
        self._tables.pop(name, None)
        self._tables[name] = table
        for old in list(self._tables)[:-self.KEPT]:
            del self._tables[old]
        self._packed = {key: packed for key, packed in self._packed.items() if key[1] in self._tables}
        return name

    def part(self, wanted: str, have: str, at: int) -> Optional[Part]:
        """The piece of `wanted` that begins at byte `at`, for a member that has `have`; None if there is no such
        table."""
        table = self._tables.get(wanted)
        if table is None:
            return None
        old = self._tables.get(have, ())
        key = (digest(old), wanted)
        if key not in self._packed:
            self._packed[key] = pack(old, table)
        packed = self._packed[key]
        return Part(wanted, at, len(packed), base64.b64encode(packed[at:at + PART]).decode())


class Basket:
    """A member's: the table it has, and the pieces of the one that it is getting."""

    def __init__(self) -> None:
        self.table: Table = ()
        self.have = digest(())
        self._wanted = ""
        self._got = bytearray()

    def ask(self, wanted: str) -> Tuple[str, int]:
        """What to tell the master: the digest of what we have, and the byte to go on from."""
        if wanted != self._wanted:
            self._wanted, self._got = wanted, bytearray()
        return self.have, len(self._got)

    def take(self, part: Part) -> bool:
        """Put a piece in; True once the table is whole. A piece that does not fit is ignored, and asked for again."""
        if part.table != self._wanted or part.at != len(self._got):
            return False
        self._got += base64.b64decode(part.data)
        if len(self._got) < part.size:
            return False
        packed, self._got = bytes(self._got), bytearray()
        for old in (self.table, ()):
            try:
                table = unpack(old, packed)
            except (ValueError, KeyError, zlib.error):
                continue
            if digest(table) == part.table:
                self.table, self.have, self._wanted = table, part.table, ""
                return True
        self.table, self.have = (), digest(())  # then all of it, from the start
        return False
