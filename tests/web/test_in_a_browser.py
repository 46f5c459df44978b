"""From login to report in headless Chromium, as people do it; pictures go into ``$PICTURES``."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneround.coordinator.aggregate import aggregate
from oneround.report import write_model_card, write_report
from oneround.runs.callbacks import Callback
from oneround.submission import read_submissions
from oneround.web.app import Place
from tests import tiny
from tests.web.conftest import STUDY, half

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine")


class Eyes:
    """A page, looked at: nothing is wider than the screen, nothing is blocked or fails."""

    def __init__(self, page: object, name: str) -> None:
        self.page, self.name, self.said = page, name, []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))

    def look(self, what: str) -> None:
        width = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert width <= 0, f"{what}: {width} pixels too wide"
        assert self.said == [], what
        if folder := os.environ.get("PICTURES"):
            path = Path(folder) / f"{what}-{self.name}.png"
            self.page.screenshot(path=path, full_page=True)


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")])
def eyes(request: pytest.FixtureRequest) -> Iterator[Eyes]:
    size, scheme = request.param
    width, height = SIZES[size]
    with playwright.sync_playwright() as driver:
        # the tests may run as root in a container, where Chromium has no sandbox
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme=scheme, locale="en-US"
        )
        page.set_default_timeout(20_000)
        yield Eyes(page, f"{size}-{scheme}")
        browser.close()


def log_in(eyes: Eyes, url: str, token: str) -> None:
    eyes.page.goto(url)
    eyes.look("login")
    eyes.page.get_by_label("Token").fill(token)
    eyes.page.get_by_role("button", name="Log in").click()
    eyes.page.wait_for_url(f"{url}/")


def upload(eyes: Eyes, file: Path, outcome: str) -> None:
    eyes.page.get_by_label("file of").set_input_files(file)
    eyes.page.get_by_role("button", name="Submit").click()
    eyes.page.get_by_role("heading", name=outcome).wait_for()


class WaitAtThird(Callback):
    """Waits at the third step until somebody has looked."""

    def __init__(self) -> None:
        self.steps, self.go_on, self.seen = 0, threading.Event(), threading.Event()

    def on_progress(self, *step: object) -> None:
        self.steps += 1
        if self.steps == 3:
            self.seen.set()
            assert self.go_on.wait(60)


def aggregated(files: list[Path], run: Path, watched: WaitAtThird) -> None:
    """A whole run, with its pages."""
    submissions = read_submissions(files, STUDY)
    aggregate(STUDY, submissions, out=run, options=tiny.HEADFIT, callbacks=[watched])
    write_report(run)
    write_model_card(run)


def test_from_login_to_report(
    eyes: Eyes, url: str, place: Place, files: dict[str, Path], tmp_path: Path
) -> None:
    page, state = eyes.page, place.intake.state
    shutil.copy(files["south"], place.intake.inbox.folder)

    # North: a broken file, then the right one.
    log_in(eyes, url, state.new_token("north"))
    eyes.look("site")
    upload(eyes, half(files["north"], tmp_path), "Refused")
    assert "the end of the file is missing" in page.inner_text("main").lower()
    assert "What to do: Copy the file again" in page.inner_text("main")
    eyes.look("refused")
    page.get_by_role("link", name="Back to the study").click()
    upload(eyes, files["north"], "Accepted")
    eyes.look("accepted")
    page.get_by_role("link", name="Back to the study").click()
    assert page.get_by_text("There is nothing more to do").is_visible()
    upload(eyes, files["again"], "Refused")
    page.go_back()
    page.get_by_label("Replace").check()
    upload(eyes, files["again"], "Accepted")
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"{url}/login")

    # The coordinator: a broken file of west, then the run, without loading the page again.
    half(files["west"], place.intake.inbox.folder)
    page.goto(f"{url}/login?key={state.new_token(None, once=True)}")
    page.get_by_role("button", name="Log in").click()
    assert page.get_by_text("There is enough to start").is_visible()
    eyes.look("coordinator")
    watched, inbox = WaitAtThird(), place.intake.inbox.folder
    arguments = ([inbox / "north.oneround", inbox / "south.oneround"], place.run, watched)
    thread = threading.Thread(target=aggregated, args=arguments)
    thread.start()
    assert watched.seen.wait(60)
    page.get_by_role("progressbar").wait_for()
    eyes.look("running")
    watched.go_on.set()
    page.get_by_role("link", name="model-card.md").wait_for(timeout=60_000)
    thread.join()
    eyes.look("done")
    with page.expect_download() as download:
        page.get_by_role("link", name="config.json").click()
    assert Path(download.value.path()).read_bytes() == (place.run / "config.json").read_bytes()
    page.get_by_role("link", name="Report").click()
    page.get_by_role("heading", name="blood").wait_for()
    assert "Image bank" in page.inner_text("body")
    eyes.look("report")


def test_without_scripts(url: str, place: Place, files: dict[str, Path]) -> None:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        eyes = Eyes(browser.new_context(java_script_enabled=False).new_page(), "plain")
        eyes.look = lambda what: None
        log_in(eyes, url, place.intake.state.new_token("north"))
        upload(eyes, files["north"], "Accepted")
        browser.close()


def test_a_file_that_is_too_large_is_not_even_sent(
    eyes: Eyes, url: str, place: Place, files: dict[str, Path]
) -> None:
    place.intake.inbox.limit = 1000
    log_in(eyes, url, place.intake.state.new_token("north"))
    eyes.page.get_by_label("file of").set_input_files(files["north"])
    eyes.page.get_by_role("button", name="Submit").click()
    assert "more than any submission" in eyes.page.inner_text("form [role=status]")
    eyes.look("too-large")
    assert place.intake.state.receipts() == {}
