"""Cross-check of the client models: what one site says, compared with what the others say.

The coordinator has no image, so it compares the client models on structure noise. Networks that
have learned the same classes respond alike to what they have never seen: where one raises its
output of a class, so do the others, more or less. For sites j and k, with z their logits for noise
images, centered over S, and S the classes that both claim to have,

    A_jk = mean_{c in S} corr(z_jc, z_kc) − mean_{c ≠ c' in S} corr(z_jc, z_kc')

and the agreement A_k of a site is the mean of A_jk over the other sites j, weighted by |S| − 1,
without the lowest, since that may be a liar's. With R_k the mean over j of the correlation
matrices, (classes, classes), the gap G_k is what its mean diagonal gains if the outputs of site k
are renamed in the best of all ways (linear assignment): little for an honest site, also for a poor
one; much if its labels are permuted or its outputs flipped. The fit of a site is the correlation
over classes of its mean outputs with the log of its class counts: a network answers what it does
not know as its training images were distributed.

A site is left out if

- one of its outputs is not finite;
- the weights of its last layer are ``WEIGHTS`` times as large or as small as the median of the
  others, or its outputs vary ``SPREAD`` times as much or as little;
- its gap is above ``GAP`` and its agreement below ``USUAL`` times the median of the others;
- its class counts differ much (``SKEW``), and its fit is below ``FIT``.

The worst site goes first, then the rest is compared again; most sites always stay. If agreement is
below ``DOUBT`` times that median, where skewed honest sites may be too, a site is used and not
named, and no student starts from its client model.

A number that only the site itself states is bounded: if its images are above ``MOST_IMAGES`` times
the median of the others, they count as that median, and a loss that is below ``LEAST_LOSS`` times
what the losses of the others suggest is not used. The constants were chosen on client models of
seeds that are not in benchmarks/liars; ``SPREAD`` is so wide that sites that have hardly trained
are not named.
What this cannot see: a lie about classes that no other site has, a model that was made to agree on
noise alone, and a majority of liars.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from statistics import median

import torch

from oneround.coordinator.agreement import FEWEST_SITES, agreements, centered
from oneround.data.structure_noise import NoiseOptions, StructureNoise
from oneround.errors import OneRoundError
from oneround.model_file import Suspect
from oneround.models.ensemble import Client, Ensemble
from oneround.models.inference import last_layer
from oneround.runs.run import CROSS_CHECK as STAGE
from oneround.runs.run import Run

IMAGES = 512  #: noise images that every client model is asked about
BATCH = 64  #: noise images in each batch
GAP = 0.4  #: largest gap times the root of the number of witnesses, up to 4
USUAL = 0.8  #: agreement, relative to the median of the others, from which a gap means nothing
DOUBT = 0.6  #: agreement, relative to that median, below which a site is no start of a student
WEIGHTS = 4.0  #: most that the last layer's weights are larger or smaller than that median
SPREAD = (1 / 100, 30.0)  #: smallest and largest spread of the outputs, relative to that median
SKEW = 2.5  #: standard deviation of the log class counts from which the fit is judged
TRAINED = 1.0  #: standard deviation of the mean outputs from which the fit is judged
FIT = 0.15  #: smallest correlation of mean outputs with log class counts
COPY = 0.25  #: distance of two models' weights below which one is a copy, relative to the median
MOST_IMAGES = 10  #: largest credible number of images, relative to the median of the other sites
LEAST_LOSS = 0.02  #: smallest credible loss, relative to its class mix and to the other sites


def cross_check(
    ensemble: Ensemble, run: Run, keep: Collection[str] = ()
) -> tuple[list[Client], list[Suspect]]:
    """The clients that a method may use, with bounded numbers, and who is suspected of what.

    Args:
        ensemble: All client models, on the device of ``run.fabric``.
        run: The run; the work is a stage of its own, outside its limit of FLOPs.
        keep: Sites that stay, and whose numbers count, whatever is found.
    """
    clients, found = list(ensemble.clients), list[Suspect]()
    if len(clients) < FEWEST_SITES:
        return clients, found
    outputs, live = _outputs(ensemble, run), list(range(len(clients)))
    while (suspect := _worst(ensemble, outputs, live)) is not None:
        number, why = suspect
        used = clients[number].site in keep
        what = "It is used all the same, as you asked." if used else "It is left out."
        found.append(Suspect(site=clients[number].site, why=f"{why} {what}", used=used))
        live.remove(number)
    believed = _credible_in_size(clients)
    for k, agreement in agreements(clients, outputs, live, believed).items():
        doubted = agreement.relative < DOUBT and clients[k].site not in keep
        clients[k] = replace(clients[k], doubted=doubted)
    out = {suspect.site for suspect in found if not suspect.used}
    clients = [client for client in clients if client.site not in out]
    copies = list(_copies(clients))
    alike = {suspect.site for suspect in copies if suspect.site not in keep}
    clients = [replace(c, doubted=True) if c.site in alike else c for c in clients]
    found += copies
    bounded = [k for k, client in enumerate(clients) if client.site not in keep]
    found += [suspect for k in bounded for suspect in _claims(k, clients)]
    return [_bounded(k, clients) if k in bounded else c for k, c in enumerate(clients)], found


def _outputs(ensemble: Ensemble, run: Run) -> list[torch.Tensor]:
    """Logits of each client model for structure noise, (N, classes) each."""
    stage = run.stage(STAGE)
    noise = StructureNoise(ensemble.task.image, NoiseOptions(contrast=1.0))
    meter, parts = stage.meter(), []
    for number in range(0, IMAGES, BATCH):
        x = stage.fabric.to_device(noise.sample(BATCH, stage.generator(number)))
        with meter.step("ask"), torch.no_grad():
            parts.append(torch.stack([model(x).float().cpu() for model in ensemble.models]))
        stage.tell(number + BATCH, IMAGES)
    stage.cost = meter.cost
    return list(torch.cat(parts, 1))


def _worst(
    ensemble: Ensemble, outputs: Sequence[torch.Tensor], live: Sequence[int]
) -> tuple[int, str] | None:
    """The most suspicious of the sites that are left, and why; ``None``: nobody, or more would be
    left out than half of the sites."""
    clients = ensemble.clients
    if broken := [k for k in live if not outputs[k].isfinite().all()]:
        return broken[0], "Some outputs of its client model are NaN or infinite."
    if len(live) < FEWEST_SITES or 2 * (len(clients) - len(live) + 1) >= len(clients):
        return None
    spread = {k: centered(outputs[k]).std(0).mean().item() for k in live}
    return (
        _outlier(spread, SPREAD, "The outputs of its client model vary {:.2g} times as much as")
        or _outlier(
            _last_weights(ensemble, live),
            (1 / WEIGHTS, WEIGHTS),
            "The weights of its last layer are {:.2g} times as large as",
        )
        or _contradicts_itself(ensemble, outputs, live)
        or _contradicted(clients, outputs, live)
    )


def _outlier(
    values: dict[int, float], bounds: tuple[float, float], what: str
) -> tuple[int, str] | None:
    """The site whose value, relative to the median of the others, is farthest beyond ``bounds``."""
    if len(values) < FEWEST_SITES:
        return None
    least = 1e-12
    ratio = {
        k: max(v, least) / max(least, median(w for j, w in values.items() if j != k))
        for k, v in values.items()
    }
    k = max(ratio, key=lambda k: abs(math.log(ratio[k])))
    return None if bounds[0] <= ratio[k] <= bounds[1] else (k, f"{what.format(ratio[k])} theirs.")


def _last_weights(ensemble: Ensemble, live: Sequence[int]) -> dict[int, float]:
    """Norm of the last layer's weights; none if architectures differ or end with another layer."""
    if len({str(client.architecture) for client in ensemble.clients}) > 1:
        return {}
    image, classes = ensemble.task.image, len(ensemble.task.classes)
    try:
        layers = {k: last_layer(ensemble.models[k], image, classes) for k in live}
    except OneRoundError:
        return {}
    return {k: layer.weight.norm().item() for k, layer in layers.items()}


