"""Ray, joined or started.

It tells nobody that it runs: its reports of use are off, and so is the dashboard of what is started here.
"""

import logging
import os
from importlib.util import find_spec


def check_ray() -> None:
    """Raise a ValueError where Ray is not installed."""
    if find_spec("ray") is None:
        raise ValueError('this needs Ray: pip install "ray[data,serve]==2.60.*"')


def start_ray(address: str | None = None, cpus: int | None = None) -> None:
    """Join a cluster, or start Ray on this machine alone, once a process.

    Args:
        cpus: that a Ray which is started takes this machine to have; as many as it has when None.

    Raises:
        ValueError: Ray is not installed.
        OSError: there is no cluster at the address.
    """
    check_ray()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Of what starts here: no processes for tasks that nothing here has, and those that serve are as urgent as
    # the page that waits for them.
    os.environ |= {"RAY_prestart_worker_first_driver": "0", "RAY_worker_niceness": "0"}
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
