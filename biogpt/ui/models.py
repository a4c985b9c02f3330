"""Models that a tab needs only when it is used, and the Models tab, which chooses the one that writes."""

import html
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Event, Lock
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import gradio as gr

from biogpt.checkpoint.hub import EMBEDDED, download_size, embedded_names, find
from biogpt.checkpoint.layout import CONFIG, INDEX, shard_names, weights_file
from biogpt.serving.text_generator import TextGenerator
from biogpt.ui.buttons import Buttons

Model = TypeVar("Model")


class LazyModel(Generic[Model]):
    """A model that its first user loads; whoever has a turn has it alone.

    Args:
        name: what to call it: an embedded name, a folder's, or a Hub id.
        load: makes it; called again at the next turn if it fails.
    """

    def __init__(self, name: str, load: Callable[[], Model]) -> None:
        self.name = name
        self._load = load
        self._model: Model | None = None
        self._lock = Lock()

    @property
    def expected(self) -> bool:
        """False for the name of a model that should come with the project and does not: do not offer it."""
        return not self.name.startswith("mini-") or self.name in embedded_names()

    @property
    def loaded(self) -> Model | None:
        """The model, if somebody has loaded it; does not wait."""
        return self._model

    @contextmanager
    def turn(self) -> Iterator[Model]:
        """Wait for the model, load it if nobody has, and keep it from others meanwhile.

        Raises:
            ValueError: it cannot be loaded; the message says which and why.
        """
        with self._lock:
            if self._model is None:
                try:
                    self._model = self._load()
                except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: too little memory
                    said = f"{self.name} cannot be loaded: "  # by a shelf, too
                    raise ValueError(said + str(error).removeprefix(said)) from error
            yield self._model


def title(name: str) -> str:
    """What to call a model on the page: a folder by its own name, others as they are."""
    return Path(name).name if Path(name).is_absolute() else name


class OnShelf(LazyModel[TextGenerator]):
    """A language model of the shelf, for a run that reads texts with it; one such run at a time."""

    def __init__(self, shelf: "Shelf", name: str | None = None) -> None:
        super().__init__(shelf.check(shelf.default if name is None else name), lambda: shelf.take(name))
        self._shelf = shelf
        self._lock = shelf.reading

    @property
    def loaded(self) -> TextGenerator | None:
        return self._shelf.glance(self.name)


class Cancelled(Exception):
    """Raised inside a download that nobody waits for any more."""


