"""Run the cells of a benchmark that are missing in its table; finished cells are not run again.

With one worker, cells run in this process. Several processes, on one machine or on many, are
managed by Dask: it knows that a cell waits for its client models, survives a worker that dies, and
can start workers on Slurm, PBS or Kubernetes (dask-jobqueue, dask-kubernetes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from oneround import methods, models
from oneround.coordinator.aggregate import limit, make_global_model
from oneround.errors import OneRoundError
from oneround.evaluation import Metrics, evaluate
from oneround.files import write_atomic
from oneround.methods import SimulatedSites
from oneround.model_file import Model
from oneround.research.benchmark import cells
from oneround.research.benchmark.grid import Bench, Cell, Setting, cells_of, content_hash
from oneround.research.simulation import train_sites
from oneround.runs.callbacks import Callback, Observer
from oneround.runs.cost import Cost
from oneround.runs.run import Run
from oneround.study import Study
from oneround.submission import Submission, read_submissions

IDENTITY = "identity"  #: file beside client models, written once all of them are there
Finished = tuple[cells.Cell, list[cells.CurvePoint]]


@dataclass
class Outcome:
    """Outcome of a benchmark.

    Attributes:
        wanted: Number of cells of the benchmark.
        finished: Number of cells that are in the table.
        failed: Cells that failed, with the reason.
    """

    wanted: int = 0
    finished: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def run_bench(
    bench: Bench,
    *,
    data: Path,
    out: Path,
    command: str,
    only: Sequence[str] = (),
    workers: int = 1,
    scheduler: str | None = None,
    callbacks: Sequence[Callback] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run each cell that is missing in ``out/cells.csv``, and add its row once it is finished.

    Args:
        bench: The benchmark.
        data: Folder of the data sets.
        out: Folder of the results: ``cells.csv``, ``curves.csv``, ``clients/`` (client models,
            shared by all methods) and ``runs/`` (one RUN folder for each cell).
        command: Command that repeats this benchmark; with ``--only CELL``, one cell.
        only: Hashes of the cells to run; empty: all.
        workers: Number of processes on this machine.
        scheduler: Address of a running Dask scheduler, in place of ``workers``. Its workers must
            see ``data`` and ``out`` under the same paths.
        callbacks: Called after every step in this process.
        tell: Called with one line about each cell.

    Raises:
        OneRoundError: another process works in ``out``, a data set cannot be read, or two
            entries are the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        grid = _unique(cells_of(bench, data))
        wanted = {key: cell for key, cell in grid.items() if not only or key in only}
        if only and len(wanted) < len(only):
            raise OneRoundError(
                f"there is no cell {sorted(set(only) - set(wanted))[0]} in this benchmark.",
                remedy="Cells are listed in cells.csv; did the file or the data change?",
            )
        known = _finished(grid, out, tell)
        outcome = Outcome(len(wanted), len(known & wanted.keys()))
        missing = {key: cell for key, cell in wanted.items() if key not in known}
        tell(f"{outcome.finished} of {outcome.wanted} cells are finished already")
        work = _here(missing, out, command, callbacks)
        if missing and (scheduler or workers > 1):
            work = _with_dask(missing, out, command, workers, scheduler)
        for key, result in work:
            if isinstance(result, str):
                outcome.failed[str(grid[key])] = result
                tell(f"failed: {grid[key]}: {result}")
                continue
            cells.append_cell(out, *result)
            outcome.finished += 1
            row = result[0]
            tell(
                f"{outcome.finished}/{outcome.wanted} {grid[key]}: balanced accuracy "
                f"{row.balanced_accuracy:.3f}, {row.flops:.3g} FLOPs, {row.seconds:.0f} s"
            )
    return outcome


def train_clients(setting: Setting, out: Path, callbacks: Sequence[Callback] = ()) -> Path:
    """Folder of the client models of a setting, which are trained if they are not there."""
    splits, study = setting.load()
    folder = _clients(setting, out)
    if _identity(folder) is None:
        torch.set_num_threads(setting.bench.threads)
        configuration = {"study": study.agreement(), "partition": setting.partition}
        resume = (folder / "configuration.json").exists()
        with Run(folder, configuration, seed=study.seed, resume=resume, callbacks=callbacks) as run:
            train_sites(run, study, setting.divide(splits, study))
        manifests = [submission.manifest for submission in _submissions(folder, study)]
        identity = content_hash({m.site: m.weights_sha256 for m in manifests})
        write_atomic(folder / IDENTITY, identity.encode())
    return folder


def _clients(setting: Setting, out: Path) -> Path:
    return out / "clients" / setting.hash


def _submissions(clients: Path, study: Study) -> list[Submission]:
    return read_submissions(sorted((clients / "submissions").glob("*.oneround")), study)


def _identity(clients: Path) -> str | None:
    """Hash of the weights of the client models; ``None`` if they are not all trained."""
    path = clients / IDENTITY
    return path.read_text(encoding="utf-8") if path.exists() else None


def _finished(grid: Mapping[str, Cell], out: Path, tell: Callable[[str], None]) -> set[str]:
    """Hashes of the cells that need not be run.

    All cells of a setting must have the same client models. Trained again on another machine,
    which rounds differently, they would be different models: so a setting whose cells are not all
    finished is run again if its client models are not in ``out`` any more.
    """
    rows = {row.cell: row.clients for row in cells.read_cells(out) if row.cell in grid}
    settings: dict[Setting, set[str]] = {}
    for key, cell in grid.items():
        settings.setdefault(cell.setting, set()).add(key)
    finished: set[str] = set()
    for setting, keys in settings.items():
        done = keys & rows.keys()
        whole = done == keys and len({rows[key] for key in keys}) == 1
        here = _identity(_clients(setting, out))
        kept = done if whole else {key for key in done if rows[key] == here}
        if len(kept) < len(done):
            tell(f"{setting}: {len(done - kept)} cells run again, client models are missing")
        finished |= kept
    return finished


def run_cell(
    cell: Cell, clients: Path, out: Path, command: str, callbacks: Sequence[Callback] = ()
) -> Finished:
    """Make and evaluate one global model; an interrupted cell continues where it stopped."""
    setting, method = cell.setting, methods.get(cell.entry.method)
    torch.set_num_threads(setting.bench.threads)
    splits, study = setting.load()
    assert splits.test is not None
    test, options, key = splits.test, cell.options(), cell.hash
    submitted = _submissions(clients, study)
    configuration = {
        "study": study.agreement(),
        "method": method.name,
        "options": options.model_dump(mode="json"),
        "submissions": {s.manifest.site: s.sha256 for s in submitted},
    } | limit(cell.entry.flops)

    def look(model: torch.nn.Module) -> dict[str, float]:
        metrics = evaluate(model, test, study.image, resamples=0)
        return {
            "accuracy": metrics.accuracy,
            "balanced_accuracy": metrics.balanced_accuracy,
        }

    identity = _identity(clients)
    folder = out / "runs" / f"{key}-{identity}"
    with Run(
        folder,
        configuration,
        seed=study.seed,
        resume=(folder / "configuration.json").exists(),
        callbacks=[*callbacks, Observer(look)],
        flops=cell.entry.flops or float("inf"),
        simulated=SimulatedSites(study, setting.divide(splits, study)),
    ) as run:
        made = make_global_model(run, study, submitted, method, options)
        metrics = evaluate(made.network, test, study.image, resamples=0)
        row = _row(cell, study, metrics, run.spent(), _bytes(made, submitted))
        names = {"clients": identity, "cell": key, "command": f"{command} --only {key}"}
        row = row.model_copy(update=names)
        curve = [cells.CurvePoint.model_validate(point) for point in run.observed()]
    end = {"accuracy": row.accuracy, "balanced_accuracy": row.balanced_accuracy}
    last = cells.CurvePoint.model_validate(end | {"flops": row.flops, "seconds": row.seconds})
    return row, [*curve, last]


def _row(cell: Cell, study: Study, metrics: Metrics, cost: Cost, sent: int) -> cells.Cell:
    setting = cell.setting
    recalls = [recall for recall in metrics.recall.values() if recall is not None]
    return cells.Cell(
        data=setting.source.name,
        partition=setting.partition,
        sites=setting.sites,
        seed=setting.seed,
        architecture=", ".join(map(str, study.architectures)),
        comparison=cell.entry.comparison,
        entry=cell.entry.label,
        method=cell.entry.method,
        accuracy=_rounded(metrics.accuracy),
        balanced_accuracy=_rounded(metrics.balanced_accuracy),
        auroc=None if metrics.auroc is None else _rounded(metrics.auroc),
        ece=_rounded(metrics.ece),
        worst_class=_rounded(min(recalls)),
        flops=cost.flops,
        seconds=round(cost.seconds, 1),
        peak_memory_bytes=cost.peak_memory_bytes,
        bytes_sent=sent,
        clients="-",
        cell="-",
        command="",
    )


def _rounded(value: float) -> float:
    return round(value, 5)


def _bytes(made: Model, submissions: Sequence[Submission]) -> int:
    """Bytes sent: each submission to the coordinator, and the global model to each site."""
    if made.bytes_sent is not None:
        return made.bytes_sent
    return sum(s.size for s in submissions) + len(submissions) * models.size_in_bytes(made.network)


def _unique(grid: Iterator[Cell]) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    for cell in grid:
        other = found.setdefault(cell.hash, cell)
        if other is not cell:
            raise OneRoundError(
                f"the cells {other} and {cell} are the same.",
                remedy="Remove one of the two entries from the benchmark.",
            )
    return found


def _here(
    missing: dict[str, Cell], out: Path, command: str, callbacks: Sequence[Callback]
) -> Iterator[tuple[str, Finished | str]]:
    """One cell after the other, in this process."""
    threads = torch.get_num_threads()
    try:
        for key, cell in missing.items():
            try:
                clients = train_clients(cell.setting, out, callbacks)
                yield key, run_cell(cell, clients, out, command, callbacks)
            except Exception as error:  # whatever it is, the other cells continue
                yield key, _reason(error)
    finally:
        torch.set_num_threads(threads)


def _with_dask(
    missing: dict[str, Cell], out: Path, command: str, workers: int, scheduler: str | None
) -> Iterator[tuple[str, Finished | str]]:
    """Many cells at a time, each after its client models.

    When a process dies, Dask counts it as a failure of every cell that waits for it. So local
    processes are given only the cells that they can work on, and cells of a process that died are
    tried again.
    """
    from distributed import as_completed

    with _client(workers, scheduler) as client:
        trained: dict[Setting, Any] = {}
        for number, cell in enumerate(missing.values()):
            if cell.setting not in trained:
                key = f"train-{cell.setting.hash}"
                work = (train_clients, cell.setting, out)
                trained[cell.setting] = client.submit(*work, key=key, priority=-number)

        def begin(number: int, key: str, cell: Cell) -> Any:
            work = (run_cell, cell, trained[cell.setting], out, command)
            return client.submit(*work, key=f"cell-{key}", priority=-number)

        waiting = (begin(number, *item) for number, item in enumerate(missing.items()))
        running = as_completed(islice(waiting, None if scheduler else workers))
        for future in running:
            error = future.exception()
            key = future.key.removeprefix("cell-")
            yield key, future.result() if error is None else _reason(error)
            running.update(islice(waiting, 1))


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A Dask client, of a cluster on this machine or of a running one."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise OneRoundError(
            "several processes need Dask, which is not installed.",
            remedy="pip install 'oneround[bench]', or use --workers 1.",
        ) from error
    if scheduler:
        with Client(scheduler) as client:
            yield client
        return
    settings = {
        "distributed.scheduler.allowed-failures": workers,  # all of them may die at once
        # Dask's setting of malloc gives memory back at once: torch runs at less than half its speed
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=None,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _reason(error: BaseException) -> str:
    if type(error).__name__ == "KilledWorker":
        return "the processes that worked on it died; is there enough memory?"
    return str(error) if isinstance(error, OneRoundError) else f"{type(error).__name__}: {error}"


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other processes out of the folder."""
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise OneRoundError(
            "another benchmark is running in this folder.",
            file=out,
            remedy="Wait until it is done, or choose another --out.",
        ) from error
