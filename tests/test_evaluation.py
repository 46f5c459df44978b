import time

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from scipy.stats import binomtest, bootstrap
from torch import nn
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_precision,
    multiclass_specificity,
)

from oneround.data.image_set import ImageSet
from oneround.errors import OneRoundError
from oneround.evaluation import compare, evaluate, measure, predict
from oneround.study import ImageSpec

CLASSES = ("a", "b", "c", "d")


def predictions(images: int, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += 1.0
    return logits.softmax(dim=1), labels


def test_point_values_equal_torchmetrics():
    probabilities, labels = predictions(300)
    metrics = measure(probabilities, labels, CLASSES, resamples=10)
    assert metrics.images == 300
    for value, reference in [
        (metrics.accuracy, multiclass_accuracy(probabilities, labels, 4, average="micro")),
        (metrics.balanced_accuracy, multiclass_accuracy(probabilities, labels, 4)),
        (metrics.auroc, multiclass_auroc(probabilities, labels, 4)),
        (metrics.ece, multiclass_calibration_error(probabilities, labels, 4, n_bins=15)),
    ]:
        assert value == pytest.approx(float(reference), abs=1e-6)
    recall = multiclass_accuracy(probabilities, labels, 4, average="none")
    assert list(metrics.recall.values()) == pytest.approx(recall.tolist())
    assert metrics.confusion == multiclass_confusion_matrix(probabilities, labels, 4).tolist()


def test_rates_of_each_class_equal_torchmetrics():
    probabilities, labels = predictions(300)
    metrics = measure(probabilities, labels, CLASSES, resamples=100)
    specificity = multiclass_specificity(probabilities, labels, 4, average="none")
    assert list(metrics.specificity.values()) == pytest.approx(specificity.tolist())
    precision = multiclass_precision(probabilities, labels, 4, average="none")
    assert list(metrics.ppv.values()) == pytest.approx(precision.tolist())
    for c, name in enumerate(CLASSES):
        rest = probabilities.argmax(dim=1) != c
        assert metrics.npv[name] == pytest.approx(float((labels[rest] != c).float().mean()))
        assert metrics.prevalence[name] == pytest.approx(float((labels == c).float().mean()))
        for rate, intervals in metrics.class_intervals.items():
            low, high = intervals[name]
            assert low < getattr(metrics, rate)[name] < high


def test_a_share_of_all_or_none_has_the_interval_of_wilson():
    labels = torch.tensor([0] * 12 + [1] * 8)
    probabilities = torch.tensor([[0.9, 0.1]] * 20)
    metrics = measure(probabilities, labels, ("a", "b"), resamples=50)
    for rate, name, hits, cases in (("recall", "a", 12, 12), ("recall", "b", 0, 8)):
        wilson = binomtest(hits, cases).proportion_ci(method="wilson")
        expected = pytest.approx((wilson.low, wilson.high), abs=1e-6)
        assert metrics.class_intervals[rate][name] == expected
    ends = zip(*metrics.class_intervals["recall"].values(), strict=True)
    expected = tuple(sum(end) / 2 for end in ends)  # 12 of 12 and 0 of 8: no resample differs
    assert metrics.intervals["balanced_accuracy"] == pytest.approx(expected, abs=1e-6)
    assert metrics.ppv["b"] is None
    assert "b" not in metrics.class_intervals["ppv"]


def test_reliability_adds_up_to_the_calibration_error():
    metrics = measure(*predictions(300), CLASSES, resamples=0)
    gaps = [abs(bin.accuracy - bin.confidence) * bin.images for bin in metrics.reliability]
    assert sum(bin.images for bin in metrics.reliability) == 300
    assert sum(gaps) / 300 == pytest.approx(metrics.ece, abs=1e-6)


def test_patients_are_resampled_with_all_their_images():
    probabilities, labels = predictions(60)
    several = probabilities.repeat(5, 1), labels.repeat(5)
    patients = torch.arange(60).repeat(5) + 7
    alone = measure(probabilities, labels, CLASSES)
    clustered = measure(*several, CLASSES, patients=patients)
    assert (alone.patients, clustered.patients) == (None, 60)
    assert clustered.intervals["accuracy"] == pytest.approx(alone.intervals["accuracy"])
    assert clustered.intervals["auroc"] == pytest.approx(alone.intervals["auroc"], abs=1e-5)
    low, high = measure(*several, CLASSES).intervals["accuracy"]  # five times as sure, wrongly
    assert high - low < 0.6 * (alone.intervals["accuracy"][1] - alone.intervals["accuracy"][0])


def test_a_comparison_equals_a_paired_bootstrap_in_a_loop():
    probabilities, labels = predictions(150)
    worse = (probabilities + 0.3 * predictions(150, seed=5)[0]).div(1.3)
    found = compare(probabilities, worse, labels, resamples=2000)
    hits = [(p.argmax(1) == labels).numpy() for p in (probabilities, worse)]
    assert found.differing == int((hits[0] != hits[1]).sum())
    assert found.accuracy == pytest.approx(hits[0].mean() - hits[1].mean(), abs=1e-6)
    result = bootstrap(
        (hits[0].astype(float) - hits[1],), np.mean, n_resamples=2000, method="percentile",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    expected = (result.confidence_interval.low, result.confidence_interval.high)
    assert found.intervals["accuracy"] == pytest.approx(expected, abs=0.01)


def test_models_that_never_differ_may_differ_elsewhere():
    probabilities, labels = predictions(100)
    found = compare(probabilities, probabilities, labels, resamples=10)
    high = binomtest(0, 100).proportion_ci(method="wilson").high
    assert (found.accuracy, found.differing) == (0, 0)
    assert found.intervals["accuracy"] == pytest.approx((-high, high), abs=1e-6)


def test_absent_classes_count_nowhere():
    probabilities, labels = predictions(200)
    labels = labels % 2  # classes c and d are absent, though predicted
    metrics = measure(probabilities, labels, CLASSES, resamples=50)
    assert metrics.recall["c"] is None
    assert set(metrics.roc) == {"a", "b"}
    present = [metrics.recall["a"], metrics.recall["b"]]
    assert metrics.balanced_accuracy == pytest.approx(np.mean(present))
    assert metrics.auroc is not None


def test_one_class_only_has_no_auroc():
    probabilities, _ = predictions(20)
    metrics = measure(probabilities, torch.zeros(20, dtype=torch.int64), CLASSES, resamples=20)
    assert metrics.auroc is None
    assert set(metrics.intervals) == {"accuracy", "balanced_accuracy"}
    assert metrics.roc == {}


def test_one_image():
    metrics = measure(torch.tensor([[0.7, 0.3]]), torch.tensor([0]), ("a", "b"), resamples=20)
    assert metrics.accuracy == 1
    low, high = metrics.intervals["accuracy"]
    wilson = binomtest(1, 1).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high))
    assert metrics.intervals["balanced_accuracy"] == (low, high)