class Shelf:
    """The language models of the page: the first is loaded at the start, others when a visitor asks for them.

    A request keeps the model that it began with; what leaves the shelf is freed when the last request lets go of it.

    Args:
        default: the model of every new visitor.
        load: makes a model from an embedded name, a folder or a Hub id.
        allowed: names that may be taken beside the default; None: any.
        keep: how many stay in memory beside the default.
    """

    def __init__(
        self,
        default: str,
        load: Callable[[str], TextGenerator],
        allowed: Sequence[str] | None = None,
        keep: int = 1,
    ) -> None:
        self.default = default
        self.allowed = None if allowed is None else tuple(dict.fromkeys([default, *allowed]))
        self.failure = ""  # why the default could not be loaded
        self.reading = Lock()  # of runs that read texts with a model, beside the requests that write
        self._load = load
        self._keep = keep
        self._loaded: dict[str, TextGenerator] = {}  # the one used last comes last
        self._known: WeakSet[TextGenerator] = WeakSet()  # and those that left and still write
        self._loading: dict[str, Lock] = {}
        self._lock = Lock()  # of the two dicts

    @property
    def ready(self) -> bool:
        return self.default in self._loaded

    def glance(self, name: str) -> TextGenerator | None:
        """The model if it is in memory; does not wait."""
        return self._loaded.get(name)

    def has(self, name: str) -> bool:
        """Whether the model is in memory."""
        return name in self._loaded

    def health(self) -> tuple[int, str]:
        """HTTP status and one word: 503 while the default model loads, or when it or its worker failed."""
        if not self.ready:
            return 503, f"failed: {self.failure}" if self.failure else "loading"
        state = self._loaded[self.default].health().state
        return (200 if state == "serving" else 503), state

    def close(self, seconds: float) -> None:
        """Take no more requests; let those at hand go on for so many seconds in all, and end the rest."""
        generators = list(self._known)
        with ThreadPoolExecutor(max(1, len(generators))) as pool:  # at once: all have the same time
            list(pool.map(lambda generator: generator.close(seconds), generators))

    def check(self, name: str) -> str:
        """The name without white space around it.

        Raises:
            ValueError: it is empty, or not one of ``allowed``.
        """
        name = (name or "").strip()
        if not name:
            raise ValueError("No model is named: choose one, or type a Hub id or a folder")
        if self.allowed is not None and name not in self.allowed:
            raise ValueError(f"{name} is not offered here; choose one of {', '.join(self.allowed)}")
        return name

    def take(self, name: str | None = None) -> TextGenerator:
        """The model of this name, loaded if it is not there; None is the default.

        Raises:
            ValueError: it cannot be loaded, or is not offered; the message says why.
        """
        name = self.check(self.default if name is None else name)
        with self._lock:
            loading = self._loading.setdefault(name, Lock())
        with loading:  # those who want another model need not wait for this one
            generator = self._taken(name)
            if generator is None:
                try:
                    generator = self._load(name)
                except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: too little memory
                    if name == self.default:
                        self.failure = str(error)
                    raise ValueError(f"{name} cannot be loaded: {error}") from error
                with self._lock:
                    self._loaded[name] = generator
                    self._known.add(generator)
            return generator

    def _taken(self, name: str) -> TextGenerator | None:
        """The model if it is in memory; else room is made for it: two large models need not fit at once."""
        with self._lock:
            generator = self._loaded.pop(name, None)
            if generator is not None:
                self._loaded[name] = generator
            elif name != self.default:
                others = [key for key in self._loaded if key != self.default]
                for key in others[: len(others) - self._keep + 1]:
                    del self._loaded[key]
            return generator

    def names(self) -> list[str]:
        """What to offer: all that is allowed, or else what is here already: embedded, or in the Hub's cache."""
        if self.allowed is not None:
            return list(self.allowed)
        return list(dict.fromkeys([self.default, *_embedded_writers(), *_cached()]))


def _embedded_writers() -> list[str]:
    return [name for name in embedded_names() if _writes(EMBEDDED / name / CONFIG)]


def _writes(config: Path) -> bool:
    """Whether a config is that of a BioGPT language model, as far as it says."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    heads = values.get("architectures") or ["BioGptForCausalLM"]
    return values.get("model_type") == "biogpt" and "BioGptForCausalLM" in heads


def _cached() -> list[str]:
    """Hub ids whose config and weights are in the local cache."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return []
    return sorted(
        repository.repo_id
        for repository in repositories
        for revision in list(repository.revisions)[:1]
        if _writes(revision.snapshot_path / CONFIG)
        and weights_file({file.file_name for file in revision.files})
    )


def size_of(name: str) -> tuple[int, bool]:
    """Bytes of a model's weights, and whether they still have to be downloaded.

    Raises:
        ValueError, OSError: as ``biogpt.checkpoint.hub.find``.
    """
    if (EMBEDDED / name).is_dir() or Path(name).expanduser().is_dir():
        folder = find(name)
        if not _writes(folder / CONFIG):
            raise ValueError(f"{name} is no BioGPT language model: its {CONFIG} is missing or says otherwise")
        weights = weights_file({path.name for path in folder.iterdir()})
        chosen = shard_names(folder / weights) if weights and weights.endswith(INDEX) else [weights]
        return sum((folder / each).stat().st_size for each in chosen if each), False
    if name in _cached():
        return 0, False
    return download_size(name), True


