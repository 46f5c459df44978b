from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from oneround.coordinator.history import Entry, Ledger
from oneround.web import app, middleware
from oneround.web.app import Place
from oneround.web.intake import Intake
from tests.web.conftest import Browser, half, names

Stranger = Callable[[], Browser]
Visit = Callable[[str | None], Browser]

PAGES = ["/", "/receipts/1", "/report", "/download/global.safetensors"]


def finished(run: Path) -> None:
    run.mkdir()
    for name in ("results.json", "report.html", "global.safetensors", "config.json", "log.txt"):
        (run / name).write_text(f"content of {name}")


# Logging in


@pytest.mark.parametrize("page", PAGES)
def test_nothing_without_a_token(stranger: Stranger, place: Place, page: str) -> None:
    finished(place.run)
    answer = stranger().get(page, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert stranger().get("/state").status_code == 401
    assert stranger().post("/upload", follow_redirects=False).headers["location"] == "/login"
    assert "blood" not in stranger().get(page).text, "not even the name of the study"


def test_a_site_logs_in_and_out(visitor: Visit, stranger: Stranger, intake: Intake) -> None:
    site = visitor("north")
    assert "Submit a file" in site.get("/").text
    (cookie,) = site.cookies.jar
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "strict"
    assert site.post("/logout", data={"csrf": "x"}).status_code == 403
    thief = stranger()
    thief.cookies.jar.set_cookie(cookie)
    assert thief.get("/state").status_code == 200
    assert site.post("/logout", data={"csrf": site.csrf}).url.path == "/login"
    assert thief.get("/state").status_code == 401, "the session has ended, not only the cookie"


def test_cookies_are_secure_with_tls(stranger: Stranger, intake: Intake) -> None:
    browser = stranger()
    browser.base_url = "https://127.0.0.1"
    browser.log_in(intake.state.new_token("north"))
    assert next(iter(browser.cookies.jar)).secure


@pytest.mark.parametrize("token", ["", "wrong", "ü" * 300, "\0"])
def test_wrong_tokens(stranger: Stranger, token: str) -> None:
    browser = stranger()
    answer = browser.log_in(token)
    assert answer.status_code == 403
    assert "not known here" in answer.text
    assert not browser.cookies


def test_a_revoked_token_ends_the_session(visitor: Visit, intake: Intake) -> None:
    site = visitor("north")
    intake.state.revoke("north")
    assert site.get("/").url.path == "/login"


def test_the_link_of_the_coordinator_is_used_up_by_the_button_alone(
    stranger: Stranger, intake: Intake
) -> None:
    key = intake.state.new_token(None, once=True)
    for _ in range(2):  # what looks at links before people do uses nothing up
        assert f'value="{key}"' in stranger().get("/login", params={"key": key}).text
    assert "<script>" not in stranger().get("/login", params={"key": '"><script>'}).text
    assert stranger().log_in(key).url.path == "/"
    assert stranger().log_in(key).status_code == 403


def test_attempts_are_limited(stranger: Stranger, intake: Intake) -> None:
    browser = stranger()
    codes = [browser.log_in("wrong").status_code for _ in range(12)]
    assert codes == [403] * 10 + [429] * 2
    assert browser.log_in(intake.state.new_token("north")).status_code == 429


def test_attempts_are_forgotten_after_a_minute() -> None:
    now = [0.0]
    attempts = middleware.Attempts(most=1, clock=lambda: now[0])
    attempts.failed("a")
    attempts.check("b")
    now[0] = 61
    attempts.check("a")


# Submitting


def test_submit(visitor: Visit, files: dict[str, Path], intake: Intake) -> None:
    site = visitor("north")
    answer = site.upload(files["north"])
    assert answer.url.path == "/receipts/1"
    assert "safely stored" in answer.text
    assert "here and accepted" in site.get("/").text
    assert names(intake.inbox.folder) == {"north.oneround"}
    assert "already-here" in site.upload(files["again"]).text
    assert "safely stored" in site.upload(files["again"], replace="yes").text


def test_a_bad_file_is_shown_with_its_remedy(
    visitor: Visit, files: dict[str, Path], intake: Intake, tmp_path: Path
) -> None:
    site = visitor("north")
    text = site.upload(half(files["north"], tmp_path)).text
    for part in ("truncated", "What to do: Copy the file again", "was not kept"):
        assert part in text
    assert "other-site" in site.upload(files["south"]).text
    assert names(intake.inbox.folder) == set()


def test_the_coordinator_and_old_pages_submit_nothing(
    visitor: Visit, files: dict[str, Path], intake: Intake
) -> None:
    assert visitor(None).upload(files["north"]).status_code == 403
    site = visitor("north")
    foreign = visitor("south").csrf
    answer = site.upload(files["north"], csrf=foreign)
    assert answer.status_code == 403
    assert "too old" in answer.text
    assert names(intake.inbox.folder) == set()


def test_whoever_falls_silent_is_not_waited_for(
    url: str, intake: Intake, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "SILENCE_SECONDS", 0.3)
    session = intake.state.log_in(intake.state.new_token("north"))
    host, csrf = url.removeprefix("http://"), intake.state.visitor(session).csrf
    request = (
        f"POST /upload HTTP/1.1\r\nHost: {host}\r\nCookie: {place.cookie}={session}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 9999\r\n\r\n"
        f'--b\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n{csrf}\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nbegin'
    )
    address, port = host.split(":")
    with socket.create_connection((address, int(port)), timeout=30) as connection:
        connection.sendall(request.encode())
        assert b" 408 " in connection.recv(1 << 16)
        while connection.recv(1 << 16):
            pass
    assert names(intake.inbox.folder) == set()


def test_few_uploads_of_a_site_at_a_time(
    visitor: Visit, files: dict[str, Path], place: Place
) -> None:
    site = visitor("north")
    place.uploads["north"] = app.UPLOADS
    assert site.upload(files["north"]).status_code == 429
    assert visitor("south").upload(files["south"]).url.path.startswith("/receipts/")
    place.uploads["north"] = 0
    assert site.upload(files["north"]).url.path.startswith("/receipts/")


def test_a_form_that_is_too_long(stranger: Stranger) -> None:
    browser = stranger()
    assert browser.log_in("x" * 5000).status_code == 413
    many = "&".join(f"a{k}=b" for k in range(20))
    assert browser.post("/login", content=many).status_code == 400
    assert browser.post("/login", content=b"token=\xff").status_code == 400


# Who sees what


def test_a_site_sees_others_only_as_far_as_needed(
    visitor: Visit, files: dict[str, Path], intake: Intake, tmp_path: Path
) -> None:
    visitor("south").upload(files["south"])
    visitor("south").upload(half(files["south"], tmp_path))
    half(files["west"], intake.inbox.folder)
    north, coordinator = visitor("north"), visitor(None)
    text = north.get("/").text
    assert text.count("<th>south</th>") == 1
    for part in ("truncated", "west.oneround", "refused", "Receipts", "oneround aggregate"):
        assert part not in text
        if part != "oneround aggregate":  # not enough yet
            assert part in coordinator.get("/").text
    assert north.get("/receipts/1").status_code == 404
    assert coordinator.get("/receipts/1").status_code == 200
    visitor("north").upload(files["north"])
    assert "oneround aggregate" in coordinator.get("/").text
    assert "oneround aggregate" not in north.get("/").text


def test_who_is_not_in_the_finished_model(
    visitor: Visit, files: dict[str, Path], place: Place
) -> None:
    for site in ("north", "south", "west"):
        visitor(site).upload(files[site])
    finished(place.run)
    assert "Not in it" not in visitor(None).get("/").text, "it has no ledger"
    hashes = {"north": "0", "south": "1"}
    entry = {"model": "", "created": "", "oneround": "", "method": "", "flops": 0, "folder": ""}
    full = Entry.model_validate(entry | {"submissions": hashes})
    Ledger(entries=[full]).write(place.run)
    text = visitor(None).get("/").text
    assert "Not in it: west." in text
    assert f"--extend {place.run} --out {place.run}-2" in text
    assert "--extend" not in visitor("west").get("/").text
    left = Entry.model_validate(entry | {"submissions": hashes, "withdrawn": ["west"]})
    Ledger(entries=[full, left]).write(place.run)
    assert "Not in it" not in visitor(None).get("/").text


def test_report_and_model_of_a_finished_run(visitor: Visit, place: Place) -> None:
    site, coordinator = visitor("north"), visitor(None)
    assert site.get("/download/config.json").status_code == 404
    finished(place.run)
    answer = site.get("/download/global.safetensors")
    assert answer.text == "content of global.safetensors"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert site.get("/report").status_code == 404
    assert "/report" not in site.get("/").text
    report = coordinator.get("/report")
    assert report.text == "content of report.html"
    assert "sandbox" in report.headers["content-security-policy"]
    assert "script" not in report.headers["content-security-policy"]
    place.share_report = True
    assert site.get("/report").status_code == 200


@pytest.mark.parametrize(
    "name",
    ["log.txt", "results.json", "", "%2e", "%2e%2e", "%2e%2e%2fsecret", "..%2f..%2fsecret",
     "model-card.md", "config.json%00", "/etc/passwd", "%2fetc%2fpasswd", "Config.json"],
)  # fmt: skip
def test_nothing_else_can_be_fetched(visitor: Visit, place: Place, name: str) -> None:
    finished(place.run)
    (place.run.parent / "secret").write_text("secret")
    assert visitor(None).get(f"/download/{name}").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/docs", "/redoc", "/openapi.json", "/download", "/inbox", "/receipts/x", "/receipts/9" * 99,
     "/receipts/99999999999999999999", "/static/", "/.oneround.sqlite", "/serve.css"],
)  # fmt: skip
def test_there_are_no_other_pages(visitor: Visit, path: str) -> None:
    answer = visitor(None).get(path)
    assert answer.status_code == 404
    assert "There is no such page." in answer.text


