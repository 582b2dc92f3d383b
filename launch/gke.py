"""GKE: a JobSet manifest, and the same job as a command of xpk."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from launch.accelerators import TPU_KINDS
from launch.flags import environment
from launch.job import Job, quoted
from vla_jax.training.preemption import EXIT_CODE

_CONTAINER = "train"

# GKE puts a container beside ours that serves the bucket. 0: it may take what the node has; its
# defaults are too little to read training data through.
_GCSFUSE = {
    "gke-gcsfuse/volumes": "true",
    "gke-gcsfuse/cpu-limit": "0",
    "gke-gcsfuse/memory-limit": "0",
    "gke-gcsfuse/ephemeral-storage-limit": "0",
}


def manifest(job: Job) -> str:
    """The JobSet, as YAML.

    Raises:
      ValueError: the job is not for TPUs, or misses something.
    """
    google = job.on_google("gke", "cluster")
    kind = TPU_KINDS[job.chips.kind]
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": google.namespace,
            # A slice is a node pool: each Job has one to itself.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.restarts,
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": job.slices, "template": {"spec": _slice(job)}}
            ],
        },
    }
    pool = [
        "gcloud container node-pools create",
        f"{job.name}-0",
        f"--project={google.project} --cluster={google.cluster} --node-locations={google.zone}",
        f"--machine-type={kind.gke_machine}-{job.chips.chips_per_host}t",
        f"--num-nodes={job.chips.hosts}",
        # A slice of one host has no topology to choose.
        *([f"--tpu-topology={job.chips.topology}"] if job.chips.hosts > 1 else []),
        *(["--spot"] if google.spot else []),
        *(
            [f"--reservation-affinity=specific --reservation={google.reservation}"]
            if google.reservation
            else []
        ),
    ]
    note = (
        f"# {job.name}: {job.slices} x {job.accelerator}. It needs a node pool for each slice:\n"
        f"#   {' '.join(pool)}\n"
    )
    return note + yaml.safe_dump(jobset, sort_keys=False, width=1000)


def _slice(job: Job) -> dict[str, Any]:
    """Spec of the batch/v1 Job of one slice."""
    chips = job.chips
    return {
        "completions": chips.hosts,
        "parallelism": chips.hosts,
        # One lost pod is the end of this attempt: the others cannot go on without it.
        "backoffLimit": 0,
        # Both are preemption, which the JobSet's rule does not count. A Job that fails for another
        # reason has run out of its backoffLimit, which counts.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "In",
                        "values": [EXIT_CODE],
                    },
                },
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
        "template": {
            "metadata": {"annotations": _GCSFUSE},
            "spec": _pod(job),
        },
    }


def _pod(job: Job) -> dict[str, Any]:
    google = job.on_google("gke", "cluster")
    chips = job.chips
    selector = {
        "cloud.google.com/gke-tpu-accelerator": TPU_KINDS[chips.kind].gke_accelerator,
        "cloud.google.com/gke-tpu-topology": chips.topology,
    }
    if google.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    if google.reservation:
        selector["cloud.google.com/reservation-name"] = google.reservation
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace_s,
        # Slices talk to each other over the hosts' own network, which is faster.
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector,
        "tolerations": [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [
            {
                "name": _CONTAINER,
                "image": job.image,
                "command": job.command(),
                # Opening a TPU locks memory, which older versions of GKE allow only so.
                "securityContext": {"privileged": True},
                "env": [{"name": k, "value": v} for k, v in environment(job).items()],
                "resources": {
                    "requests": {"google.com/tpu": chips.chips_per_host},
                    "limits": {"google.com/tpu": chips.chips_per_host},
                },
                "volumeMounts": [{"name": "bucket", "mountPath": google.mount}],
            }
        ],
        "volumes": [
            {
                "name": "bucket",
                "csi": {
                    "driver": "gcsfuse.csi.storage.gke.io",
                    "volumeAttributes": {
                        "bucketName": google.bucket,
                        # A finished checkpoint gets its name by renaming its directory.
                        "mountOptions": "implicit-dirs,rename-dir-limit=200000",
                        # The pod's own account, not the node's, in spite of hostNetwork.
                        "hostNetworkPodKSA": "true",
                    },
                },
            }
        ],
    }
    if google.spot:
        pod["tolerations"].append(
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        )
    if google.service_account:
        pod["serviceAccountName"] = google.service_account
    return pod


_XPK = """\
#!/usr/bin/env bash
# {name}: {slices} x {accelerator}. The bucket is attached to the cluster once:
#   {attach}
set -euo pipefail
xpk workload create \\
  {create}
"""


def xpk(job: Job) -> str:
    """The job as a script that calls xpk.

    Raises:
      ValueError: the job is not for TPUs, or misses something.
    """
    google = job.on_google("xpk", "project", "zone", "cluster")
    chips = job.chips
    place = [
        f"--cluster={google.cluster}",
        f"--project={google.project}",
        f"--zone={google.zone}",
    ]
    attach = [
        *("xpk", "storage", "attach", google.bucket, "--type=gcsfuse"),
        *place,
        f"--bucket={google.bucket}",
        f"--mount-point={google.mount}",
        *("--readonly=false", "--auto-mount=true"),
    ]
    create = [
        f"--workload={job.name}",
        *place,
        f"--tpu-type={TPU_KINDS[chips.kind].type_prefix}-{chips.topology}",
        f"--num-slices={job.slices}",
        f"--docker-image={job.image}",
        f"--max-restarts={job.restarts}",
        # xpk restarts after signals and code 42 by itself. Other codes end the job; a crash of
        # Python is 1.
        f"--restart-on-exit-codes=1,{EXIT_CODE}",
        f"--termination-grace-period-seconds={job.grace_s}",
        *(f"--env={name}={value}" for name, value in environment(job).items()),
        f"--command={shlex.join(job.command())}",
    ]
    return _XPK.format(
        name=job.name,
        slices=job.slices,
        accelerator=job.accelerator,
        attach=shlex.join(attach),
        create=quoted(create, "  "),
    )
