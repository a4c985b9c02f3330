"""Ray, joined or started.

It tells nobody that it runs: its reports of use are off, and so is the dashboard of what is started here.
"""

import logging
import os
import socket
from importlib.util import find_spec

# Ray reads these when it is imported, or starts something: no reports, no start by itself after it was left,
# no processes for tasks that nothing here has; and those that serve are as urgent as the page that waits.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_niceness": "0",
}

_SECONDS = 5.0  # that a cluster may take to open its port


def check_ray() -> None:
    """Raise a ValueError where Ray is not installed."""
    if find_spec("ray") is None:
        raise ValueError('this needs Ray: pip install "ray[data,serve]==2.60.*"')


def start_ray(address: str | None = None, cpus: int | None = None) -> None:
    """Join a cluster, or start Ray on this machine alone, once a process.

    Args:
        cpus: that a Ray which is started takes this machine to have; as many as it has when None.

    Raises:
        ValueError: Ray is not installed, or the address is of another kind.
        OSError: there is no cluster at the address.
    """
    check_ray()
    if address is not None:
        _knock(address)
    import ray

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    try:
        if address is None:
            ray.init(
                "local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error"
            )
        else:
            ray.init(address, log_to_driver=False, logging_level="error")
    except Exception as error:  # Ray has no class of its own for a start that took too long
        ray.shutdown()
        raise OSError(
            f"Ray cannot be {f'reached at {address}' if address else 'started'}: {error}"
        ) from error


def _knock(address: str) -> None:
    """Raise at once what Ray would raise after minutes."""
    if "://" in address:
        raise ValueError(
            f"{address} is of Ray's client, which streams nothing; expected HOST:PORT, or auto, on a machine "
            "of the cluster"
        )
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
        except OSError as error:
            raise OSError(f"Ray cannot be reached at {address}: {error}") from error