def _contradicted(
    clients: Sequence[Client], outputs: Sequence[torch.Tensor], live: Sequence[int]
) -> tuple[int, str] | None:
    found = agreements(clients, outputs, live, _credible_in_size(clients))
    excess = {k: a.gap * min(a.witnesses, 4) ** 0.5 for k, a in found.items() if a.relative < USUAL}
    k = max(excess, key=lambda k: excess[k], default=None)
    if k is None or excess[k] <= GAP:
        return None
    return k, (
        "Its client model contradicts the others on which class is which "
        f"({found[k].relative:.2f} of their agreement)."
    )


def _contradicts_itself(
    ensemble: Ensemble, outputs: Sequence[torch.Tensor], live: Sequence[int]
) -> tuple[int, str] | None:
    fits = {
        k: torch.corrcoef(torch.stack([mean, mix.cpu()]))[0, 1].item()
        for k in live
        for mean, mix in [(centered(outputs[k]).mean(0), ensemble.log_priors[k])]
        if len(mix) > 2 and mix.std() >= SKEW and mean.std() >= TRAINED
    }
    if not fits or min(fits.values()) >= FIT:
        return None
    k = min(fits, key=lambda k: fits[k])
    return k, f"Its client model does not fit its class counts (correlation {fits[k]:.2f})."


