"""The pages. A site sees who has submitted, and its own files; the coordinator sees everything."""

from __future__ import annotations

import asyncio
import hmac
import logging
import pathlib
import shlex
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from oneround.coordinator.inbox import Status, expected_sites
from oneround.errors import OneRoundError
from oneround.report import html, units
from oneround.signing import ENCRYPTED_SUFFIX, signature_path
from oneround.web import middleware
from oneround.web.database import SESSION_SECONDS, Visitor
from oneround.web.intake import Intake
from oneround.web.progress import DOWNLOADS, REPORT, RunState, run_state
from oneround.web.upload import Upload

FORM_BYTES = 4096
"""Most bytes of a form without a file."""

FORM_SECONDS = 15
"""Seconds within which a form without a file has to come, whole."""

SILENCE_SECONDS = 60
"""Seconds without a byte after which an upload is given up."""

UPLOADS = 2
"""Most uploads of a site at a time: one, and another after its connection broke."""

SHOWN = 50
"""Most receipts on the page."""

FOLDER = pathlib.Path(__file__).parent

log = logging.getLogger("oneround.web")
router = APIRouter(default_response_class=HTMLResponse)


@dataclass
class Place:
    """What all pages are about.

    Attributes:
        intake: The inbox, and what is kept beside it.
        run: RUN folder, which need not be there yet.
        study_file: Study file, for the command that is shown to the coordinator.
        cookie: Name of the cookie. Browsers share cookies among ports, so the port is in it.
        share_report: Whether sites may read the report too.
        delay: Seconds before a failed attempt to log in is answered.
        attempts: Failed attempts to log in, by address.
        uploads: Uploads under way, by site.
    """

    intake: Intake
    run: pathlib.Path
    study_file: pathlib.Path
    cookie: str = "oneround"
    share_report: bool = False
    delay: float = 1
    attempts: middleware.Attempts = field(default_factory=middleware.Attempts)
    uploads: Counter[str] = field(default_factory=Counter)


