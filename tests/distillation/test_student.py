from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from oneround.distillation.student import (
    Learner,
    StudentOptions,
    broadest_client,
    new_student,
)
from oneround.errors import OneRoundError
from oneround.models.ensemble import Ensemble, prior_corrected
from oneround.runs.loop import Loop
from oneround.runs.optimization import learning_rate
from oneround.runs.stage import Stage
from tests.tiny import (
    DENSENET,
    IMAGE,
    RESNET,
    TASK,
    clients,
    equal,
    global_model,
    network,
    seeded,
)


def options(**changes: Any) -> StudentOptions:
    return StudentOptions(**({"start": "scratch"} | changes))


def test_new_student_from_scratch() -> None:
    ensemble = Ensemble(clients(3), TASK)
    student, architecture = new_student(ensemble, options(), Stage("distillation", 1))
    again, _ = new_student(ensemble, options(), Stage("distillation", 1))
    other, _ = new_student(ensemble, options(), Stage("distillation", 2))
    assert architecture == RESNET
    assert equal(student, again)
    assert not equal(student, other)


def test_new_student_of_another_architecture() -> None:
    chosen = options(student=DENSENET)
    student, architecture = new_student(Ensemble(clients(1), TASK), chosen, Stage("distillation"))
    assert architecture == DENSENET
    assert student(torch.zeros(2, *IMAGE.shape)).shape == (2, 3)


def test_new_student_from_the_site_with_the_most_of_every_class() -> None:
    def chosen(*counts: tuple[int, ...] | None) -> str:
        members = [
            dataclasses.replace(client, class_counts=c, images=sum(c or (90,)))
            for client, c in zip(clients(len(counts)), counts, strict=True)
        ]
        student, _ = new_student(Ensemble(members, TASK), options(start="auto"), Stage("x"))
        return next(c.site for c in members if equal(student, c.model))

    assert chosen((90, 5, 5), (30, 30, 30)) == "site-1", "balance counts"
    assert chosen((900, 90, 90), (30, 30, 30)) == "site-0", "size counts"
    assert chosen((90, 0, 0), None) == "site-1", "kept counts are taken as equal"
    assert chosen((60, 40, 40), None) == "site-0"


def test_of_sites_with_the_same_task_the_one_with_the_smallest_training_loss() -> None:
    def chosen(*sites: tuple[tuple[int, ...] | None, float | None]) -> str:
        members = [
            dataclasses.replace(client, class_counts=counts, images=100, loss=loss)
            for client, (counts, loss) in zip(clients(len(sites)), sites, strict=True)
        ]
        found = broadest_client(Ensemble(members, TASK))
        assert found
        return found.site

    a, b = (50, 20, 30), (48, 19, 31)
    assert chosen((a, 0.3), (b, 0.2), (b, 0.4)) == "site-1"
    assert chosen((a, 0.3), ((50, 30, 20), 0.2)) == "site-0", "another mix is another task"
    assert chosen((a, 0.3), ((25, 10, 15), 0.2)) == "site-0", "half as many images"
    assert chosen((None, 0.3), (a, 0.2)) == "site-0", "a task that is not known"
    assert chosen((None, 0.3), (None, 0.2)) == "site-0"
    assert chosen((b, None), (a, None)) == "site-1", "losses that are not known"
    assert chosen((a, None), (b, 0.2)) == "site-1"


def test_start_that_the_coordinator_chose() -> None:
    members = clients(3)
    members[0] = dataclasses.replace(members[0], start=True)
    found = broadest_client(Ensemble(members, TASK))
    assert found
    assert found.site == "site-0"


def test_new_student_without_the_class_mix_of_its_site() -> None:
    members = clients(3)
    student, _ = new_student(Ensemble(members, TASK), options(start="corrected"), Stage("x"))
    assert equal(student, prior_corrected(Ensemble(members, TASK)).clients[2].model)
    assert not equal(student, members[2].model)
    alike = [
        dataclasses.replace(m, class_counts=(9, 9, 9), loss=loss)
        for m, loss in zip(members, (0.3, 0.2, 0.4), strict=True)
    ]
    student, _ = new_student(Ensemble(alike, TASK), options(start="corrected"), Stage("x"))
    assert equal(student, prior_corrected(Ensemble(alike, TASK)).clients[1].model)
    student, _ = new_student(Ensemble(alike, TASK), options(start="auto"), Stage("x"))
    assert equal(student, alike[1].model)


