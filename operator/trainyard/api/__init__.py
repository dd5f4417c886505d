"""The types that users and programs exchange through the Kubernetes API, and nothing else.

Needs pydantic alone: the trainer image installs this package too, so `spec.train` in a manifest *is* the trainer's
own config class. The CRDs in `crds/` and in the chart are generated from here (`make generate`).
"""

GROUP = "trainyard.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

JOB_LABEL = f"{GROUP}/job"  # on everything a job owns; value: the job's name
INDEX_LABEL = f"{GROUP}/index"  # on pods; value: the gang index
INCARNATION_LABEL = f"{GROUP}/incarnation"  # on pods; value: 1, 2, ...
JOB_UID_LABEL = f"{GROUP}/job-uid"  # on pods; value: the job's UID
WRITTEN_ANNOTATION = f"{GROUP}/written"  # on Worlds; value: hash of the spec as the operator wrote it
RENDERED_ANNOTATION = f"{GROUP}/rendered"  # on pods; value: hash of the rendering they were made from
SCHEMA_VERSION = 2  # of the CRDs, in their annotation trainyard.dev/schema-version; raised when they gain a field
CONTROLLER_NAME = f"{GROUP}/operator"  # the value of spec.managedBy that this operator answers to
ACCELERATORS_HEALTHY = "AcceleratorsHealthy"  # the condition that nodes with a NodeDevices get
AGENT_SELECTOR = "app.kubernetes.io/part-of=trainyard,app.kubernetes.io/component=agent"  # pods of the agent
TRAINER_CONTAINER = "trainer"  # the container of the template that runs the ranks

EXIT_CONFIG = 78  # EX_CONFIG: a mistake in the manifest or its data; the job fails at once, a restart could not help
EXIT_DRAINED = 75  # EX_TEMPFAIL: the rank saved its state because it was asked to, and wants to be started again
EXIT_DIVERGED = 79  # loss or gradients stay not finite; the job fails at once
EXIT_SUSPECT_DEVICE = 76  # the rank's device computes wrongly; the pod is replaced, on another node if there is one
