"""Which replicas there are: the applications of Ray Serve, as ``serve deploy`` reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TASKS = ("writing", "entities", "classes")  # an application each, of one deployment
_TEXTS = 48  # requests at one replica that write, those that wait for a place included
_PASSAGES = 16  # at one that reads; these are read together
_BUSY = 8  # at one replica, on average, from which on another is started
_HEALTH = {"health_check_period_s": 5.0, "health_check_timeout_s": 30.0}
_GRACE = 120.0  # seconds that a replica which is replaced has for its texts


_HEADER = """\
# BioGPT on Ray Serve: `serve deploy THIS_FILE`, and again after changes, which drops no text being written.
# Models are embedded names, Hub ids or folders; each machine finds them, and the package biogpt, by itself.
"""


def application_of(task: str) -> str:
    """The name of a task's application."""
    return f"biogpt-{task}"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Models and the replicas that serve them.

    Args:
        model: that a replica has from its start on; it loads others that are asked for.
        ner_model, classify_model, sentence_model: of entities, and of classes.
        least, most: replicas of each task; between them as many as requests need.
        cpus, gpus: of a machine's, that each takes; shares of a GPU are possible.
    """

    model: str = "mini"
    ner_model: str = "mini-ner"
    classify_model: str = "mini-hoc"
    sentence_model: str = "mini-rct"
    device: str = "auto"
    precision: str = "auto"
    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"{self.least} to {self.most} replicas; expected at least 1, and no fewer at most"
            )
        if self.cpus < 0 or self.gpus < 0 or (self.gpus > 1 and self.gpus % 1):
            raise ValueError(
                f"{self.cpus:g} CPUs and {self.gpus:g} GPUs a replica; expected none or more, and of GPUs a "
                "share below 1 or a whole number"
            )

    def config(self, tasks: Sequence[str] = TASKS) -> dict[str, Any]:
        """What ``serve deploy`` takes. Nothing of it listens: the page calls replicas through Ray."""
        models = {
            "writing": ([self.model], _TEXTS),
            "entities": ([self.ner_model], _PASSAGES),
            "classes": ([self.classify_model, self.sentence_model], _PASSAGES),
        }
        return {
            "proxy_location": "Disabled",
            "applications": [self._application(task, *models[task]) for task in tasks],
        }

    def yaml(self) -> str:
        """``config`` as a file."""
        import yaml

        return _HEADER + yaml.safe_dump(self.config(), sort_keys=False)

    def _application(self, task: str, models: Sequence[str], most: int) -> dict[str, Any]:
        return {
            "name": application_of(task),
            "route_prefix": None,
            "import_path": f"biogpt.cluster.replicas:{task}",
            "args": {"device": self.device, "precision": self.precision},
            "deployments": [
                {
                    "name": task,
                    "user_config": {"models": list(models)},
                    "max_ongoing_requests": most,
                    "max_queued_requests": 2 * most,
                    "autoscaling_config": {
                        "min_replicas": self.least,
                        "max_replicas": self.most,
                        "target_ongoing_requests": _BUSY,
                    },
                    "graceful_shutdown_timeout_s": _GRACE,
                    **_HEALTH,
                    "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
                }
            ],
        }
