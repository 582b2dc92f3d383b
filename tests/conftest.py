"""What every test runs under: JAX on eight fake CPU devices, no network, fixed seeds."""

from __future__ import annotations

import ipaddress
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest

# Before anything imports JAX or TensorFlow; subprocesses inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # One thread per operation: two test processes share two cores.
        "--xla_cpu_multi_thread_eigen=false",
        # And compilation in a quarter of the time.
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
).strip()
# Most programs are small and run a few times: so they compile in half the time.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # or TensorFlow announces them at every import
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
# What one test has compiled, the next does not compile again; nothing stays after the run.
OWNS_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if OWNS_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vla_jax_compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


def _require_loopback(address) -> None:
    if isinstance(address, tuple):
        host = address[0]
        try:
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = host in ("", "localhost")
        if not local:
            raise RuntimeError(f"a test tried to reach {host!r}: tests run without a network")


def pytest_unconfigure() -> None:
    """Workers find the directory in their environment; who made it removes it."""
    if OWNS_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_configure() -> None:
    """Replaces the socket calls that leave this machine."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    getaddrinfo = socket.getaddrinfo

    def guarded_connect(self, address):
        _require_loopback(address)
        return connect(self, address)

    def guarded_connect_ex(self, address):
        _require_loopback(address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host, *args, **kwargs):
        # Our own name may be bound to, which is not a way out.
        if host is not None and host != socket.gethostname():
            _require_loopback((host,))
        return getaddrinfo(host, *args, **kwargs)

    socket.socket.connect = guarded_connect  # type: ignore[method-assign]
    socket.socket.connect_ex = guarded_connect_ex  # type: ignore[method-assign]
    socket.getaddrinfo = guarded_getaddrinfo


@pytest.fixture
def optimized() -> Iterator[None]:
    """For tests that run their programs for long."""
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """For code that draws from the global generators; our own code does not."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
