import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneround.data.partition import (
    by_site,
    dirichlet_shares,
    equal_shares,
    split_by_shares,
)
from oneround.errors import OneRoundError

LABELS = torch.arange(1000) % 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def iid(labels, sites, generator):
    return split_by_shares(labels, equal_shares(len(torch.bincount(labels)), sites), generator)


def dirichlet(labels, sites, beta, generator, minimum=10):
    shares = dirichlet_shares(torch.bincount(labels), sites, beta, generator, minimum)
    return split_by_shares(labels, shares, generator)


def class_count_table(parts, labels, classes):
    return torch.stack([torch.bincount(labels[part], minlength=classes) for part in parts])


def assert_partition(parts, count):
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(count))


def test_iid_has_equal_class_mixes():
    parts = iid(LABELS, 3, seeded())
    assert_partition(parts, 1000)
    table = class_count_table(parts, LABELS, 4)
    assert table.shape == (3, 4)
    assert table.min() >= 83
    assert table.max() <= 84


def test_same_seed_same_parts():
    for divide in (lambda g: iid(LABELS, 5, g), lambda g: dirichlet(LABELS, 5, 0.6, g)):
        first, again, other = divide(seeded(1)), divide(seeded(1)), divide(seeded(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), max_size=60),
    sites=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_every_image_is_at_exactly_one_site(labels, sites, seed):
    labels = torch.tensor(labels, dtype=torch.int64)
    shares = dirichlet_shares(torch.ones(6).long(), sites, 0.3, seeded(seed), minimum=0)
    parts = split_by_shares(labels, shares, seeded(seed))
    assert len(parts) == sites
    assert_partition(parts, len(labels))


def test_train_and_val_get_the_same_shares():
    shares = dirichlet_shares(torch.bincount(LABELS), 5, 0.6, seeded())
    torch.testing.assert_close(shares.sum(1), torch.ones(4, dtype=torch.float64))
    for count in (1000, 200):
        labels = torch.arange(count) % 4
        table = class_count_table(split_by_shares(labels, shares, seeded()), labels, 4)
        assert (table.T - shares * count / 4).abs().max() <= 1


def test_dirichlet_minimum_holds():
    for seed in range(20):
        parts = dirichlet(LABELS, 5, 0.1, seeded(seed), minimum=30)
        assert min(len(part) for part in parts) >= 30


def test_small_beta_means_different_sites():
    def spread(beta):
        shares = [dirichlet_shares(torch.bincount(LABELS), 5, beta, seeded(s)) for s in range(50)]
        return torch.stack(shares).std().item()

    # the standard deviation of one component of Dir(β·1) over K sites
    for beta in (0.6, 100.0):
        assert spread(beta) == pytest.approx((4 / 25 / (5 * beta + 1)) ** 0.5, rel=0.1)


def test_impossible_partitions_are_explained():
    with pytest.raises(OneRoundError, match="gives each of the 5 sites 500 images"):
        dirichlet(LABELS, 5, 0.6, seeded(), minimum=500)
    with pytest.raises(OneRoundError, match="beta is 0"):
        dirichlet(LABELS, 5, 0, seeded())
    with pytest.raises(OneRoundError, match="number of sites is 0"):
        iid(LABELS, 0, seeded())


def test_equal_shares():
    assert torch.equal(equal_shares(2, 4), torch.full((2, 4), 0.25, dtype=torch.float64))


def test_by_site():
    parts = by_site(["south", "north", "south"])
    assert list(parts) == ["north", "south"]
    assert parts["north"].tolist() == [1]
    assert parts["south"].tolist() == [0, 2]