def make_app(place: Place, hosts: list[str]) -> ASGIApp:
    """The application.

    Args:
        place: What the pages are about.
        hosts: Host names by which browsers may call the server; any other is refused, as that of a
            page elsewhere that points its own name at this machine.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.place = place
    app.include_router(router)
    app.add_exception_handler(AnyHTTPException, _answered)
    app.add_exception_handler(RequestValidationError, _not_found)
    app.add_exception_handler(OneRoundError, _failed)
    return middleware.Guard(TrustedHostMiddleware(app, hosts, www_redirect=False))


def _place(request: Request) -> Place:
    found: Place = request.app.state.place
    return found


Here = Annotated[Place, Depends(_place)]


def _visitor(request: Request, here: Here) -> Visitor:
    visitor = here.intake.state.visitor(request.cookies.get(here.cookie, ""))
    if visitor is None:
        raise HTTPException(303, headers={"Location": "/login"})
    return visitor


Member = Annotated[Visitor, Depends(_visitor)]


@router.get("/login")
def login(key: str = "") -> HTMLResponse:
    """The form to log in; a link may bring the token along, and nothing is done with it yet."""
    return _page("login.html.j2", key=key[:200])


@router.post("/login")
async def log_in(request: Request, here: Here) -> Response:
    """A token for a session."""
    address = request.client.host if request.client else ""
    here.attempts.check(address)
    form = await _small_form(request)
    session = await run_in_threadpool(here.intake.state.log_in, form.get("token", "").strip())
    if session is None:
        here.attempts.failed(address)
        await asyncio.sleep(here.delay)
        return _page("login.html.j2", 403, failed=True)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        here.cookie, session, max_age=SESSION_SECONDS, httponly=True, samesite="strict",
        secure=request.url.scheme == "https",
    )  # fmt: skip
    return answer


@router.post("/logout")
async def log_out(request: Request, here: Here, visitor: Member) -> Response:
    """The end of a session."""
    given = (await _small_form(request)).get("csrf", "")
    if not hmac.compare_digest(given.encode(), visitor.csrf.encode()):
        raise HTTPException(403, "The page is too old. Load it again.")
    here.intake.state.log_out(request.cookies[here.cookie])
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(here.cookie, httponly=True, samesite="strict")
    return answer


@router.get("/")
def main_page(here: Here, visitor: Member) -> HTMLResponse:
    """The state of the study, and the form to submit a file."""
    own = here.intake.state.receipts(visitor.site, SHOWN)
    return _page(
        "main.html.j2",
        visitor=visitor,
        limit=here.intake.inbox.limit,
        receipts=own,
        study_files=_study_files(here),
        steps=_steps(here, visitor.site) if visitor.site else [],
        **_state(here, visitor),
    )


@router.get("/state")
def state(request: Request, here: Here) -> Response:
    """The part of the page that changes, for its script."""
    visitor = here.intake.state.visitor(request.cookies.get(here.cookie, ""))
    if visitor is None:
        return Response(status_code=401)
    return _page("state.html.j2", visitor=visitor, **_state(here, visitor))


@router.post("/upload")
async def upload(request: Request, here: Here, visitor: Member) -> Response:
    """A file of the site that is logged in."""
    if visitor.site is None:
        raise HTTPException(403, "Only sites send files here. Put yours into the folder.")
    inbox = here.intake.inbox
    with (
        _one_of_few(here.uploads, visitor.site),
        Upload(
            inbox.folder, inbox.limit, visitor.csrf, request.headers.get("content-type", "")
        ) as file,
    ):
        async for chunk in _chunks(request):
            await run_in_threadpool(file.feed, chunk)
        await run_in_threadpool(file.finish)
        number = await run_in_threadpool(
            here.intake.receive, visitor.site, file.path, file.sha256, replace=file.replace
        )
    return RedirectResponse(f"/receipts/{number}", 303)


@router.get("/receipts/{number}")
def receipt(number: Annotated[int, Path(lt=1 << 63)], here: Here, visitor: Member) -> HTMLResponse:
    """What was done with a file."""
    found = here.intake.state.receipt(number)
    if found is None or visitor.site not in (None, found.site):
        raise HTTPException(404)
    return _page("receipt.html.j2", visitor=visitor, number=number, receipt=found)


@router.get("/report")
def report(here: Here, visitor: Member) -> Response:
    """The report of the run."""
    if not _may_read_report(here, visitor) or not run_state(here.run).report:
        raise HTTPException(404)
    headers = {"Content-Security-Policy": middleware.REPORT}
    return FileResponse(here.run / REPORT, media_type="text/html", headers=headers)


@router.get("/download/{name}")
def download(name: str, here: Here, visitor: Member) -> Response:
    """One of the files that a finished run hands out."""
    if name not in dict(run_state(here.run).files):
        raise HTTPException(404)
    return FileResponse(
        here.run / name,
        media_type="application/octet-stream",
        filename=name,
        headers={"Content-Security-Policy": middleware.FILE},
    )


@router.get("/study/{name}")
def study(name: str, here: Here, visitor: Member) -> Response:
    """The study file or its signature, as they are on the disk."""
    if name not in dict(_study_files(here)):
        raise HTTPException(404)
    return FileResponse(
        here.study_file.with_name(name),
        media_type="application/octet-stream",
        filename=name,
        headers={"Content-Security-Policy": middleware.FILE},
    )


@router.get("/page.css")
def style() -> Response:
    """The style of the report, and what these pages have beside it."""
    files = (pathlib.Path(html.__file__).with_name("page.css"), FOLDER / "serve.css")
    return Response("".join(file.read_text("utf-8") for file in files), media_type="text/css")


@router.get("/page.js")
def script() -> Response:
    """Without it the pages work too, but do not change by themselves."""
    return FileResponse(FOLDER / "serve.js", media_type="text/javascript")


def _state(here: Place, visitor: Visitor) -> dict[str, Any]:
    found, run = here.intake.inbox.status(), run_state(here.run)
    late = _not_in(found, run)
    return {
        "found": found,
        "expected": expected_sites(here.intake.inbox.study),
        "run": run,
        "late": late,
        "downloads": DOWNLOADS,
        "report": run.report and _may_read_report(here, visitor),
        "command": _command(here, found, run, late) if visitor.site is None else "",
    }


def _not_in(found: Status, run: RunState) -> list[str]:
    """The sites whose accepted files are not in the global model that is done."""
    if run.sites is None:
        return []
    there = [file.site for file in found.files if file.accepted and file.site]
    return [site for site in there if site not in run.sites]


def _command(here: Place, found: Status, run: RunState, late: list[str]) -> str:
    """What the coordinator may do next."""
    if not found.enough or not (late or run.phase in ("waiting", "stopped")):
        return ""
    inbox = here.intake.inbox
    files = [str(inbox.folder / file.file) for file in found.files if file.accepted]
    return shlex.join(
        ["oneround", "aggregate", str(here.study_file), *files]
        + (
            ["--extend", str(here.run), "--out", f"{here.run}-2"]
            if late
            else ["--out", str(here.run)]
        )
        + (["--identity", str(inbox.identity.path)] if inbox.identity else [])
        + (["--resume"] if run.phase == "stopped" else [])
    )


def _study_files(here: Place) -> list[tuple[str, str]]:
    """Names of the files that a site needs, and what they are."""
    file, signature = here.study_file, signature_path(here.study_file)
    files = {file: "the study", signature: "its signature, which belongs beside it"}
    return [(path.name, about) for path, about in files.items() if path.is_file()]


def _steps(here: Place, site: str) -> list[tuple[str, str]]:
    """What a site does, one command after the other, and why."""
    study, file = here.intake.inbox.study, here.study_file
    signed = ["--signed-by", "coordinator.pub"] if signature_path(file).is_file() else []
    made = leaves = f"{site}.oneround"
    train = ["train", file.name, "--data", "IMAGES", "--site", site, "--out", made]
    steps = [("Train, where the images are:", train + signed)]
    spec = study.submission
    if spec.keys or spec.encrypt_to:
        leaves += ENCRYPTED_SUFFIX if spec.encrypt_to else ""
        key = ["--key", f"{site}.key"] if spec.keys else []
        what = " and ".join(["sign"] * bool(spec.keys) + ["encrypt"] * bool(spec.encrypt_to))
        steps.append((f"{what.capitalize()} it:", ["seal", file.name, made, *key, *signed]))
    steps.append((f"Submit {leaves} with the form of this page, or, if you were given the URL of a "
                  "folder:", ["submit", leaves, "URL"]))  # fmt: skip
    return [(about, shlex.join(["oneround", *words])) for about, words in steps]


def _may_read_report(here: Place, visitor: Visitor) -> bool:
    return visitor.site is None or here.share_report


async def _small_form(request: Request) -> dict[str, str]:
    content = b""
    try:
        async with asyncio.timeout(FORM_SECONDS):
            async for chunk in _chunks(request):
                content += chunk
                if len(content) > FORM_BYTES:
                    raise HTTPException(413, "The form is too long.")
    except TimeoutError as error:
        raise HTTPException(408, "The form came too slowly. Send it again.") from error
    try:
        fields = parse_qs(content.decode(), max_num_fields=8)
    except ValueError as error:
        raise HTTPException(400, "The form cannot be read.") from error
    return {name: values[0] for name, values in fields.items()}


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes; nobody who falls silent or goes away is waited for."""
    stream = aiter(request.stream())
    try:
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                chunk = await anext(stream)
            yield chunk
    except StopAsyncIteration:
        return
    except TimeoutError as error:
        raise HTTPException(408, "Nothing has come for a minute. Send the file again.") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "The connection broke. Send the file again.") from error


@contextmanager
def _one_of_few(uploads: Counter[str], site: str) -> Iterator[None]:
    if uploads[site] >= UPLOADS:
        raise HTTPException(429, "Other uploads of this site are under way. Wait until they end.")
    uploads[site] += 1
    try:
        yield
    finally:
        uploads[site] -= 1


def _page(name: str, status: int = 200, **content: Any) -> HTMLResponse:
    return HTMLResponse(_PAGES.get_template(name).render(**content), status)


def _answered(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHTTPException)
    if error.status_code == 303:
        return Response(status_code=303, headers=error.headers)
    text = "There is no such page." if error.status_code == 404 else error.detail
    answer = _page("error.html.j2", error.status_code, text=text)
    answer.headers.update(error.headers or {})
    return answer


def _not_found(request: Request, error: Exception) -> Response:
    return _page("error.html.j2", 404, text="There is no such page.")


def _failed(request: Request, error: Exception) -> Response:
    log.error("%s", error)
    text = "The server cannot do this now. The coordinator finds the reason in its log."
    return _page("error.html.j2", 500, text=text)


_PAGES = html.environment(FOLDER)
_PAGES.globals["si"] = units.si
