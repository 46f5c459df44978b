"""One self-contained HTML page for each run, made from the files in its folder."""

from oneround.report.page import write_report

__all__ = ["write_report"]
