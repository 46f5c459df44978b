"""The job: run it in FLARE's simulator, or write it down for ``nvflare job submit``.

``python examples/nvflare/job.py --study STUDY --inbox INBOX --out RUN --hospitals FOLDER`` plays
the hospitals whose folders lie side by side in FOLDER; ``--export JOBS`` writes a folder instead.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from controller import OneRound
from nvflare.client.config import ExchangeFormat
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import ScriptRunner

from oneround.coordinator.inbox import expected_sites
from oneround.study import Study

HERE = Path(__file__).parent


def absolute(path: str) -> Path:
    """FLARE works in folders of its own."""
    return Path(path).absolute()


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description="One round with NVIDIA FLARE.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--hospitals", type=absolute, help="simulate these: a folder for each site")
    what.add_argument("--export", type=absolute, help="write the job into this folder")
    parser.add_argument("--study", type=absolute, required=True, help="study file")
    parser.add_argument("--inbox", type=absolute, required=True, help="folder of submissions")
    parser.add_argument("--out", type=absolute, required=True, help="RUN folder")
    parser.add_argument("--identity", type=absolute, help="opens encrypted submissions")
    parser.add_argument("--method", default="headfit")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--options", default="", help="as --set, separated by spaces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=24.0, help="for the answer of a client")
    parser.add_argument("--min-clients", type=int, default=1, help="FLARE starts with so many")
    return parser.parse_args()


def job(given: argparse.Namespace) -> FedJob:
    """The controller for the server, and the script for every site of the study."""
    made = FedJob("oneround", min_clients=given.min_clients)
    made.set_app_packages(["oneround"])  # installed at each site, never sent
    made.to_server(
        OneRound(
            study=str(given.study),
            inbox=str(given.inbox),
            out=str(given.out),
            identity=str(given.identity) if given.identity else "",
            method=given.method,
            preset=given.preset,
            options=given.options,
            seed=given.seed,
            hours=given.hours,
        )
    )
    os.chdir(HERE)  # an absolute path to the script would have to be there at every site
    for site in expected_sites(Study.read(given.study)):
        raw = {"framework": FrameworkType.RAW, "server_expected_format": ExchangeFormat.RAW}
        made.to(ScriptRunner("client.py", **raw), site)
    return made


def main() -> int:
    """Export, or simulate; 0 if all went well."""
    given = arguments()
    if given.export:
        job(given).export_job(str(given.export))
        print(f"written: {given.export / 'oneround'}")
        return 0
    os.environ["ONEROUND_SITE"] = str(given.hospitals)
    with tempfile.TemporaryDirectory(prefix="oneround-") as workspace:
        code = job(given).simulator_run(workspace)
    report = given.out / "report.html"
    print(f"report: {report}" if code == 0 and report.exists() else "there is no report")
    return 0 if code == 0 and report.exists() else 1


if __name__ == "__main__":
    raise SystemExit(main())
