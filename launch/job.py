"""The one small config of a launch, read from a TOML file."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.accelerators import Accelerator, parse_accelerator
from vla_jax import schema

REFUSED = 2
"""Exit code of training that refuses its config or data: no restart will help."""


@dataclasses.dataclass(frozen=True)
class GoogleConfig:
    """Where on Google Cloud.

    Attributes:
      project, zone: of the TPUs.
      bucket: Cloud Storage bucket, without gs://, that every host sees at `mount`; data, weights
        and runs are in it.
      mount: the directory.
      cluster: GKE cluster; for gke and xpk.
      namespace: of the cluster.
      service_account: that the hosts act as: on a TPU VM an e-mail address, empty for the project's
        default; on GKE a Kubernetes service account, empty for the namespace's default.
      spot: cheaper machines that may be taken away.
      reservation: name of reserved capacity; on TPU VMs any name asks for the project's.
    """

    project: str
    zone: str
    bucket: str
    mount: str = "/data"
    cluster: str = ""
    namespace: str = "default"
    service_account: str = ""
    spot: bool = False
    reservation: str = ""

    def __post_init__(self):
        if self.bucket.startswith("gs://") or "/" in self.bucket:
            raise ValueError(f"bucket: give the bucket's name alone, got {self.bucket!r}")
        if not re.fullmatch(r"(/[\w.-]+)+", self.mount):
            raise ValueError(f"mount: an absolute directory is needed, got {self.mount!r}")
        if self.spot and self.reservation:
            raise ValueError("spot and reservation: capacity is one or the other")


@dataclasses.dataclass(frozen=True)
class SlurmConfig:
    """Where on a Slurm cluster.

    Attributes:
      directory: checkout of this repository with its `.venv`, on a file system all nodes see.
      hours: time limit of one start; the job queues itself again until training is done.
      partition, account, qos, constraint: as sbatch takes them; empty ones are left out.
      cpus_per_gpu: processor cores for the process of each GPU.
    """

    directory: str
    hours: float = 24.0
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    cpus_per_gpu: int = 8

    def __post_init__(self):
        if not self.directory.startswith("/"):
            raise ValueError(f"directory: an absolute path is needed, got {self.directory!r}")
        if self.hours <= 0 or self.cpus_per_gpu < 1:
            raise ValueError("hours and cpus_per_gpu must be positive")


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run and the machines for it.

    Attributes:
      name: of the job and whatever is created for it.
      accelerator: as `parse_accelerator` reads it: one slice, or all GPUs.
      config: training config, path inside the repository; "file.py:argument" works.
      workdir: run directory, as the hosts see it: on Google Cloud below `google.mount`.
      slices: TPU slices that train together.
      overrides: of the training config, "train.batch_size=2048".
      image: container image; for tpu_vm, gke, xpk and docker.
      restarts: how many failures are tried again. Preemptions do not count.
      grace_s: seconds between the notice of preemption and the end, to save in.
      compilation_cache: directory of compiled programs, kept over restarts; empty for none.
      environment: further environment variables.
      google, slurm: what those targets need.
    """

    name: str
    accelerator: str
    config: str
    workdir: str
    slices: int = 1
    overrides: tuple[str, ...] = ()
    image: str = ""
    restarts: int = 10
    grace_s: int = 300
    compilation_cache: str = ""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    google: GoogleConfig | None = None
    slurm: SlurmConfig | None = None

    def __post_init__(self):
        # Names of GKE pods end with two numbers and five letters, and have 63 characters at most.
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", self.name):
            raise ValueError(
                f"name {self.name!r}: up to 40 lower-case letters, digits, hyphens, a letter first"
            )
        chips = parse_accelerator(self.accelerator)
        if self.slices < 1 or self.restarts < 0 or self.grace_s < 1:
            raise ValueError("slices and grace_s must be at least 1, restarts at least 0")
        if self.slices > 1 and (not chips.is_tpu or chips.hosts == 1):
            raise ValueError(
                f"slices = {self.slices}: only TPU slices of several hosts train together; name "
                "more chips in accelerator instead"
            )
        for override in self.overrides:
            if not re.match(r"[\w.]+=", override):
                raise ValueError(f"override {override!r}: expected key=value, without --config.")
        for name in ("workdir", "compilation_cache"):
            self._require_directory(name, getattr(self, name))

    def _require_directory(self, name: str, path: str) -> None:
        if path.startswith(("gs://", "s3://")):
            raise ValueError(
                f"{name} {path!r}: training writes to a directory; name the bucket in "
                f'google.bucket and write {name} = "/data/...", below google.mount'
            )
        if path and not path.startswith("/"):
            raise ValueError(f"{name} {path!r}: an absolute path is needed, the same on all hosts")
        if path and self.google and not path.startswith(f"{self.google.mount}/"):
            raise ValueError(
                f"{name} {path!r} is not below google.mount {self.google.mount!r}: it would be "
                "lost with the machines"
            )

    @property
    def chips(self) -> Accelerator:
        return parse_accelerator(self.accelerator)

    def command(self, python: str = "python") -> list[str]:
        """What every process runs."""
        return [
            python,
            "-m",
            "vla_jax.train",
            f"--config={self.config}",
            f"--workdir={self.workdir}",
            *(f"--config.{override}" for override in self.overrides),
        ]

    def on_google(self, target: str, *names: str) -> GoogleConfig:
        """The Google section.

        Raises:
          ValueError: not given, no TPU, or one of the fields `names` is empty.
        """
        if not self.chips.is_tpu:
            raise ValueError(
                f"{target} starts TPU jobs, and accelerator is {self.accelerator!r}; GPUs: slurm"
            )
        if self.google is None:
            raise ValueError(f"{target} needs the section [google]: project, zone, bucket")
        for name in names:
            if not getattr(self.google, name):
                raise ValueError(f"{target} needs google.{name}")
        self.require_image(target)
        return self.google

    def require_image(self, target: str) -> str:
        """The image. Raises ValueError if none is named."""
        if not self.image:
            raise ValueError(f"{target} needs image: where `docker push` puts it")
        return self.image


def load(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Reads a job file.

    Args:
      overrides: "key=value" of `Job`, sections by a dot: "google.spot=true".

    Raises:
      FileNotFoundError: no such file.
      ValueError: not TOML, an unknown key (names the closest), or a value that does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no job file {path}; launch/*.toml are examples")
    try:
        values: dict[str, Any] = schema.with_defaults(Job, tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"{path} is not TOML: {e}") from e
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r}: expected --key=value")
        schema.set_from_text(Job, values, key, text)
    return schema.from_dict(Job, values)


def quoted(words: Sequence[str], indent: str) -> str:
    """Words of a shell command, one a line."""
    return f" \\\n{indent}".join(shlex.quote(word) for word in words)