def models_tab(shelf: Shelf, model: gr.State, header: gr.HTML, describe: Callable[[str], str]) -> gr.Dropdown:
    """Lay the tab out in the Blocks at hand and connect it.

    Args:
        model: the name of the visitor's model; set here.
        header: set to ``describe`` of a name when the model changes.
    """
    with gr.Column(elem_classes="narrow"):
        choice = gr.Dropdown(
            shelf.names(),
            value=shelf.default,
            label="Language model",
            info="Those that come with the page or are on this machine"
            + ("; or type a Hub id, owner/name, or a folder." if shelf.allowed is None else "."),
            allow_custom_value=shelf.allowed is None,
            elem_id="model-choice",
        )
        with gr.Row(elem_classes="actions"):
            use = gr.Button("Use this model", variant="primary", elem_id="model-use", elem_classes="run")
            cancel = gr.Button("Cancel", elem_id="model-cancel", elem_classes="stop", interactive=False)
        line = gr.HTML(
            '<p class="status"><b>Ready</b> Nothing is downloaded before you press the button.</p>',
            elem_id="model-status",
            elem_classes="run-status",
        )
        gr.HTML(
            '<p class="remark">The model writes in the Write tab, and compares labels of your own. Other visitors '
            "keep theirs; text that is being written is finished by the model that began it.</p>"
        )

    def check(name: str) -> str:
        try:
            name = shelf.check(name)
            size, missing = size_of(name)
        except (ValueError, OSError) as error:
            return _line("Not usable", str(error), refused=True)
        if missing:
            return _line("On the Hub", f"{size / 1e6:,.0f} MB to download before {name} can be used")
        return _line("On this machine", f"{size / 1e6:,.0f} MB" if size else name)

    def switch(name: str) -> Iterator[tuple[object, object, object]]:
        stopped = Event()
        reports: Queue[tuple[str, int, int]] = Queue()

        def progress(file: str, done: int, size: int) -> None:
            if stopped.is_set():
                raise Cancelled
            reports.put((file, done, size))

        def work(name: str) -> TextGenerator:
            find(name, progress=progress)
            return shelf.take(name)

        try:
            name = shelf.check(name)
            with ThreadPoolExecutor(1) as pool:
                try:
                    yield _line("Loading", html.escape(name)), gr.skip(), gr.skip()
                    future = pool.submit(work, name)
                    while not future.done():
                        wait([future], 0.2)
                        latest = None
                        while not reports.empty():
                            latest = reports.get()
                        if latest:
                            file, done, size = latest
                            bar = (
                                f'<progress max="{size}" value="{done}" aria-label="Downloaded"></progress> '
                            )
                            facts = f"{html.escape(file)}: {done / 1e6:,.0f} of {size / 1e6:,.0f} MB"
                            yield (
                                f'<p class="status"><b>Downloading</b> {bar}{facts}</p>',
                                gr.skip(),
                                gr.skip(),
                            )
                    future.result()
                finally:
                    stopped.set()
            yield _line("In use", name), name, describe(name)
        except (ValueError, OSError) as error:
            yield _line("Not loaded", str(error), refused=True), gr.skip(), gr.skip()

    quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    choice.change(check, choice, line, trigger_mode="always_last", **quick)
    buttons, clicks = [use, cancel], Buttons("models")
    use.click(None, None, buttons, js=clicks.begun)
    run = use.click(
        switch, choice, [line, model, header], concurrency_id="models", concurrency_limit=2, **quick
    )
    run.then(None, None, buttons, js=clicks.ended)
    cancel.click(None, None, None, js=clicks.stop)
    stopped = cancel.click(None, cancels=[run])
    stopped.then(
        lambda: _line("Cancelled", "what was downloaded so far is kept for the next try"),
        None,
        line,
        queue=False,
        **quick,
    ).then(None, None, buttons, js=clicks.stopped)
    return choice


def _line(state: str, facts: str, refused: bool = False) -> str:
    kind = ' refusal" role="alert' if refused else ""
    return f'<p class="status{kind}"><b>{state}</b> {html.escape(facts)}</p>'
