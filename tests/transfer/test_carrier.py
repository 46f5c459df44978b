"""Every carrier, against a real server of its kind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from oneround.errors import OneRoundError
from oneround.transfer import Carrier
from oneround.transfer import carrier as carrier_module
from tests import servers

BUCKETS = itertools.count()
CONTENT = bytes(range(256)) * 9000  # more than two chunks


@dataclass
class Place:
    """A folder at a carrier, and a way to look into it past the carrier."""

    url: str
    names: Callable[[], list[str]]
    read: Callable[[str], bytes]
    write: Callable[[str, bytes], Any]


def on_disk(url: str, folder: Path) -> Place:
    return Place(
        url,
        lambda: sorted(path.name for path in folder.iterdir()),
        lambda name: (folder / name).read_bytes(),
        lambda name, content: (folder / name).write_bytes(content),
    )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return servers.self_signed(tmp_path_factory.mktemp("tls") / "localhost.pem")


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    (tmp_path / "share").mkdir()
    return on_disk(str(tmp_path / "share"), tmp_path / "share")


@pytest.fixture
def sftp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with servers.sftp_server(tmp_path) as server:
        monkeypatch.setenv("HOME", str(tmp_path))
        yield on_disk(server.url, server.home)


@pytest.fixture
def webdav(tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("ONEROUND_PASSWORD", "open sesame")
    (tmp_path / "dav").mkdir()
    with servers.webdav_server(tmp_path / "dav", certificate, "open sesame") as server:
        yield on_disk(server.url, server.home)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "north",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    bucket = f"blood-{next(BUCKETS)}"
    client.create_bucket(Bucket=bucket)

    def names() -> list[str]:
        found = client.list_objects_v2(Bucket=bucket, Prefix="drop/").get("Contents", [])
        return [entry["Key"].removeprefix("drop/") for entry in found]

    yield Place(
        f"s3://{bucket}/drop",
        names,
        lambda name: client.get_object(Bucket=bucket, Key=f"drop/{name}")["Body"].read(),
        lambda name, content: client.put_object(Bucket=bucket, Key=f"drop/{name}", Body=content),
    )
    server.stop()


@pytest.fixture(params=["folder", "sftp", "webdav", "s3"])
def place(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "local").mkdir()
    path = tmp_path / "local" / "north.oneround"
    path.write_bytes(CONTENT)
    return path


def test_there_and_back(place: Place, file: Path, tmp_path: Path) -> None:
    carrier = Carrier(place.url)
    assert carrier.items() == []
    receipt = carrier.send(file)
    assert (receipt.sent, receipt.compared, receipt.size) == (True, True, len(CONTENT))
    assert place.names() == ["north.oneround"]
    assert place.read("north.oneround") == CONTENT
    [item] = Carrier(place.url).items()
    assert (item.name, item.size) == ("north.oneround", len(CONTENT))
    assert item.modified is not None
    (tmp_path / "inbox").mkdir()
    fetched = carrier.fetch(item, tmp_path / "inbox")
    assert fetched.read_bytes() == CONTENT
    assert abs(fetched.stat().st_mtime - item.modified.timestamp()) < 1
    assert list((tmp_path / "inbox").iterdir()) == [fetched]


def test_safe_to_repeat(place: Place, file: Path) -> None:
    assert Carrier(place.url).send(file).sent
    assert not Carrier(place.url).send(file).sent
    file.write_bytes(CONTENT[:-1])
    with pytest.raises(OneRoundError, match="another file of this name") as caught:
        Carrier(place.url).send(file)
    assert "--replace" in caught.value.remedy
    assert place.read("north.oneround") == CONTENT
    assert Carrier(place.url).send(file, replace=True).sent
    assert place.read("north.oneround") == CONTENT[:-1]
    assert place.names() == ["north.oneround"]


def test_interrupted_and_repeated(
    place: Place, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off while it is compared: no half file under its name, and the next try is clean."""

    def stop(stage: str, done: int, total: int, note: str) -> None:
        if stage == "comparing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Carrier(place.url, stop).send(file)
    assert "north.oneround" not in place.names() or place.read("north.oneround") == CONTENT
    assert [item.name for item in Carrier(place.url).items()] in ([], ["north.oneround"])
    Carrier(place.url).send(file)
    assert place.names() == ["north.oneround"]


