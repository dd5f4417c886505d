"""Room for copies of state in the pods' memory (docs/memory.md), where the manifest asks for a number of them."""

from __future__ import annotations

from trainyard.api import TRAINER_CONTAINER
from trainyard.api.job import TrainingJobSpec
from trainyard.build.template import POD, trainer_of
from trainyard.build.types import InvalidTemplate, Object
from trainyard.placement.quantities import quantity

SHM_PATH = "/dev/shm"
HELD = 2  # slots for each rank of another pod
SHARE = 0.8  # of what is free that the trainer takes for copies at most
MIB = 2**20


def copies_bytes(spec: TrainingJobSpec, state: float) -> int:
    """Bytes of copies a pod holds if `checkpoint.memory.copies` is a number, else 0: then the trainer takes as many as
    what there is allows. `state`: bytes of the fullest rank. With fewer pods (minNodes) each holds more of it."""
    wish = spec.checkpoint.memory
    if spec.train is None or wish.every == 0 or not isinstance(wish.copies, int):
        return 0
    own = 2 if wish.every == wish.copy_every != "auto" else 3
    pinned = 1 if spec.checkpoint.volume is not None else 0  # for as long as a checkpoint is written
    fewer = spec.num_nodes / (spec.min_nodes or spec.num_nodes)
    return int(spec.procs * state * fewer * (own + pinned + HELD * wish.copies))


def make_room(pod: Object, spec: TrainingJobSpec, need: int) -> None:
    """Gives the trainer's container `need` bytes of copies more memory than the template does, where that says how
    much it has, and bounds /dev/shm. In place; does nothing for 0. Raises InvalidTemplate if the template brings a
    /dev/shm of its own that is too small."""
    if not need:
        return
    room = -(-int(need / SHARE) // MIB)  # MiB
    trainer = next(each for each in pod["containers"] if each["name"] == TRAINER_CONTAINER)
    mount: Object = next((each for each in trainer["volumeMounts"] if each["mountPath"].rstrip("/") == SHM_PATH), {})
    volume: Object = next((each for each in pod["volumes"] if each["name"] == mount.get("name")), {})
    if "emptyDir" in volume:
        directory = volume["emptyDir"] = dict(volume["emptyDir"] or {})
        limit = directory.get("sizeLimit")
        if limit is not None and quantity(limit) < room * MIB:
            path, _ = trainer_of(spec)
            raise InvalidTemplate(f"{POD}.volumes[{volume['name']}].emptyDir.sizeLimit",
                                  f"{limit} is too little for {path} to keep copies of its state there: "
                                  f"checkpoint.memory.copies {spec.checkpoint.memory.copies} takes {room}Mi a pod; "
                                  f"give it that much more, ask for fewer copies, or set checkpoint.memory.every to 0")
        directory.setdefault("sizeLimit", f"{room}Mi")
    resources = trainer["resources"] = {**trainer.get("resources", {})}
    for part in ("limits", "requests"):
        said = resources.get(part) or {}
        if "memory" in said:
            whole = -(-int(quantity(said["memory"])) // MIB) + room
            resources[part] = {**said, "memory": f"{whole}Mi"}
    if not resources:
        del trainer["resources"]
