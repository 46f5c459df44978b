"""Divide one data set among the sites of a simulation.

A partition is a table of *shares*, (classes, sites): the share of each class that a site has.
The same table divides training and validation images, so that a site's validation split has the
class mix of its training split:

>>> generator = torch.Generator().manual_seed(0)
>>> labels, val_labels = torch.arange(400) % 4, torch.arange(80) % 4
>>> shares = dirichlet_shares(torch.bincount(labels), 3, 0.6, generator)
>>> train_parts = split_by_shares(labels, shares, generator)
>>> val_parts = split_by_shares(val_labels, shares, generator)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from oneround.errors import OneRoundError

TRIES = 1000


def by_site(names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Indices of each site's images, from the site name of each image; sites sorted by name."""
    return {
        site: torch.tensor([i for i, name in enumerate(names) if name == site])
        for site in sorted(set(names))
    }


def equal_shares(classes: int, sites: int) -> torch.Tensor:
    """The same share of every class at every site, (classes, sites) ``float64``.

    Raises:
        OneRoundError: ``sites`` is less than one.
    """
    _check_sites(sites)
    return torch.full((classes, sites), 1 / sites, dtype=torch.float64)


def dirichlet_shares(
    counts: torch.Tensor, sites: int, beta: float, generator: torch.Generator, minimum: int = 10
) -> torch.Tensor:
    """Shares of each class over the sites, sampled from Dir(β·1), (classes, sites) ``float64``.

    The smaller β, the more the sites differ. As in Yurochkin et al., "Bayesian nonparametric
    federated learning of neural networks", ICML 2019, section 4; Hsu et al., arXiv:1909.06335,
    2019, sample the classes of each site instead. The whole table is sampled again until every
    site has ``minimum`` images.

    Args:
        counts: Number of images of each class, (classes,).
        sites: Number of sites.
        beta: Concentration β of the Dirichlet distribution, above 0.
        generator: Source of randomness.
        minimum: Smallest number of images that a site may have.

    Raises:
        OneRoundError: ``sites`` or ``beta`` is not positive, or 1000 tables were sampled and none
            gave every site enough images.
    """
    _check_sites(sites)
    if not beta > 0:
        raise OneRoundError(
            f"beta is {beta}.",
            remedy="Give a positive number, such as 0.6; the smaller, the more the sites differ.",
        )
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    numpy_generator = np.random.default_rng(seed)
    for _ in range(TRIES):
        drawn = numpy_generator.dirichlet([beta] * sites, size=len(counts))
        shares = torch.from_numpy(drawn)
        if int(_site_counts(counts, shares).sum(0).min()) >= minimum:
            return shares
    raise OneRoundError(
        f"none of {TRIES} random partitions with beta {beta} gives each of the {sites} sites "
        f"{minimum} images.",
        remedy="Use a larger beta, fewer sites or more images.",
    )


def split_by_shares(
    labels: torch.Tensor, shares: torch.Tensor, generator: torch.Generator
) -> list[torch.Tensor]:
    """Divide images by a table of shares; which image of a class goes to which site is random.

    Args:
        labels: Label of each image, (N,) ``int64``.
        shares: Share of each class at each site, (classes, sites); rows sum to one.
        generator: Source of randomness.

    Returns:
        Sorted indices of each site's images; each image is at exactly one site. A site may have
        none.
    """
    counts = _site_counts(torch.bincount(labels, minlength=len(shares)), shares)
    site_of = torch.empty_like(labels)
    for label, sizes in enumerate(counts):
        indices = torch.nonzero(labels == label).flatten()
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        site_of[shuffled] = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return [torch.nonzero(site_of == site).flatten() for site in range(shares.shape[1])]


def _site_counts(counts: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Images of each class at each site, (classes, sites): differences of rounded cumulative
    shares, so that they add up to ``counts``."""
    ends = (shares.cumsum(1) * counts[:, None]).round().long()
    ends[:, -1] = counts
    return ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))


def _check_sites(sites: int) -> None:
    if sites < 1:
        raise OneRoundError(f"the number of sites is {sites}.", remedy="Give one or more.")
