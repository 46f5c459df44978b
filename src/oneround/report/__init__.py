"""The report of a run, as a self-contained HTML page, and the model card of its global model."""

from oneround.report.model_card import write_model_card
from oneround.report.page import write_report

__all__ = ["write_model_card", "write_report"]
