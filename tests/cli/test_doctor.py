from __future__ import annotations

from importlib.metadata import version

import pytest

from oneround.cli import doctor
from tests.cli.conftest import Call


def test_what_a_bug_report_needs(call: Call) -> None:
    content = call("doctor", "--json").json
    assert content["packages"]["torch"] == version("torch")
    assert {"python", "system", "device", "cores"} <= content["facts"].keys()
    assert content["missing"] == []
    assert version("torch") in call("doctor").out


def test_which_dicom_files_can_be_read(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    found = call("doctor", "--json").json["dicom"]
    assert found["Explicit VR Little Endian"] == ["pydicom"]
    assert "gdcm" in found["JPEG Lossless (process 14, SV1)"]
    lines = [line for line in call("doctor").out.splitlines() if "JPEG-LS Lossless" in line]
    assert "pyjpegls" in lines[0]
    monkeypatch.setattr(doctor, "decoders", lambda: {"JPEG 2000": [], "HTJ2K": ["pylibjpeg"]})
    assert "pip install 'oneround[dicom]'" in call("doctor").out
    monkeypatch.setattr(doctor, "decoders", lambda: None)
    assert call("doctor", "--json").json["dicom"] is None
    assert "pip install 'oneround[dicom]'" in call("doctor").out


def test_what_is_missing_is_told(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=999", "unheard-of>=1", 'nobody-has>=1; extra == "x"']
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    outcome = call("doctor")
    assert outcome.code == 1
    assert f"missing: torch>=999 (found {version('torch')})" in outcome.out
    assert "missing: unheard-of" in outcome.out
    assert "missing: nobody-has" not in outcome.out
