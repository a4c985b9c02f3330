"""Open the page: flags and environment, then the model, then the server."""

import argparse
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread, Timer
from typing import Any, NoReturn

# Both libraries read these once, when they are imported: the page tells nobody that it runs.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if "SPACE_ID" in os.environ:  # only its proxy reaches a Space; who asks is what that says
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")

ANY = "any"  # as --models: visitors may name any model
OF_ONE_CLIENT = 16  # requests that may wait, for each task; half of a line
# Seconds from the signal to end: until texts being written are cut, until clients are no longer waited for,
# and until the process is gone, whatever still runs.
TEXTS, CLIENTS, GRACE = 5.0, 7.0, 9.5
M_ARENA_MAX = -8  # of glibc's malloc.h
AGAIN = 5.0  # seconds after which a cluster that does not serve is asked again


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End the process with status 2 and one line."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def build_parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """The flags; each takes its default from the environment, so a flag wins.

    Hugging Face Spaces set GRADIO_SERVER_NAME, GRADIO_SERVER_PORT and SPACE_ID, and reach the page from
    outside.
    """
    parser = _Parser(
        prog="app.py",
        description="Open a page in which BioGPT writes, tags and classifies biomedical text.",
        epilog="A flag wins over its environment variable. Nothing is sent anywhere unless --share is given "
        "or a model is named that is on the Hugging Face Hub.",
    )
    host = environment.get("GRADIO_SERVER_NAME", "0.0.0.0" if "SPACE_ID" in environment else "127.0.0.1")
    port = environment.get("GRADIO_SERVER_PORT", "7860")

    def add(name: str, default: str, text: str, kind: type | object = str) -> None:
        variable = f"BIOGPT_{name.upper().replace('-', '_')}"
        parser.add_argument(
            f"--{name}",
            default=environment.get(variable, default),
            type=kind,  # type: ignore[arg-type]
            metavar=name.upper().rpartition("-")[2],
            help=f"{text} [{variable}; default: {default}]",
        )

    add("model", "mini", "an embedded model, a folder, or a Hub id with an optional @revision")
    later = "as --model; loaded when it is first used"
    add("ner-model", "mini-ner", f"finds entities; {later}")
    add("classify-model", "mini-hoc", f"labels texts; {later}")
    add("sentence-model", "mini-rct", f"labels the sentences of abstracts; {later}")
    add("device", "auto", "auto, cpu, mps, cuda or cuda:N; auto takes CUDA, then MPS, then the CPU")
    add("precision", "auto", "auto, float32, bfloat16, float16 or int8")
    add(
        "models",
        "",
        "language models that visitors may choose beside the embedded ones, with commas between; any: "
        "whatever they name, folders of this machine and the Hub included",
    )
    add("backend", "local", "local: this process computes; ray: replicas of Ray Serve do", _backend)
    add("ray-address", "", "of a Ray cluster that serves; without one, Ray is started on this machine")
    add("replicas", "1", "of each task, where Ray is started on this machine", _number)
    add("host", host, "address to listen on; 0.0.0.0 lets other machines in")
    add("port", port, "port to listen on", _port)

    def add_switch(name: str, text: str) -> None:
        variable = f"BIOGPT_{name.upper()}"
        parser.add_argument(
            f"--{name}",
            nargs="?",
            const="true",
            default=environment.get(variable, "false"),
            type=_truth,
            metavar="BOOL",
            help=f"{text} [{variable}; default: false]",
        )

    add(
        "max-waiting",
        str(OF_ONE_CLIENT),
        "requests that one client may have waiting for a task; one more is refused with HTTP 429",
        _number,
    )
    add(
        "allow-origin",
        "",
        "hosts of other web sites that may ask this page, or the name that a proxy serves it by, with commas "
        "between; *: any",
    )
    add("auth", "", "NAME:PASSWORD, or a file with such lines: who may use the page at all", _passwords)
    add_switch("share", "ask gradio.live for a public link")
    add_switch("mcp", "offer the endpoints as tools of an MCP server, too")
    add_switch("metrics", "tell Prometheus of requests, at /metrics; needs the package prometheus-client")
    return parser


def _port(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= 65535):
        raise argparse.ArgumentTypeError(f"{value!r} is no port; expected a whole number from 1 to 65535")
    return int(value)


def _backend(value: str) -> str:
    if value not in ("local", "ray"):
        raise argparse.ArgumentTypeError(f"{value!r} is no backend; expected local or ray")
    return value


def _passwords(value: str) -> dict[str, str]:
    from biogpt.ui.auth import read_passwords

    try:
        return read_passwords(value) if value else {}
    except OSError:
        raise argparse.ArgumentTypeError("expected NAME:PASSWORD, or a file with such lines") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _number(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) == int(value)):
        raise argparse.ArgumentTypeError(f"{value!r} is no number; expected a whole one from 1 on")
    return int(value)


def _truth(value: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.lower() not in words:
        raise argparse.ArgumentTypeError(f"{value!r} is neither true nor false")
    return words[value.lower()]


def share_heap() -> None:
    """Let all threads take memory from one heap, where the C library is glibc and was not told otherwise.

    With a heap for each of them, what one gives back no other can use: the page would hold a third more.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def main() -> None:
    _on_signal(_leave)
    parser = build_parser(os.environ)
    options = parser.parse_args()
    share_heap()

    # Imports that take seconds come when they are needed: --help, a wrong flag, a missing model don't wait.
    _lent_gpu()

    from biogpt.checkpoint.hub import find
    from biogpt.runners.precision import choose_device, choose_precision

    try:
        if options.backend == "local":  # else it is for other machines to say
            choose_precision(options.precision, choose_device(options.device))
        # A model on the Hub may take minutes: the page is there meanwhile. All others are looked at now.
        if not options.ray_address and (
            "/" not in options.model or Path(options.model).expanduser().is_dir()
        ):
            find(options.model)
    except (ValueError, OSError) as error:
        parser.error(f"cannot load the model {options.model!r}: {error}")

    print(f"Starting with {options.model} …", flush=True)
    if options.metrics and find_spec("prometheus_client") is None:
        parser.error("--metrics needs the package prometheus-client: pip install prometheus-client")
    from biogpt.ui.page import check_address, end, serve
    from biogpt.ui.requests import metrics_of

    try:  # before a thread loads the model: Python cannot end well while one is inside torch
        check_address(options.host, options.port)
    except OSError as error:
        parser.error(str(error))

    try:
        page, shelf, leave_cluster = build(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    globals()["demo"] = page
    metrics = metrics_of(page.lines.requests, page.lines.waiting, shelf.counts) if options.metrics else None
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("biogpt").setLevel(logging.INFO)

    def told_to_end(*_: object) -> None:
        _on_signal(_leave)  # a second one is not to wait
        last = Timer(GRACE, os._exit, [0])
        last.daemon = True
        last.start()
        Thread(target=shelf.close, args=(TEXTS,), daemon=True).start()
        shelf.closed.wait()
        end(page, CLIENTS, GRACE - CLIENTS)
        leave_cluster()
        _leave()

    def listening(address: str, link: str | None) -> None:
        print(f"The page is at {address}", flush=True)
        if options.share:
            print(link or "No public link: gradio.live cannot be reached from here", flush=True)

    # A process forked for one text on ZeroGPU is ended by a signal, too, and has nobody to tell.
    os.register_at_fork(after_in_child=lambda: _on_signal(signal.SIG_DFL))
    _on_signal(told_to_end)
    try:
        allowed = options.allow_origin.split(",")
        serve(
            page,
            options.host,
            options.port,
            options.share,
            options.mcp,
            shelf.health,
            allowed,
            listening,
            options.auth,
            metrics,
        )
    except OSError as error:
        parser.error(str(error))


def _on_signal(handler: Callable[..., None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _leave(*_: object) -> None:
    """End the process with status 0, at once: Python cannot end well while a thread is inside torch."""
    logging.shutdown()
    with suppress(OSError, ValueError):  # nobody reads them any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def build(options: argparse.Namespace) -> tuple[Any, Any, Callable[[], None]]:
    """The page (``gradio.Blocks``), its shelf of language models, whose default one begins to load, and how
    to leave the cluster that serves them.

    Raises:
        ValueError, OSError: the cluster's software is not installed, or there is no cluster.
    """
    lent = _lent_gpu() and options.backend == "local"

    from biogpt.checkpoint.inventory import embedded_language_models
    from biogpt.serving.service import TextService
    from biogpt.serving.shelf import LazyModel, Shelf, public_names
    from biogpt.serving.text_generator import TextGenerator
    from biogpt.serving.zero import LentGenerator
    from biogpt.tasks.classification import TextClassifier
    from biogpt.tasks.entities import EntityRecognizer
    from biogpt.ui.page import build_page

    device, precision = ("cpu", "auto") if lent else (options.device, options.precision)

    cluster = _cluster_of(options)

    def load(source: str) -> TextService:
        if cluster is not None:
            return cluster.generator(source)
        if lent and source == options.model:
            return LentGenerator.from_pretrained(source, precision=options.precision)
        generator = TextGenerator.from_pretrained(source, device=device, precision=precision)
        generator.share_cores()
        return generator

    def later(kind: Any, source: str) -> LazyModel[Any]:
        [name] = public_names([source])
        if cluster is None:
            return LazyModel(
                name, lambda: kind.from_pretrained(source, device=device, precision=precision), shelf.closed
            )
        far = cluster.recognizer if kind is EntityRecognizer else cluster.classifier
        return LazyModel(name, lambda: far(source), shelf.closed)

    # Who listens on this machine's own address may be asked from anywhere, through a tunnel or a proxy: what
    # visitors may load is said here, and nothing else tells who is a stranger.
    named = [name.strip() for name in options.models.split(",") if name.strip()]
    sources = public_names([options.model, *embedded_language_models(), *(n for n in named if n != ANY)])
    default, *_ = sources
    shelf = Shelf(default, load, None if ANY in named else list(sources), sources=sources)
    if lent:  # what is on the GPU when the page is served is there in each forked process
        _load(shelf)
    else:
        Thread(target=_load, args=(shelf, 0.0 if cluster is None else AGAIN), daemon=True).start()
    page = build_page(
        shelf,
        later(EntityRecognizer, options.ner_model),
        later(TextClassifier, options.classify_model),
        later(TextClassifier, options.sentence_model),
    )
    page.lines.most = options.max_waiting
    return page, shelf, cluster.close if cluster is not None else lambda: None


def _cluster_of(options: argparse.Namespace) -> Any:
    """The cluster that serves, joined or started; None: none."""
    if options.backend == "local":
        return None
    from biogpt.cluster.fleet import Fleet
    from biogpt.cluster.starting import check_ray

    check_ray()
    from biogpt.cluster.cluster import Cluster

    cores = os.cpu_count() or 1
    fleet = Fleet(
        model=options.model,
        ner_model=options.ner_model,
        classify_model=options.classify_model,
        sentence_model=options.sentence_model,
        device=options.device,
        precision=options.precision,
        least=options.replicas,
        most=options.replicas,
        cpus=max(1, cores // options.replicas),
    )
    return Cluster(options.ray_address or None, fleet)


def __getattr__(name: str) -> Any:
    """``demo``, which Gradio's own tools look for, is built when it is first asked for."""
    if name != "demo":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    flags = sys.argv[1:] if __name__ == "__main__" else []
    globals()["demo"], *_ = build(build_parser(os.environ).parse_args(flags))
    return globals()["demo"]


def _lent_gpu() -> bool:
    """Whether the GPU is lent for one call at a time; then what lends it is imported, before CUDA starts."""
    from biogpt.serving.zero import gpu_is_lent

    lent = gpu_is_lent()
    if lent:
        import spaces  # noqa: F401
    return lent


def _load(shelf: Any, again: float = 0.0) -> None:
    """Load the default model; the page and /health tell of a failure, and the log says why.

    Args:
        again: seconds after which it is tried again: a cluster may be there later than its page. 0: never.
    """
    from biogpt.serving.engine import Stopping

    while not shelf.ready:
        with suppress(ValueError, Stopping):
            generator = shelf.take()
            print(f"{shelf.default}: {generator.description}", flush=True)
        if not again or shelf.closed.wait(again):
            return


if __name__ == "__main__":
    if "demo" in globals():  # `gradio app.py` runs this file again, in the same module, when code has changed
        del globals()["demo"]
    else:
        main()