def test_intervals_equal_a_bootstrap_in_a_loop():
    probabilities, labels = predictions(150)
    intervals = measure(probabilities, labels, CLASSES, resamples=2000).intervals
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(400):
        drawn = torch.from_numpy(rng.integers(150, size=150))
        p, y = probabilities[drawn], labels[drawn]
        samples.append(
            [
                float(multiclass_accuracy(p, y, 4, average="micro")),
                float(multiclass_accuracy(p, y, 4)),
                float(multiclass_auroc(p, y, 4)),
            ]
        )
    reference = np.quantile(samples, [0.025, 0.975], axis=0).T
    assert np.allclose(list(intervals.values()), reference, atol=0.02)


def test_intervals_surround_the_value_and_depend_on_the_seed_alone():
    probabilities, labels = predictions(200)
    first, second = (measure(probabilities, labels, CLASSES, seed=3) for _ in range(2))
    assert first == second
    assert first.intervals != measure(probabilities, labels, CLASSES, seed=4).intervals
    for name, (low, high) in first.intervals.items():
        assert low < getattr(first, name) < high


def test_roc_is_thin_and_keeps_the_area():
    probabilities, labels = predictions(3000)
    metrics = measure(probabilities, labels, CLASSES, resamples=10)
    areas = []
    for curve in metrics.roc.values():
        false, true = torch.tensor(curve).T
        assert len(curve) <= 50
        assert curve[0] == (0, 0)
        assert curve[-1] == (1, 1)
        assert (false.diff() >= 0).all()
        assert (true.diff() >= 0).all()
        areas.append(float(torch.trapezoid(true, false)))
    assert np.mean(areas) == pytest.approx(metrics.auroc, abs=0.005)


