"""A real JupyterLab in a real browser: a lesson runs there, its slider changes the image, and its
links lead to the exercises.

Needs Chromium or Chrome and Playwright (for Python, without the browsers that it would download).
All servers listen on the loopback interface alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
LESSONS = ("00_start_here", "07_cascade")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are there too
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
SECONDS = 400  # for a lesson to run, at most
ERRORS = (
    "[data-mime-type='application/vnd.jupyter.error'], "
    "[data-mime-type='application/vnd.jupyter.stderr']"
)
ALL_RUN = """errors => document.querySelector(errors) !== null
    || [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')]
        .every(prompt => /^\\[\\d+\\]:$/.test(prompt.innerText.trim()))"""


@pytest.fixture
def browser() -> str:
    """The path of a browser that is installed."""
    pytest.importorskip("playwright", reason="the package playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), str(MAC) if MAC.exists() else None)
    if found is None:
        pytest.skip("no Chromium and no Chrome is installed")
    return found


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A folder with copies of the lessons, without outputs, and of the exercises beside them."""
    folder = tmp_path / "course"
    for name in ("notebooks", "exercises"):
        (folder / name).mkdir(parents=True)
        for path in (ROOT / name).glob("*.ipynb"):
            notebook = nbformat.read(path, as_version=4)
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
            nbformat.write(notebook, folder / name / path.name)
    return folder


@pytest.fixture
def lab(course: Path, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A running `jupyter lab`, started in the course's folder with settings of its own.

    The address at which it opens a file of that folder.
    """
    for name, settings in SETTINGS.items():
        path = tmp_path / "config/lab/user-settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(settings), encoding="utf-8")
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}"]
    with (tmp_path / "log.txt").open("wb") as log:
        server = subprocess.Popen(command, cwd=course, env=environment, stdout=log, stderr=log)
    try:
        status = f"http://127.0.0.1:{port}/api/status?token={token}"
        deadline = time.monotonic() + 60
        while not _answers(status):
            text = (tmp_path / "log.txt").read_text(encoding="utf-8", errors="replace")
            assert server.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.2)
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}?token={token}"
    finally:
        server.terminate()  # it ends its kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def _answers(address: str) -> bool:
    with contextlib.suppress(urllib.error.URLError, OSError):
        return urllib.request.urlopen(address, timeout=5).status == 200
    return False


@pytest.fixture
def page(browser: str) -> Iterator[Any]:
    """A page of the browser, which reaches this machine alone."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(60_000)
        page.route(lambda url: "//127.0.0.1:" not in url, lambda route: route.abort())
        yield page
        chromium.close()


def test_a_link_leads_from_a_lesson_to_its_exercises(page: Any, lab: Callable[[str], str]) -> None:
    """Lab is started where README.md says, above both folders: a click opens the exercises."""
    page.goto(lab("notebooks/01_forward_diffusion.ipynb"))
    page.get_by_role("heading", name="01 Forward diffusion", exact=False).first.wait_for()
    exercises = page.get_by_role("heading", name="01 Forward diffusion: exercises")
    assert exercises.count() == 0
    page.get_by_role("link", name="exercises/01_forward_diffusion.ipynb").click()
    exercises.wait_for()


def test_a_slider_in_jupyterlab_changes_the_image(
    page: Any, course: Path, lab: Callable[[str], str]
) -> None:
    """Run All Cells in the menu, no error anywhere; dragging a slider draws another image."""
    lessons = [course / "notebooks" / f"{name}.ipynb" for name in LESSONS]
    lesson = next(path for path in lessons if "explore" in path.read_text("utf-8"))
    page.goto(lab(f"notebooks/{lesson.name}"))
    page.get_by_text("| Idle").wait_for()  # the kernel, in the status bar
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("[data-command='runmenu:run-all']").click()
    page.wait_for_function(ALL_RUN, arg=ERRORS, timeout=1000 * SECONDS)
    assert page.locator(ERRORS).all_inner_texts() == []

    output = page.locator(".jp-OutputArea").filter(has=page.locator(".widget-slider")).last
    image, slider = output.locator("img").first, output.locator(".noUi-base").last
    before = image.get_attribute("src")
    assert before is not None and before.startswith("data:image/png;base64,")
    slider.scroll_into_view_if_needed()
    box, handle = slider.bounding_box(), output.locator(".noUi-handle").last.bounding_box()
    assert box is not None and handle is not None
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_function(
        "([image, before]) => image.isConnected && image.src !== before || !image.isConnected",
        arg=[image.element_handle(), before],
    )
    after = image.get_attribute("src")
    assert after is not None and after.startswith("data:image/png;base64,")
    assert after != before