# Every request, every answer


def test_headers(visitor: Visit, stranger: Stranger, place: Place) -> None:
    finished(place.run)
    answers = [visitor(None).get(p) for p in (*PAGES, "/page.css", "/page.js", "/state", "/none")]
    answers += [stranger().get("/login"), stranger().get("/", headers={"Host": "x"})]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
    for page in (answers[0], stranger().get("/login")):
        assert "style=" not in page.text, "the policy would not let it through"
        assert "http" not in page.text.replace("http-equiv", ""), "nothing from elsewhere"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.", "x" * 9]
)
def test_other_hosts_are_refused(stranger: Stranger, host: str) -> None:
    assert stranger().get("/login", headers={"Host": host}).status_code == 400
    assert stranger().get("/login", headers={"Host": "localhost:8765"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9"}, 403),
        ({"Origin": "http://127.0.0.1"}, 303),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 303),
        ({}, 303),
    ],
)
def test_forms_of_other_pages_are_refused(
    stranger: Stranger, intake: Intake, headers: dict[str, str], status: int
) -> None:
    data = {"token": intake.state.new_token("north")}
    answer = stranger().post("/login", data=data, headers=headers, follow_redirects=False)
    assert answer.status_code == status


def test_names_from_strangers_are_text(
    visitor: Visit, files: dict[str, Path], intake: Intake
) -> None:
    shutil.copy(
        files["north"], intake.inbox.folder / "a(b) & <b>.oneround"
    )  # not a name of a submission
    shutil.copy(Path(__file__), intake.inbox.folder / "日本 (1).oneround")
    text = visitor(None).get("/").text
    assert "日本 (1).oneround" in text
    assert "<b>" not in text