def test_bootstrap_is_fast():
    probabilities, labels = predictions(3421, classes=8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.process_time()
        measure(probabilities, labels, [str(c) for c in range(8)])
        seconds = time.process_time() - start
    finally:
        torch.set_num_threads(threads)
    assert seconds < 2


def test_metrics_of_earlier_versions_are_read():
    metrics = measure(*predictions(50), CLASSES, resamples=10)
    names = (
        "specificity",
        "ppv",
        "npv",
        "prevalence",
        "class_intervals",
        "patients",
        "reliability",
    )
    old = metrics.model_dump(exclude={*names, "difference"})
    assert type(metrics).model_validate(old).specificity == {}


def test_metrics_survive_json():
    metrics = measure(*predictions(50), CLASSES, resamples=10)
    assert type(metrics).model_validate_json(metrics.model_dump_json()) == metrics


def test_bad_predictions():
    probabilities, labels = predictions(10)
    with pytest.raises(OneRoundError, match="not finite"):
        measure(probabilities * torch.nan, labels, CLASSES)
    with pytest.raises(OneRoundError, match="no image"):
        measure(probabilities[:0], labels[:0], CLASSES)
    with pytest.raises(ValueError, match="classes"):
        measure(probabilities, labels, ("a", "b"))


IMAGE = ImageSpec(channels=1, height=8, width=8, mean=(0.25,), std=(0.5,))


def images(count: int = 10, height: int = 8) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 1, height, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 2, ("a", "b"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 8), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))


def test_predict_normalizes_and_leaves_the_model_as_it_was():
    model, data = network(), images()
    model[1].eval()  # frozen inside a model in training mode
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probabilities = predict(model, data, IMAGE, batch_size=4)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    expected = model.eval()((data.images / 255 - 0.25) / 0.5).softmax(dim=1)
    assert torch.allclose(probabilities, expected, atol=1e-6)
    assert probabilities.dtype == torch.float32
    assert not probabilities.requires_grad


def test_logits_and_log_probabilities_are_the_same_to_predict():
    model, data = network(), images()
    again = predict(nn.Sequential(model, nn.LogSoftmax(dim=1)), data, IMAGE)
    assert torch.allclose(predict(model, data, IMAGE), again, atol=1e-6)


def test_evaluate_is_measure_of_predict_with_and_without_fabric():
    model, data = network(), images(40)
    metrics = evaluate(model, data, IMAGE, fabric=Fabric(accelerator="cpu", devices=1))
    assert metrics == measure(predict(model, data, IMAGE), data.labels, data.classes)


def test_evaluate_takes_the_patients_of_the_set():
    data, patients = images(40), torch.arange(40) // 2
    grouped = ImageSet(data.images, data.labels, data.classes, None, patients)
    metrics = evaluate(network(), grouped, IMAGE)
    assert metrics.patients == 20
    probabilities = predict(network(), data, IMAGE)
    assert metrics == measure(probabilities, data.labels, data.classes, patients=patients)


def test_bad_images():
    with pytest.raises(OneRoundError, match="study says"):
        predict(network(), images(height=9), IMAGE)
    with pytest.raises(OneRoundError, match="no image"):
        evaluate(network(), images(0), IMAGE)


@pytest.mark.parametrize("right", [True, False])
def test_interval_of_an_auroc_at_its_end_is_that_of_disjoint_pairs(right: bool) -> None:
    labels = torch.tensor([0] * 30 + [1] * 8)
    scores = torch.stack([1 - labels, labels], 1).float()
    found = measure(scores if right else scores.flip(1), labels, ["a", "b"], resamples=20)
    low, high = wilson_of(8 if right else 0, 8)
    assert found.auroc == (1 if right else 0)
    assert found.intervals["auroc"] == pytest.approx((low, high), abs=1e-4)


def test_interval_of_an_auroc_at_its_end_counts_patients() -> None:
    labels = torch.tensor([0] * 30 + [1] * 8)
    patients = torch.cat([torch.arange(30), torch.arange(30, 34).repeat(2)])
    scores = torch.stack([1 - labels, labels], 1).float()
    found = measure(scores, labels, ["a", "b"], patients=patients, resamples=20)
    assert found.intervals["auroc"] == pytest.approx(wilson_of(4, 4), abs=1e-4)


def wilson_of(hits: int, trials: int) -> tuple[float, float]:
    interval = binomtest(hits, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
