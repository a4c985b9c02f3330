"""Make the README's pictures: ``python tests/screenshots.py``, with Chromium and the embedded models.

Each tab is photographed from a page that is served for the purpose, the Write tab as a moving picture;
``--out`` and ``--widths`` take other pictures of them.
"""

import argparse
import io
import itertools
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import house
from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


PROMPT = "We conducted a randomized controlled trial of metformin in patients with"
MOVING = (1180, 980)  # the window of the moving picture: what is told of a token is within it
MOVING_WIDTH = 860  # of the picture, as wide as a README is shown


def write(page: Any) -> None:
    _set(page, length=60)
    page.locator("#text textarea").fill(PROMPT)
    page.locator("#generate").click()
    _wait_for(page, "Finished")
    page.locator("#score").click()
    page.locator("#choices h2", has_text="come next").wait_for()
    _choose_surprising(page)


def moving(page: Any, path: Path) -> None:
    """The Write tab at work: a text is written, a token looked into, another one taken, words suggested."""
    frames: list[tuple[Image.Image, int]] = []  # with milliseconds

    def shoot(milliseconds: int) -> None:
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        height = picture.height * MOVING_WIDTH // picture.width
        picture = picture.resize((MOVING_WIDTH, height), Image.Resampling.LANCZOS)
        if frames and picture.tobytes() == frames[-1][0].tobytes():
            milliseconds += frames.pop()[1]
        frames.append((picture, milliseconds))

    def shoot_while_writing() -> None:
        while page.locator("#generate[disabled]").count():
            shoot(120)
        shoot(900)

    _set(page, length=40)
    page.evaluate("scrollTo(0, 0)")
    words = PROMPT.split()
    for count in range(0, len(words) + 1, 3):
        page.locator("#text textarea").fill(" ".join(words[:count]))
        shoot(250)
    page.locator("#text textarea").fill(PROMPT)
    page.locator("#generate").click()
    shoot_while_writing()
    _choose_surprising(page)
    shoot(2200)
    page.locator("#choices button[data-rank]").first.click()
    shoot_while_writing()
    page.locator("#suggest").click()
    _wait_for(page, "Suggested")
    page.locator("#generate:enabled").wait_for()
    shoot(1500)
    for _ in range(3):
        page.keyboard.press("Tab")
        page.wait_for_timeout(300)
        shoot(500)
    page.keyboard.press("Enter")
    _wait_for(page, "Taken")
    shoot(2500)
    first, *others = [picture for picture, _ in frames]
    durations = [milliseconds for _, milliseconds in frames]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, quality=80, method=6)


def _set(page: Any, length: int) -> None:
    page.get_by_label("number input for Length, tokens").fill(str(length))
    page.locator(".settings button.label-wrap").click()
    page.get_by_label("Seed").fill("5")
    page.locator(".settings button.label-wrap").click()


def _wait_for(page: Any, state: str) -> None:
    page.locator("#status", has_text=state).wait_for()


def _choose_surprising(page: Any) -> None:
    """Click on a token that was not likely, whatever was written."""
    page.locator("#generate:enabled").wait_for()
    tokens = page.locator("#ink .made.p3, #ink .made.p2")
    boxes = [
        token.bounding_box() for token in (tokens if tokens.count() else page.locator("#ink .tok")).all()
    ]
    box = next(box for box in reversed(boxes) if box["height"] < 30)  # on one line
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("#choices h2", has_text="had").wait_for()


def show(title: str) -> Any:
    return lambda page: _open(page, title)


def label(title: str) -> Any:
    name = title.lower()

    def prepare(page: Any) -> None:
        _open(page, title)
        page.locator(f"#{name}-text").wait_for()
        page.locator(".examples button:visible").first.click()
        page.locator(f"#{name}-run").click()
        page.locator(f"#{name}-status", has_text="Finished").wait_for()
        page.locator(f"#{name}-run:not([disabled])").wait_for()

    return prepare


def _open(page: Any, title: str) -> None:
    """On a phone the last tabs are in a menu."""
    tab = page.get_by_role("tab", name=title).locator("visible=true")
    if not tab.count():
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown button", has_text=title)
    tab.first.click()


TABS = {
    "write": write,
    "entities": label("Entities"),
    "classify": label("Classify"),
    "models": show("Models"),
    "elsewhere": show("Use it elsewhere"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "screenshots")
    parser.add_argument("--widths", type=int, nargs="+", default=[1180])
    parser.add_argument("--schemes", nargs="+", default=["light"])
    parser.add_argument("--tabs", nargs="+", default=list(TABS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=ROOT)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)

            def opened(width: int, scheme: str, height: int = 800) -> Any:
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.set_default_timeout(120_000)
                page.goto(f"http://127.0.0.1:{port}/")
                page.locator("#model-state", has_text="ready").wait_for()
                return page

            plain = options.widths == [1180] and options.schemes == ["light"]
            for width, scheme, name in itertools.product(options.widths, options.schemes, options.tabs):
                page = opened(width, scheme)
                TABS[name](page)
                page.wait_for_timeout(400)
                if plain and name == "write":
                    page.set_viewport_size({"width": 1200, "height": 630})
                    page.locator("#text").evaluate("text => text.scrollIntoView()")
                    page.screenshot(path=options.out / "preview.png")  # shown of a link to the page
                    moving(opened(MOVING[0], scheme, MOVING[1]), options.out / "write.webp")
                else:
                    file = f"{name}.png" if plain else f"{name}-{width}-{scheme}.png"
                    page.screenshot(path=options.out / file, full_page=True)
                page.close()
    finally:
        server.terminate()
        server.wait()
    if plain:
        house.draw(house.House.read(), options.out / "house.png")


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"{address} does not answer")


if __name__ == "__main__":
    main()
