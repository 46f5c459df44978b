import pytest

from oneround.report.summary import Row, rows, verdict


def row(name: str, kind: str, accuracy: float) -> Row:
    metrics = {"accuracy": accuracy, "images": 1000}
    return Row(name, kind, metrics, None)


SITES = [row("north", "sites", 0.7), row("south", "sites", 0.8)]


def test_better_and_worse_are_both_said():
    models = [row("Global model", "global", 0.85), row("Ensemble", "ensemble", 0.9), *SITES]
    assert verdict(models).replace("\u202f", " ") == (
        "The global model reaches 85.0 % accuracy on 1,000 test images: 5.0 points above the best "
        "site alone, south (80.0 %) and 5.0 points below the ensemble (90.0 %)."
    )


def test_the_paired_interval_of_a_difference_is_said():
    ensemble = row("Ensemble", "ensemble", 0.8)
    ensemble.metrics["difference"] = {"intervals": {"accuracy": (-0.012, 0.031)}}
    sentence = verdict([row("Global model", "global", 0.81), ensemble]).replace("\u202f", " ")
    assert sentence.endswith(
        "1.0 points above the ensemble (80.0 %; 95 % interval of the difference −1.2 to +3.1 "
        "points)."
    )


def test_equal_models_are_level():
    assert "level with one-shot FedAvg" in verdict(
        [row("Global model", "global", 0.5), row("One-shot FedAvg", "fedavg", 0.5001)]
    )


@pytest.mark.parametrize("models", [None, {}, {"sites": [], "global": None}])
def test_no_metrics(models):
    assert rows({"models": models}) == []
    assert "Evaluation happens at the sites" in verdict([])


def test_rows_say_what_was_sent():
    metrics = {"accuracy": 0.5}
    results = {
        "models": {"sites": [{"site": "north", **metrics}], "global": metrics, "fedavg": None},
        "cost": {"bytes_sent": 30},
        "submissions": [{"site": "north", "bytes": 10}],
    }
    assert [(r.name, r.bytes_sent) for r in rows(results)] == [("Global model", 30), ("north", 10)]
