"""Pictures of the player's page, as docs/play.md shows them.

python -m eval.play_load.screenshots --out docs/pictures

They are drawn by the system's Chromium; its path is looked for, or told by CHROMIUM.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from playwright.sync_api import Error, sync_playwright

from eval.play_load.__main__ import LoadArguments, serving
from unified.command import command

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SEED = 1_000_004
SHOTS: tuple[tuple[str, int, Literal["light", "dark"]], ...] = (
    ("wide", 1280, "light"),
    ("narrow", 375, "dark"),
)
"""Name, width and colours."""


@dataclass(frozen=True, kw_only=True)
class ShotArguments:
    """Draw the player's page."""

    model: str = "babyai"
    """Folder, hub id, or embedded name."""
    out: Path = Path("runs/screenshots")
    """Folder of wide.png and narrow.png."""
    device: str | None = None
    """Torch device; CUDA where there is one, if not given."""


def shoot(arguments: ShotArguments) -> list[Path]:
    """Plays a little, and writes a wide and a narrow picture.

    Raises:
        ValueError: If there is no browser.
    """
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise ValueError("no Chromium was found; install one, or tell its path by CHROMIUM=...")
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = ["--env", "data.babyai.playing:environment"]
    paths = []
    load = LoadArguments(model=arguments.model, device=arguments.device)
    with serving(load, *options) as server, sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=found, args=["--no-sandbox", "--disable-gpu"]
            )
        except Error as error:
            raise ValueError(
                f"{found} does not start: {error}; tell another by CHROMIUM"
            ) from error
        link = f"http://127.0.0.1:{server.port}/#level=GoToLocal&seed={SEED}&world=both"
        for name, width, scheme in SHOTS:
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.goto(link)
            page.wait_for_selector(".thumb")
            _play(page)
            paths.append(arguments.out / f"{name}.png")
            page.screenshot(path=paths[-1], full_page=True)
        browser.close()
    return paths


def _play(page: Any) -> None:
    """Walks, goes back, and walks elsewhere."""
    away = ["ArrowLeft", "ArrowUp", "ArrowLeft", "ArrowUp", "ArrowUp", "ArrowLeft", "ArrowLeft"]
    for key in [*away, *["Backspace"] * 3, "ArrowRight", "ArrowRight", "ArrowUp", "ArrowRight"]:
        page.keyboard.press(key)
        page.wait_for_timeout(700)
    page.wait_for_timeout(1500)


def main() -> None:
    """Command line."""
    arguments = tyro.cli(ShotArguments, description=__doc__)
    with command("eval.play_load.screenshots"):
        paths = shoot(arguments)
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    main()
