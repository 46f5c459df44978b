"""Cross-check of the client models: what one site says, compared with what the others say.

The coordinator has no image, so it compares the client models on structure noise. Networks that
have learned the same classes respond alike to what they have never seen: where one raises its
output of a class, so do the others, more or less. For sites j and k, with z their logits for noise
images, centered over S, and S the classes that both claim to have,

    A_jk = mean_{c in S} corr(z_jc, z_kc) − mean_{c ≠ c' in S} corr(z_jc, z_kc')

and the agreement A_k of a site is the mean of A_jk over the other sites j, weighted by |S| − 1,
without the lowest, since that may be a liar's. A site is left out if A_k is below ``AGREEMENT``
times the median of the others (labels permuted, outputs flipped, random weights), if its outputs
vary ``SPREAD`` times as much or as little as the median of the others, or if one of its outputs is
not finite. The worst site goes first, then the rest is compared again; most sites always stay.
Below ``DOUBT``, where skewed honest sites may be too, a site is used and not named, and no student
starts from its client model.

A number that only the site itself states is bounded: its images count at most ``MOST_IMAGES``
times the median of the others, and a loss that is below ``LEAST_LOSS`` times what the losses of the
others suggest is not used. The constants were chosen on client models of seed 0, which is not in
benchmarks/liars; ``SPREAD`` is so wide that sites that have hardly trained are not named.
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

from oneround.data.structure_noise import NoiseOptions, StructureNoise
from oneround.model_file import Suspect
from oneround.models.ensemble import Client, Ensemble
from oneround.runs.run import CROSS_CHECK as STAGE
from oneround.runs.run import Run

IMAGES = 512  #: noise images that every client model is asked about
BATCH = 64  #: noise images in each batch
FEWEST_SITES = 3  #: number of sites below which nobody can be outvoted
KNOWN = 10  #: training images from which on a site counts as having a class
EVIDENCE = 4  #: smallest sum of |S| − 1 over the other sites from which agreement is judged
AGREEMENT = 0.4  #: smallest agreement, relative to the median of the others
DOUBT = 0.6  #: agreement, relative to that median, below which a site is no start of a student
LEAST_AGREEMENT = 0.1  #: median agreement of the others below which nobody is judged
SPREAD = (1 / 100, 30.0)  #: smallest and largest spread of the outputs, relative to that median
TWINS = 0.9  #: mean correlation from which two sites are no witnesses for each other
COPY = 0.25  #: distance of two models' weights below which one is a copy, relative to the median
MOST_IMAGES = 10  #: most images that count, relative to the median of the other sites
LEAST_LOSS = 0.02  #: smallest credible loss, relative to its class mix and to the other sites


def cross_check(
    ensemble: Ensemble, run: Run, keep: Collection[str] = ()
) -> tuple[list[Client], list[Suspect]]:
    """The clients that a method may use, with bounded numbers, and who is suspected of what.

    Args:
        ensemble: All client models, on the device of ``run.fabric``.
        run: The run; the work is a stage of its own, outside its limit of FLOPs.
        keep: Sites that stay, whatever is found.
    """
    clients, found = list(ensemble.clients), list[Suspect]()
    if len(clients) < FEWEST_SITES:
        return clients, found
    outputs, live = _outputs(ensemble, run), list(range(len(clients)))
    while (suspect := _worst(clients, outputs, live)) is not None:
        number, why = suspect
        used = clients[number].site in keep
        what = "It is used all the same, as you asked." if used else "It is left out."
        found.append(Suspect(site=clients[number].site, why=f"{why} {what}", used=used))
        live.remove(number)
    for k, ratio in _relative_agreement(clients, outputs, live).items():
        clients[k] = replace(clients[k], doubted=ratio < DOUBT and clients[k].site not in keep)
    out = {suspect.site for suspect in found if not suspect.used}
    clients = [client for client in clients if client.site not in out]
    copies = list(_copies(clients))
    alike = {suspect.site for suspect in copies if suspect.site not in keep}
    clients = [replace(c, doubted=True) if c.site in alike else c for c in clients]
    found += copies
    found += [suspect for k in range(len(clients)) for suspect in _claims(k, clients)]
    return [_bounded(k, clients) for k in range(len(clients))], found


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
    clients: Sequence[Client], outputs: Sequence[torch.Tensor], live: Sequence[int]
) -> tuple[int, str] | None:
    """The most suspicious of the sites that are left, and why; ``None``: nobody, or more would be
    left out than half of the sites."""
    if broken := [k for k in live if not outputs[k].isfinite().all()]:
        return broken[0], "Some outputs of its client model are NaN or infinite."
    if len(live) < FEWEST_SITES or 2 * (len(clients) - len(live) + 1) >= len(clients):
        return None
    return _unlike_in_spread(outputs, live) or _unlike_in_agreement(clients, outputs, live)


def _unlike_in_spread(
    outputs: Sequence[torch.Tensor], live: Sequence[int]
) -> tuple[int, str] | None:
    spread = {k: _centered(outputs[k]).std(0).mean().clamp_min(1e-12).item() for k in live}
    ratio = {k: spread[k] / median(spread[j] for j in live if j != k) for k in live}
    k = max(live, key=lambda k: abs(math.log(ratio[k])))
    if SPREAD[0] <= ratio[k] <= SPREAD[1]:
        return None
    return k, f"The outputs of its client model vary {ratio[k]:.2g} times as much as the others'."


def _unlike_in_agreement(
    clients: Sequence[Client], outputs: Sequence[torch.Tensor], live: Sequence[int]
) -> tuple[int, str] | None:
    found = _relative_agreement(clients, outputs, live)
    if not found or min(found.values()) >= AGREEMENT:
        return None
    k = min(found, key=lambda k: found[k])
    return k, (
        "Its client model contradicts the others on which class is which "
        f"({found[k]:.2f} of their agreement)."
    )


def _relative_agreement(
    clients: Sequence[Client], outputs: Sequence[torch.Tensor], live: Sequence[int]
) -> dict[int, float]:
    """Agreement of each site that can be judged, relative to the median of the others."""
    agreement = {k: a for k in live if (a := _agreement(k, clients, outputs, live)) is not None}
    if len(agreement) < FEWEST_SITES:
        return {}
    usual = {k: median(a for j, a in agreement.items() if j != k) for k in agreement}
    return {k: a / usual[k] for k, a in agreement.items() if usual[k] >= LEAST_AGREEMENT}


def _agreement(
    k: int, clients: Sequence[Client], outputs: Sequence[torch.Tensor], live: Sequence[int]
) -> float | None:
    """A_k; see the top of this module. ``None``: it shares too few classes with the others."""
    pairs = []
    for j in live:
        shared = sorted(_known(clients[j], outputs[j]) & _known(clients[k], outputs[k]))
        if j != k and len(shared) >= 2:
            match = _correlation(outputs[j][:, shared], outputs[k][:, shared])
            same, classes = match.trace().item(), len(shared)
            other = (match.sum().item() - same) / (classes * (classes - 1))
            if classes == 2 or same / classes < TWINS:  # who agrees with a copy agrees with itself
                pairs.append((same / classes - other, classes - 1))
    if sum(weight for _, weight in pairs) < EVIDENCE:
        return None
    kept = sorted(pairs)[1:] or pairs
    return sum(a * weight for a, weight in kept) / sum(weight for _, weight in kept)


def _known(client: Client, outputs: torch.Tensor) -> set[int]:
    """Classes of which the site claims images; all if it withholds its class counts."""
    counts = client.class_counts or (KNOWN,) * outputs.shape[1]
    return {c for c, count in enumerate(counts) if count >= KNOWN}


def _centered(z: torch.Tensor) -> torch.Tensor:
    return z - z.mean(1, keepdim=True)


def _correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Correlations over N images, (classes, classes), of centered outputs, (N, classes) each."""
    a, b = ((x - x.mean(0)) / x.std(0).clamp_min(1e-6) for x in map(_centered, (one, other)))
    return a.T @ b / len(a)


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
    client, most = clients[k], _most_images(k, clients)
    if client.images > most:
        why = f"It claims {client.images} images; they count as {most}."
        yield Suspect(site=client.site, why=why, used=True)
    if not _credible(k, clients):
        why = f"It claims a training loss of {client.loss:.1e}, which is not used."
        yield Suspect(site=client.site, why=why, used=True)


def _bounded(k: int, clients: Sequence[Client]) -> Client:
    """The client with numbers that the others make credible; one that claimed far more images is no
    start of a student."""
    client, most = clients[k], _most_images(k, clients)
    if client.images > most:
        counts = client.class_counts
        scaled = counts and tuple(round(n * most / client.images) for n in counts)
        client = replace(client, images=most, class_counts=scaled, doubted=not client.start)
    return client if _credible(k, clients) else replace(client, loss=None)


def _most_images(k: int, clients: Sequence[Client]) -> int:
    others = [client.images for j, client in enumerate(clients) if j != k]
    return round(MOST_IMAGES * median(others)) if others else clients[k].images


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