def test_the_page_offers_the_study_and_the_commands_of_a_site(
    visitor: Visit, place: Place, stranger: Callable[[], Browser]
) -> None:
    place.study_file.write_text("name = 'blood'")
    signature = place.study_file.with_name(f"{place.study_file.name}.sig")
    north = visitor("north")
    assert signature.name not in north.get("/").text
    assert north.get(f"/study/{signature.name}").status_code == 404
    signature.write_text("{}")
    text = north.get("/").text
    for command in (
        "oneround train blood.toml --data IMAGES --site north --out north.oneround "
        "--signed-by coordinator.pub",
        "oneround submit north.oneround URL",
    ):
        assert f'<pre tabindex="0">{command}</pre>' in text
    assert "oneround seal blood" not in text  # the study does not ask for it
    assert north.get("/study/blood.toml").text == "name = 'blood'"
    assert north.get(f"/study/{signature.name}").text == "{}"
    for name in ("other.toml", "..%2Fblood.toml", ".oneround.sqlite"):
        assert north.get(f"/study/{name}").status_code == 404
    answer = stranger().get("/study/blood.toml", follow_redirects=False)
    assert answer.headers["location"] == "/login"


def test_a_refused_file_is_in_the_row_of_its_site(
    visitor: Visit, files: dict[str, Path], intake: Intake
) -> None:
    half(files["south"], intake.inbox.folder)
    rows = {
        site: re.search(r"<th>south</th>\s*<td[^>]*>(\w+)", visitor(site).get("/").text)[1]
        for site in (None, "south", "north")
    }
    assert rows == {None: "refused", "south": "refused", "north": "missing"}


def test_a_site_sees_what_was_found_in_its_own_file(
    visitor: Visit, files: dict[str, Path], intake: Intake
) -> None:
    half(files["south"], intake.inbox.folder)
    seen = {site: visitor(site).get("/").text for site in (None, "south", "north")}
    assert ["What to do" in seen[site] for site in (None, "south", "north")] == [True, True, False]


def test_a_full_disk_is_said_on_a_page(
    place: Place, stranger: Callable[[], Browser], intake: Intake
) -> None:
    once = intake.state.new_token(None, once=True)
    intake.state._database.execute("PRAGMA query_only = ON")
    answer = stranger().log_in(once)
    assert answer.status_code == 500
    assert "The server cannot do this now" in answer.text
