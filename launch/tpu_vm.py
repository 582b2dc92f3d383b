"""TPU VMs: a script that asks for a queued resource, trains on it, and asks anew if it is taken."""

from __future__ import annotations

import shlex

from launch.accelerators import TPU_KINDS
from launch.flags import environment
from launch.job import REFUSED, Job, quoted
from vla_jax.training.preemption import EXIT_CODE

# What runs on every host. The bucket is mounted there and not in the container, so that it outlives
# the container; the limit lets a finished checkpoint's directory be renamed. A container that still
# trains, because only the connection was lost, is joined.
_ON_HOST = """\
set -euo pipefail
if ! command -v gcsfuse >/dev/null; then
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg \\
    | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc]" \\
    "https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" \\
    | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -q update
  sudo apt-get -q install -y gcsfuse
fi
if ! mountpoint -q {mount}; then
  sudo mkdir -p {mount}
  sudo gcsfuse --implicit-dirs --rename-dir-limit=200000 -o allow_other {bucket} {mount}
fi
if [ -z "$(sudo docker ps --quiet --filter 'name=^{name}$')" ]; then
  sudo docker rm {name} >/dev/null 2>&1 || true
  gcloud auth print-access-token \\
    | sudo docker login --username=oauth2accesstoken --password-stdin {registry}
  sudo docker run --detach --privileged --net=host --stop-timeout={grace} \\
    {run}
fi
sudo docker logs --follow --tail=100 {name}
exit "$(sudo docker wait {name})"
"""

_SCRIPT = """\
#!/usr/bin/env bash
# {name}: {slices} of {accelerator} ({accelerator_type}, {hosts} hosts each).
# It runs until training is done: start it in tmux, on a machine that stays up. Started again, it
# goes on with what is there.
set -euo pipefail

where=({where})

state() {{
  gcloud compute tpus queued-resources list "${{where[@]}}" \\
    --filter='name~/{name}$' --format='value(state.state)'
}}

ask() {{
  gcloud compute tpus queued-resources create {name} "${{where[@]}}" \\
    {create}
}}

give_back() {{
  gcloud compute tpus queued-resources delete {name} "${{where[@]}}" --force --quiet
}}

train() {{
  gcloud compute tpus queued-resources ssh {name} "${{where[@]}}" \\
    --node=all --worker=all --batch-size=all --command="$(on_host)"
}}

on_host() {{
  cat <<'ON_HOST'
{on_host}ON_HOST
}}

failures=0
while true; do
  # Requests to Google Cloud that fail are made again; so is a request for capacity.
  if ! now=$(state); then
    sleep 60
    continue
  fi
  case "$now" in
    ACTIVE) ;;
    "")
      ask || sleep 60
      continue
      ;;
    FAILED | SUSPENDED)
      echo "{name} is $now: asking again" >&2
      give_back || sleep 60
      continue
      ;;
    *)
      echo "{name} is $now" >&2
      sleep 60
      continue
      ;;
  esac

  code=0
  train || code=$?
  case "$code" in
    0)
      echo "{name} is done" >&2
      give_back
      exit 0
      ;;
    {refused})
      echo "{name}: training refuses its config or data; see the error above" >&2
      break
      ;;
    {resumable} | 255)
      echo "{name}: preempted, or the connection was lost ($code)" >&2
      ;;
    *)
      # A preempted host may look like a failure before its state says so.
      sleep 60
      if [ "$(state || true)" = ACTIVE ]; then
        failures=$((failures + 1))
        echo "{name}: failed with exit code $code, time $failures" >&2
        if [ "$failures" -gt {restarts} ]; then
          break
        fi
      fi
      ;;
  esac
  sleep 10
done
echo "The TPUs are kept, and cost. To give them back:" >&2
echo "  gcloud compute tpus queued-resources delete {name} ${{where[*]}} --force" >&2
exit "$code"
"""


def script(job: Job) -> str:
    """The bash script.

    Raises:
      ValueError: the job is not for TPUs, misses something, or Cloud TPU does not have the chip.
    """
    google = job.on_google("tpu_vm", "project", "zone")
    chips = job.chips
    kind = TPU_KINDS[chips.kind]
    if not kind.runtime:
        raise ValueError(f"{chips.kind} has no TPU VMs, it is for GKE alone: use gke or xpk")
    if chips.kind == "v4":
        shape = ["--type=v4", f"--topology={chips.topology}"]
    else:
        shape = [f"--accelerator-type={chips.accelerator_type}"]
        if chips.topology != chips.usual_topology:
            raise ValueError(
                f"accelerator {job.accelerator!r}: {chips.accelerator_type} on a TPU VM is "
                f"{chips.usual_topology}; take that, or gke or xpk, where a topology is chosen"
            )
    create = [
        *shape,
        f"--runtime-version={kind.runtime}",
        f"--node-id={job.name}" if job.slices == 1 else f"--node-count={job.slices}",
    ]
    create += ["--spot"] * google.spot + ["--reserved"] * bool(google.reservation)
    if google.service_account:
        create.append(f"--service-account={google.service_account}")
    # JAX finds the other hosts by the machines' metadata, but does not look there unless told to.
    variables = environment(job) | {"VLA_JAX_JOIN": "1"}
    run = [f"--name={job.name}", f"--volume={google.mount}:{google.mount}"]
    run += [f"--env={name}={value}" for name, value in variables.items()]
    on_host = _ON_HOST.format(
        name=job.name,
        bucket=google.bucket,
        mount=google.mount,
        registry="https://" + job.image.split("/")[0],
        grace=job.grace_s,
        run=quoted([*run, job.image, *job.command()], "    "),
    )
    return _SCRIPT.format(
        name=job.name,
        slices=f"{job.slices} slices" if job.slices > 1 else "a slice",
        accelerator=job.accelerator,
        accelerator_type=chips.accelerator_type,
        hosts=chips.hosts,
        where=shlex.join([f"--project={google.project}", f"--zone={google.zone}"]),
        create=quoted(create, "    "),
        on_host=on_host,
        refused=REFUSED,
        resumable=EXIT_CODE,
        restarts=job.restarts,
    )