def _copies(clients: Sequence[Client]) -> Iterator[Suspect]:
    """Both sites of a pair whose weights are far closer to each other than those of other pairs."""
    if len({str(client.architecture) for client in clients}) > 1 or len(clients) < FEWEST_SITES:
        return
    weights = [torch.cat([p.detach().flatten() for p in c.model.parameters()]) for c in clients]
    apart = {
        (j, k): ((weights[j] - weights[k]).norm() / weights[j].norm()).item()
        for j, k in itertools.combinations(range(len(clients)), 2)
    }
    usual = median(apart.values())
    for pair, distance in apart.items():
        if distance < COPY * usual:
            for one, other in (pair, reversed(pair)):
                why = f"Its client model is nearly that of {clients[other].site}. Both are used."
                yield Suspect(site=clients[one].site, why=why, used=True)


def _claims(k: int, clients: Sequence[Client]) -> Iterator[Suspect]:
    """What one site claims, beyond what the others make credible."""
    client, usual = clients[k], _usual_images(k, clients)
    if k not in _credible_in_size(clients):
        why = f"It claims {client.images} images, far more than the others; they count as {usual}."
        yield Suspect(site=client.site, why=why, used=True)
    if not _credible(k, clients):
        why = f"It claims a training loss of {client.loss:.1e}, which is not used."
        yield Suspect(site=client.site, why=why, used=True)


def _bounded(k: int, clients: Sequence[Client]) -> Client:
    """The client with numbers that the others make credible; one that claimed far more images is no
    start of a student."""
    client, usual = clients[k], _usual_images(k, clients)
    if k not in _credible_in_size(clients):
        counts = client.class_counts
        scaled = counts and tuple(round(n * usual / client.images) for n in counts)
        client = replace(client, images=usual, class_counts=scaled, doubted=not client.start)
    return client if _credible(k, clients) else replace(client, loss=None)


def _credible_in_size(clients: Sequence[Client]) -> set[int]:
    """Sites that do not claim far more images than the others."""
    return {
        k
        for k, client in enumerate(clients)
        if client.images <= MOST_IMAGES * _usual_images(k, clients)
    }


def _usual_images(k: int, clients: Sequence[Client]) -> int:
    others = [client.images for j, client in enumerate(clients) if j != k]
    return round(median(others)) if others else clients[k].images


def _credible(k: int, clients: Sequence[Client]) -> bool:
    """Whether the loss of a site is no smaller than what the others make credible."""
    relative = [_relative_loss(client) for client in clients]
    mine, others = relative[k], [r for j, r in enumerate(relative) if j != k and r is not None]
    return mine is None or not others or mine >= LEAST_LOSS * median(others)


def _relative_loss(client: Client) -> float | None:
    """Loss relative to the entropy of the class mix, which is the loss of a constant answer."""
    if client.loss is None or client.class_counts is None:
        return client.loss
    total = sum(client.class_counts) or 1
    shares = [count / total for count in client.class_counts if count]
    return client.loss / (0.01 - sum(share * math.log(share) for share in shares))
