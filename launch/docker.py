"""Container images: the commands that build and push the one a job names."""

from __future__ import annotations

import shlex

from launch.job import Job

_SCRIPT = """\
#!/usr/bin/env bash
# Builds {image} from this checkout and pushes it.
set -euo pipefail
docker build --file=launch/Dockerfile --build-arg=EXTRAS={extras} --tag={image} .
docker push {image}
"""


def script(job: Job) -> str:
    """The bash script. Raises ValueError if the job names no image."""
    image = shlex.quote(job.require_image("docker"))
    return _SCRIPT.format(image=image, extras="tpu,gcs" if job.chips.is_tpu else "gpu")
