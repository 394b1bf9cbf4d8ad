"""Where a job runs: a Ray cluster, joined or started on this machine for the job, and whether it has room."""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray

from tuco_vllm.errors import InputError
from tuco_vllm.interruption import adopt_orphans, also_at_a_signal

_DEAD_SECONDS = 20
"""So long do processes of a cluster started here look for its head, which dies with this process only. Ray's
minute is for clusters whose head comes back; engines would keep their GPUs for as long."""

_OBJECT_STORE_BYTES = 256 << 20
"""Of a cluster started here. What lies there is the job's description, and counts on their way."""

_SOCKET_NAME = 107 - len("/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store")
"""So long may the name of the folder be that Ray makes its sockets in: theirs may have 107 characters."""

_REMOVE_SECONDS = 5.0


@dataclass(frozen=True)
class Cluster:
    """Where and on how many engines a corpus is scored."""

    engines: int = 1
    tensor_parallel_size: int = 1
    address: str | None = None
    """A Ray cluster's address; None starts Ray on this machine, for this job only."""
    debug: bool = False
    """Whether Ray and the workers may write to stderr."""
    pipeline_parallel_size: int = 1

    @property
    def ranks(self) -> int:
        """GPUs, or ranks on a CPU, of an engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Be connected to the cluster: a connection that there is already stays, one made here ends.

        Raises InputError where the cluster cannot be reached or started.
        """
        if ray.is_initialized():
            yield
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's workers give way to everything else by default; here they are what the machine is for.
        os.environ.setdefault("RAY_worker_niceness", "0")
        if self.address is None:
            os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(_DEAD_SECONDS))
        if not self.debug:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        adopt_orphans()
        with _temporary_folder() as temporary:
            try:
                self._connect(temporary)
                yield
            finally:
                ray.shutdown(wait_for_processes=True)

    def _connect(self, temporary: str) -> None:
        level = logging.INFO if self.debug else logging.CRITICAL
        try:
            if self.address is not None:
                _check_reachable(self.address)
            with _sigterm_is_ours(), nullcontext() if self.debug else without_stderr():
                if self.address is not None:
                    ray.init(self.address, log_to_driver=self.debug, logging_level=level)
                    return
                ray.init(
                    "local",
                    # Slots, not cores: an engine's threads are its own matter (``engine.arguments``).
                    num_cpus=self.engines,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=self.debug,
                    logging_level=level,
                    _temp_dir=temporary,
                )
        except Exception as error:
            late = "timed out" in str(error)  # Ray has no class of its own for it
            if not late and not isinstance(error, OSError | RuntimeError | ValueError):
                raise
            place = (
                f"reach Ray at --ray-address {self.address}" if self.address else "start Ray on this machine"
            )
            mend = " (try again when the machine has less to do)" if late else ""
            raise InputError(f"cannot {place}: {error}{mend}") from error

    def engine_resources(self) -> dict[str, float]:
        """What Ray reserves for one engine. Raises InputError where there is no room for all of them."""
        engines, ranks = self.engines, self.ranks
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = [int(node.get("GPU", 0)) for node in nodes]
        if any(gpus):
            if sum(count // ranks for count in gpus) < engines:
                raise InputError(
                    f"{engines} engines of {ranks} GPUs each do not fit on nodes of {gpus} GPUs: "
                    "ask for fewer --engines or a smaller --tensor-parallel-size (an engine is on one node)"
                )
            return {"num_gpus": ranks, "num_cpus": 1}
        slots = sum(int(node.get("CPU", 0)) for node in nodes)
        if slots < engines:
            raise InputError(
                f"{engines} engines do not fit on {slots} CPUs, one for each: ask for fewer --engines"
            )
        return {"num_cpus": 1}

    def engines_on_a_node(self) -> int:
        """How many engines share a machine, at most, if Ray spreads them."""
        return -(-self.engines // sum(node["Alive"] for node in ray.nodes()))


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """A folder for Ray's sockets, logs and what it spills, under RAY_TMPDIR, else TMPDIR; gone afterwards.

    Where that name is too long for a socket, Ray is told a short one that links to it.
    """
    root = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    name = f"tuco-ray-{os.getpid()}-{os.urandom(2).hex()}"
    folder, link = os.path.join(root, name), os.path.join("/tmp", name)
    # Registered before they are made: a signal may come in between.
    with also_at_a_signal(lambda: _remove(folder)), also_at_a_signal(lambda: _unlink(link)):
        try:
            os.mkdir(folder, mode=0o700)
            if len(folder) > _SOCKET_NAME:
                os.symlink(folder, link)
        except OSError as error:
            raise InputError(f"cannot start Ray on this machine: {error}; see TMPDIR") from error
        yield link if os.path.islink(link) else folder


@contextmanager
def _sigterm_is_ours() -> Iterator[None]:
    """Behind this, SIGTERM has the handler that it had before, which also gets one that came within.

    While Ray starts it puts handlers of its own. They end its start by an exception, which can get lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler: Any = signal.getsignal(signal.SIGTERM)
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(
        write, warn_on_full_buffer=False
    )  # told of every signal, whoever handles it
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, handler)
        os.close(write)
        with os.fdopen(read, "rb", buffering=0) as came:
            terminated = signal.SIGTERM in (came.read() or b"")
        if terminated:
            signal.raise_signal(signal.SIGTERM)


def _unlink(link: str) -> None:
    if os.path.islink(link):
        os.unlink(link)


def _remove(folder: str) -> None:
    """Remove a folder in which processes that are about to end may still write."""
    until = time.monotonic() + _REMOVE_SECONDS
    while os.path.isdir(folder) and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


@contextmanager
def without_stderr() -> Iterator[None]:
    """Nothing reaches stderr, from C++ neither: Ray's core announces there that it was told to be quiet."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _check_reachable(address: str) -> None:
    """Raise OSError where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()
