"""Make the README's pictures: ``python tests/screenshots.py``, with Chromium and the embedded models.

Each tab is photographed from a page that is served for the purpose; ``--out`` and ``--widths`` take other
pictures of it.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def write(page: Any) -> None:
    page.locator("#text textarea").fill(
        "We conducted a randomized controlled trial of metformin in patients with"
    )
    page.get_by_label("number input for Length, tokens").fill("60")
    page.locator(".settings button.label-wrap").click()
    page.get_by_label("Seed").fill("5")
    page.locator(".settings button.label-wrap").click()
    page.locator("#generate").click()
    page.locator("#status", has_text="Finished").wait_for()
    page.locator("#score").click()
    page.locator("#status", has_text="Scored").wait_for()
    box = page.locator("#ink .tok").nth(24).bounding_box()
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
            for width in options.widths:
                for scheme in options.schemes:
                    for name in options.tabs:
                        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
                        page.set_default_timeout(120_000)
                        page.goto(f"http://127.0.0.1:{port}/")
                        page.locator("#model-state", has_text="ready").wait_for()
                        if name == "entities" and not page.get_by_role("tab", name="Entities").count():
                            continue
                        TABS[name](page)
                        page.wait_for_timeout(400)
                        plain = options.widths == [1180] and options.schemes == ["light"]
                        file = f"{name}.png" if plain else f"{name}-{width}-{scheme}.png"
                        page.screenshot(path=options.out / file, full_page=True)
                        if plain and name == "write":  # what other sites show of a link to the page
                            page.set_viewport_size({"width": 1200, "height": 630})
                            page.screenshot(path=options.out / "preview.png")
                        page.close()
    finally:
        server.terminate()
        server.wait()


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