def test_new_student_from_the_largest_site() -> None:
    members = clients(3)  # site-2 has the most images
    chosen = options(start="auto")
    ensemble = Ensemble(members, TASK)
    student, _ = new_student(ensemble, chosen, Stage("distillation"))
    assert equal(student, members[2].model)
    assert student is not ensemble.clients[2].model
    assert all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in ensemble.clients[2].model.parameters())
    of_another = chosen.model_copy(update={"student": DENSENET})
    fresh, architecture = new_student(Ensemble(members, TASK), of_another, Stage("distillation"))
    assert architecture == DENSENET
    scratch = of_another.model_copy(update={"start": "scratch"})
    assert equal(fresh, new_student(Ensemble(members, TASK), scratch, Stage("distillation"))[0])


def test_new_student_from_a_file(tmp_path: Path) -> None:
    saved = network(7)
    global_model(saved, RESNET, method="made up").save(tmp_path)
    chosen = options(start=str(tmp_path / "global.safetensors"))
    student, _ = new_student(Ensemble(clients(1), TASK), chosen, Stage("distillation"))
    assert equal(student, saved)
    assert all(p.requires_grad for p in student.parameters())
    other = chosen.model_copy(update={"student": DENSENET})
    with pytest.raises(OneRoundError, match="the model is not a densenet") as caught:
        new_student(Ensemble(clients(1), TASK), other, Stage("distillation"))
    assert caught.value.file == chosen.start


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 1500])
def test_one_cycle_is_torchs(steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=steps + 1, cycle_momentum=False
    )
    for step in range(steps):
        found = learning_rate("one-cycle", 0.05, step, steps)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), step
        optimizer.step()
        schedule.step()


def test_other_schedules() -> None:
    assert learning_rate("constant", 0.3, 7, 10) == 0.3
    assert [learning_rate("cosine", 0.2, p, 4) for p in (0, 2, 4)] == pytest.approx([0.2, 0.1, 0])
    steps = [learning_rate("step", 0.2, p, 4) for p in (0, 1.9, 2, 2.9, 3, 4)]
    assert steps == pytest.approx([0.2, 0.2, 0.02, 0.02, 0.002, 0.002])


def test_one_step_is_torchs_sgd_on_the_divergence() -> None:
    """Against the same step written out with torch alone."""
    teacher = torch.randn(4, 3, generator=seeded(1)).log_softmax(1)
    x = torch.randn(4, *IMAGE.shape, generator=seeded(2))
    chosen = options(schedule="constant", learning_rate=0.1, temperature=3.0, weight_decay=1e-3)
    learner = Learner(network(5), chosen, Stage("distillation"))
    entry = learner.learn(Loop(Stage("distillation"), 1), x, teacher)

    model = network(5).train()
    sgd = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-3, nesterov=True)
    loss = 9 * nn.functional.kl_div(
        (model(x) / 3).log_softmax(1),
        (teacher / 3).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    loss.backward()
    sgd.step()
    assert entry["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert entry.keys() == {"loss", "learning_rate", "agreement"}
    for mine, reference in zip(learner.student.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, reference, atol=1e-6)


def test_a_judging_student_does_not_change() -> None:
    learner = Learner(network(5), options(), Stage("distillation"))
    x = torch.randn(4, *IMAGE.shape, generator=seeded(2)).requires_grad_()
    with learner.judging() as judge:
        judge(x).sum().backward()
        assert torch.allclose(judge(x), network(5)(x), atol=1e-5), "as in eval mode"
    assert equal(learner.student, network(5))
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in learner.student.parameters())
    assert all(module.training for module in learner.student.modules())


def test_learning_from_batches_asks_the_teacher_and_leaves_off_when_over() -> None:
    ensemble = Ensemble(clients(2), TASK)
    batches = [torch.randn(4, *IMAGE.shape, generator=seeded(n)) for n in range(3)]
    by_hand, whole = (Learner(network(5), options(), Stage("distillation")) for _ in range(2))
    loop = Loop(Stage("distillation"), 1)
    for number, x in enumerate(batches):
        loop.within = number / 3
        entry = by_hand.learn(loop, x + 1, ensemble(x + 1))
    stage = Stage("distillation")
    found = whole.learn_all(loop := Loop(stage, 1), batches, 3, ensemble, lambda x: x + 1)
    assert equal(by_hand.student, whole.student)
    assert found == {name: entry[name] for name in ("loss", "learning_rate", "agreement")}
    limited = Loop(Stage("distillation", flops=loop.meter.flops / 2), 1)
    assert whole.learn_all(limited, batches, 3, ensemble)
    assert limited.meter.flops == pytest.approx(loop.meter.flops * 2 / 3)
    assert whole.learn_all(limited, batches, 3, ensemble) == {}, "it is over"
