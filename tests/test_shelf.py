"""The shelf of language models: what stays in memory, what is refused, what /health says."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import pytest

from biogpt.serving.shelf import Line, OnShelf, Shelf, public_names
from biogpt.serving.worker import Health


class Served:
    """What a shelf needs of a generator."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__ |= attributes


def test_a_shelf_keeps_few_models_and_says_its_health(caplog) -> None:
    made: list[str] = []
    state: dict[str, Any] = {}

    def load(name: str) -> Any:
        made.append(name)
        if name.endswith("broken"):
            raise KeyError("damaged")
        return Served(health=lambda: Health(state.get(name, "serving")))

    shelf = Shelf("a", load)
    assert shelf.health() == (503, "loading")
    kept = shelf.take()
    assert shelf.health() == (200, "serving")
    state["a"] = "failed"
    assert shelf.health() == (503, "failed")
    assert shelf.take("a") is kept
    shelf.take("b")
    shelf.take("c")
    assert (shelf.has("a"), shelf.has("b"), shelf.has("c")) == (True, False, True)
    with pytest.raises(ValueError, match="broken cannot be loaded: 'damaged'"):
        shelf.take("broken")
    broken = Shelf("broken", load, ["a"], sources={"broken": "/home/x/broken"})
    with pytest.raises(ValueError, match="not offered here"):
        broken.take("z")
    with pytest.raises(ValueError, match=r"^broken cannot be loaded; the log says why$"):
        broken.take()
    assert broken.health() == (503, "failed: broken cannot be loaded; the log says why")
    assert made[-1] == "/home/x/broken"
    assert "broken cannot be loaded: 'damaged'" in caplog.text


def test_a_model_that_is_being_loaded_holds_up_nobody_else() -> None:
    begun, proceed = Event(), Event()

    def load(name: str) -> Any:
        if name == "slow":
            begun.set()
            assert proceed.wait(30)
        return Served(name=name)

    shelf = Shelf("a", load)
    with ThreadPoolExecutor(3) as pool:
        both = [pool.submit(shelf.take, "slow") for _ in range(2)]
        try:
            assert begun.wait(30)
            assert pool.submit(shelf.take, "a").result(timeout=30).name == "a"
        finally:
            proceed.set()
        assert both[0].result(30) is both[1].result(30)


def test_closing_ends_all_models_at_once_and_those_that_left_the_shelf() -> None:
    together = Barrier(3)

    def close(seconds: float) -> None:
        assert seconds == 5
        together.wait(5)  # breaks where one waits for another

    shelf = Shelf("a", lambda name: Served(close=close))
    held = [shelf.take(name) for name in ("a", "b", "c")]
    assert not shelf.has("b")
    shelf.close(5)
    assert held


def test_folders_are_shown_by_their_own_names(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other, same = tmp_path / "a" / "tiny", tmp_path / "b" / "tiny", tmp_path / "mini"
    for folder in (one, other, same):
        folder.mkdir(parents=True)
    given = [str(one), "mini", "b/tiny", str(same), "some/one@main", "/no/such", "."]
    assert public_names(given) == {
        "tiny": str(one),
        "mini": "mini",
        "tiny (2)": "b/tiny",
        "mini (2)": str(same),
        "some/one@main": "some/one@main",
        "such": "/no/such",
        tmp_path.name: ".",
    }


def test_why_a_model_cannot_be_loaded_is_said_once() -> None:
    def load(name: str) -> Any:
        raise OSError("no such folder")

    with (
        pytest.raises(ValueError, match=r"^a cannot be loaded: no such folder$"),
        OnShelf(Shelf("a", load)).turn(),
    ):
        pass


def test_turns_come_in_the_order_of_asking() -> None:
    """Whoever comes back for another turn goes behind those who wait."""
    line, order = Line(), []
    first, other = Event(), Event()

    def wait_for(name: str, ticket: Event) -> None:
        with line.turn(ticket):
            order.append(name)

    with ThreadPoolExecutor(2) as pool, line.turn(first):
        pool.submit(wait_for, "other", other)
        while line.ahead(other) != 1:
            pass
        pool.submit(wait_for, "back", Event())
        while len(line) != 3:
            pass
    assert order == ["other", "back"]
    assert len(line) == 0
