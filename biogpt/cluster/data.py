"""Jobs on Ray Data: any number of machines read and work, this process writes."""

import json
import logging
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from biogpt.cluster.jobs import Done, Part, parts_of, work_on
from biogpt.cluster.starting import start_ray
from biogpt.cluster.work import Task
from biogpt.text.documents import Row


@dataclass(frozen=True)
class RayWorkers:
    """Workers of a Ray cluster, each with a model of its own.

    Files must be found under their names on every machine: a shared folder.

    Args:
        count: how many; one for each CPU of the cluster when None.
        address: of the cluster; None starts one on this machine.
        gpus: the share of a GPU that each takes.
    """

    count: int | None = None
    address: str | None = None
    gpus: float = 0.0

    def __call__(self, task: Task, paths: Sequence[str]) -> Generator[Done, None, None]:
        """As ``Workers``.

        Raises:
            ValueError: Ray is not installed, or a worker cannot load the model.
            OSError: there is no cluster at the address, it has no CPU to spare, or it is lost.
        """
        start_ray(self.address)
        import ray
        from ray import data

        context = data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False  # the job has its own
        for told in ("ray", "ray.data"):
            logging.getLogger(told).setLevel(logging.ERROR)
        free = ray.available_resources().get("CPU", 0.0)
        if free < 1:
            raise OSError("the cluster has no CPU to spare beside replicas and other jobs; add some")
        count = self.count or int(free)
        share = min(1.0, (free - 1) / count)  # one is left for what brings the parts
        files = data.from_items([{"path": path} for path in paths], override_num_blocks=len(paths))
        # One row a block, else a worker would get all parts of a file.
        parts = files.flat_map(_read).repartition(target_num_rows_per_block=1)
        done = parts.map(
            _Worker,
            fn_constructor_args=(task,),
            compute=data.ActorPoolStrategy(size=count),
            num_cpus=share,
            num_gpus=self.gpus or None,
        )
        try:
            for row in done.iter_rows():
                if row["refused"]:
                    raise ValueError(row["refused"])
                yield Done(row["path"], row["first"], row["total"], json.loads(row["rows"]), row["error"])
        except ray.exceptions.RayError as error:
            raise OSError(
                f"the job's workers were lost ({type(error).__name__}); finished files are kept, and the "
                "same command goes on"
            ) from error


# Between processes rows are JSON: Arrow would want the same columns of all.
def _read(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        asdict(part) | {"rows": json.dumps([asdict(text) for text in part.rows])}
        for part in parts_of(row["path"])
    ]


class _Worker:
    """What each worker keeps: the task, whose model is loaded for its first part."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        rows = [Row(**text) for text in json.loads(row["rows"])]
        part = Part(row["path"], row["first"], row["total"], rows, row["error"])
        try:
            done = work_on(self._task, part)
        except (ValueError, OSError) as error:  # the model cannot be loaded; another worker would not, either
            return row | {"rows": "[]", "refused": str(error)}
        return row | {"rows": json.dumps(done.results), "refused": ""}