def test_what_arrives_changed_gets_no_name(
    place: Place, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carrier = Carrier(place.url)
    monkeypatch.setattr(carrier_module, "sha256", lambda _: "0" * 64)
    with pytest.raises(OneRoundError, match="did not arrive as it was sent"):
        carrier.send(file)
    assert place.names() == []


def test_other_files_are_passed_over(place: Place, file: Path) -> None:
    for name in ("readme.txt", ".north.oneround.1.part", "x.oneround.exe", "-x.oneround"):
        place.write(name, b"x")
    place.write("south.oneround.age", b"x")
    assert [item.name for item in Carrier(place.url).items()] == ["south.oneround.age"]


def test_progress_reaches_the_end(place: Place, file: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    Carrier(
        place.url, lambda stage, done, total, _: seen.setdefault(stage, []).append((done, total))
    ).send(file)
    assert seen.keys() >= {"comparing"}
    for steps in seen.values():
        assert steps[-1] == (len(CONTENT), len(CONTENT))
        assert steps == sorted(steps)


def test_missing_folder(place: Place, file: Path) -> None:
    if place.url.startswith("s3"):
        pytest.skip("S3 has no folders")
    with pytest.raises(OneRoundError, match="no such folder") as caught:
        Carrier(place.url.replace("drop", "nowhere").replace("share", "nowhere")).send(file)
    assert caught.value.remedy


def test_larger_than_any_submission(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write("large.oneround", bytes(3000))
    monkeypatch.setattr(carrier_module, "LIMIT_BYTES", 2000)
    carrier = Carrier(place.url)
    with pytest.raises(OneRoundError, match="larger than"):
        carrier.fetch(carrier.items()[0], tmp_path)
    assert not list(tmp_path.glob("*.oneround*"))


def test_names_that_nobody_would_collect(place: Place, file: Path) -> None:
    for name in ("north.bin", "_north.oneround", "north+2.oneround", "Gene\u0300ve.oneround"):
        other = file.with_name(name)
        other.write_bytes(CONTENT)
        with pytest.raises(OneRoundError, match="would skip a file") as caught:
            Carrier(place.url).send(other)
        assert "Rename" in caught.value.remedy
    assert place.names() == []


def test_a_file_that_cannot_be_fetched_is_named(place: Place, tmp_path: Path) -> None:
    place.write("north.oneround", CONTENT)
    carrier = Carrier(place.url)
    [item] = carrier.items()
    with pytest.raises(OneRoundError) as caught:
        carrier.fetch(replace(item, name="south.oneround"), tmp_path)
    assert str(caught.value.file).endswith("/south.oneround")


def test_unknown_host_key_is_refused(sftp: Place, file: Path, tmp_path: Path) -> None:
    (tmp_path / ".ssh" / "known_hosts").write_text("")
    with pytest.raises(OneRoundError, match="cannot be reached") as caught:
        Carrier(sftp.url)
    assert "known_hosts" in caught.value.remedy
    assert sftp.names() == []


def test_unknown_user_is_refused(sftp: Place, tmp_path: Path) -> None:
    (tmp_path / ".ssh" / "id_ed25519").unlink()
    with pytest.raises(OneRoundError, match="permission denied") as caught:
        Carrier(sftp.url)
    assert "ONEROUND_PASSWORD" in caught.value.remedy


def test_wrong_password(webdav: Place, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEROUND_PASSWORD", "wrong")
    with pytest.raises(OneRoundError, match="the server answers 401") as caught:
        Carrier(webdav.url).send(file)
    assert "wrong" not in str(caught.value)
    assert "ONEROUND_PASSWORD" in caught.value.remedy


def test_unknown_certificate_is_refused(
    webdav: Place, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(OneRoundError, match=r"(?i)certificate"):
        Carrier(webdav.url).send(file)


def test_nobody_answers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEROUND_TOKEN", "secret-token")
    for url in ("sftp://127.0.0.1:1/x", "webdavs://127.0.0.1:1/x", "https://127.0.0.1:1/x/"):
        with pytest.raises(OneRoundError) as caught:
            Carrier(url).send(file)
        assert caught.value.file == url
        assert "secret" not in str(caught.value)
        assert caught.value.remedy


def test_secrets_stay_out_of_urls_and_messages(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    with pytest.raises(OneRoundError, match="a password in a URL") as caught:
        Carrier("sftp://north:sesame@example.org/x")
    assert "sesame" not in str(caught.value)
    for url in ("sftp://north:sesa#me@example.org/x", "sftp://a:sesame/x", "sftp://[::1/sesame"):
        with pytest.raises(OneRoundError, match="this is not a URL") as caught:
            Carrier(url)
        assert "sesa" not in str(caught.value)
        assert caught.value.__cause__ is None
    monkeypatch.setenv("ONEROUND_TOKEN", "secret-token")
    with pytest.raises(OneRoundError, match="without TLS"):
        Carrier("http://example.org/x/")
    with pytest.raises(OneRoundError) as caught:
        Carrier("https://127.0.0.1:1/x?signature=sesame").send(file)
    assert "sesame" not in str(caught.value)


@pytest.fixture
def put(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.PutServer]:
    import ssl

    import aiohttp.connector

    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trusting)
    with servers.put_server(certificate) as server:
        monkeypatch.setenv("ONEROUND_TOKEN", server.token)
        yield server


def test_https_put(put: servers.PutServer, file: Path) -> None:
    receipt = Carrier(put.url).send(file)
    assert (receipt.sent, receipt.compared) == (True, True)
    assert put.files == {"/drop/north.oneround": CONTENT}
    assert not Carrier(put.url).send(file).sent
    with pytest.raises(OneRoundError, match="not listed"):
        Carrier(put.url).items()


def test_https_to_the_url_of_the_file_itself(put: servers.PutServer, file: Path) -> None:
    Carrier(f"{put.url}upload?signature=abc").send(file)
    assert put.files == {"/drop/upload?signature=abc": CONTENT}


def test_https_server_that_shows_nothing(put: servers.PutServer, file: Path) -> None:
    put.shows = False
    receipt = Carrier(put.url).send(file)
    assert (receipt.sent, receipt.compared) == (True, False)
    assert put.files == {"/drop/north.oneround": CONTENT}


def test_https_server_that_spoils_the_file(put: servers.PutServer, file: Path) -> None:
    put.spoils = True
    with pytest.raises(OneRoundError, match="did not arrive as it was sent"):
        Carrier(put.url).send(file)


def test_https_wrong_token(
    put: servers.PutServer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEROUND_TOKEN", "wrong-token")
    with pytest.raises(OneRoundError, match="the server answers 401") as caught:
        Carrier(put.url).send(file)
    assert "ONEROUND_TOKEN" in caught.value.remedy
    assert put.files == {}


def test_unknown_kind_of_url() -> None:
    with pytest.raises(OneRoundError, match="cannot be reached"):
        Carrier("gopher://example.org/x")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sshfs", None)
    with pytest.raises(OneRoundError, match="sshfs") as caught:
        Carrier("sftp://127.0.0.1/x")
    assert "oneround[sftp]" in caught.value.remedy


def test_file_that_cannot_be_read(folder: Place, tmp_path: Path) -> None:
    with pytest.raises(OneRoundError, match="cannot be read"):
        Carrier(folder.url).send(tmp_path / "missing.oneround")
    assert os.listdir(folder.url) == []
