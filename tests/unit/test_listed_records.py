"""Records named from a list: exact where the algebra is, at chance where nothing is there, honest under noise."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ray_fed.leakage.defences import parse_defence
from ray_fed.leakage.listed_records import ListedGradients, Named, RecordList, named, row_space_residuals, together
from ray_fed.leakage.tabular_study import TabularCase, crystal_rows, local_update
from ray_fed.learning.models import seeded_mlp

LISTED, FEATURES = 300, 12


@pytest.fixture(scope="module")
def listed() -> RecordList:
    torch.set_num_threads(1)
    return RecordList(np.random.default_rng(0).normal(size=(LISTED, FEATURES)))


def network(outputs: int = 1) -> nn.Module:
    return seeded_mlp(FEATURES, (40, 40), 3, outputs)


def message(net: nn.Module, rows: np.ndarray, targets: np.ndarray, steps: int = 1) -> list[np.ndarray]:
    """Return the gradient of one batch, or what `steps` SGD steps over its parts move, over the rate."""
    batches = [torch.from_numpy(part) for part in np.array_split(np.arange(len(rows)), steps)]
    case = TabularCase(len(batches[0]), steps, "sgd", 1e-3)
    moved = local_update(net, torch.from_numpy(rows), torch.from_numpy(targets)[:, None], batches, case)
    return [part.numpy() for part in moved]


def drawn(listed: RecordList, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.choice(len(listed), count, replace=False), random.normal(size=count).astype(np.float32)


def test_the_gram_matrix_is_that_of_the_gradients_written_out(listed):
    net, rows = network(2), listed.rows[:5]
    known = ListedGradients(net, rows)
    written = []
    for row in torch.from_numpy(rows).double():
        doubled = seeded_mlp(FEATURES, (40, 40), 3, 2).double()
        for output in doubled(row[None])[0]:
            parts = torch.autograd.grad(output, list(doubled.parameters()), retain_graph=True)
            written.append(torch.cat([part.flatten() for part in parts]))
    jacobian = torch.stack(written)
    np.testing.assert_allclose(known.gram(), jacobian @ jacobian.T, rtol=1e-9)
    some = [parameter.detach() for parameter in net.parameters()]
    flat = torch.cat([part.flatten() for part in some]).double()
    np.testing.assert_allclose(known.products(some), jacobian @ flat, rtol=1e-9)


@pytest.mark.parametrize("count", [4, 11, 100, 200])
def test_least_squares_names_a_batch_and_reads_its_targets_far_beyond_the_rows_own_rank(listed, count):
    chosen, targets = drawn(listed, count)
    net = network()
    sent = message(net, listed.rows[chosen], targets)
    coefficients = listed.gradients(net).coefficients(sent)
    counted, _ = named(np.abs(coefficients).max(1), np.sort(chosen), np.sort(chosen))
    assert counted.right >= 0.98 * count
    assert counted.is_beyond_chance
    with torch.no_grad():
        predicted = net(torch.from_numpy(listed.rows[chosen]))[:, 0].numpy()
    read = predicted - coefficients[chosen, 0] * count / 2
    assert np.median(np.abs(read - targets)) < 1e-3


def test_the_row_space_names_batches_below_the_number_of_features_and_nothing_above(listed):
    net = network()
    for count, whole in ((8, True), (FEATURES + 1, False), (40, False)):
        chosen, targets = drawn(listed, count)
        sent = message(net, listed.rows[chosen], targets)
        residuals = row_space_residuals(sent[0], sent[1], listed.rows, count)
        counted, _ = named(-residuals, np.sort(chosen), np.sort(chosen))
        assert (counted.right == count) is whole
        assert counted.right in (0, count)


def test_updates_of_several_steps_and_sums_over_silos_are_named_too(listed):
    chosen, targets = drawn(listed, 32)
    net = network()
    rows = listed.rows[chosen]
    several = message(net, rows, targets, steps=4)
    of_silos = [message(net, rows[part::4], targets[part::4]) for part in range(4)]
    summed = [sum(parts) for parts in zip(*of_silos, strict=True)]
    for sent in (several, summed):
        strengths = np.abs(listed.gradients(net).coefficients(sent)).max(1)
        assert named(strengths, np.sort(chosen), np.sort(chosen))[0].right >= 30


def test_noise_well_above_the_message_leaves_chance_and_a_message_of_others_names_nobody(listed):
    chosen, targets = drawn(listed, 20)
    net = network()
    sent = message(net, listed.rows[chosen], targets)
    drowned = [part.numpy() for part in parse_defence("noise:300").on_message([torch.from_numpy(p) for p in sent])]
    strangers = np.random.default_rng(9).normal(size=(20, FEATURES)).astype(np.float32)
    for other in (drowned, message(net, strangers, targets)):
        strengths = np.abs(listed.gradients(net).coefficients(other)).max(1)
        counted, _ = named(strengths, np.sort(chosen), np.sort(chosen))
        assert not counted.is_beyond_chance
        assert counted.share == 0


def test_records_that_the_list_lacks_cost_some_of_those_it_has_but_not_the_attack(listed):
    chosen, targets = drawn(listed, 20)
    net = network()
    strangers = np.random.default_rng(9).normal(size=(5, FEATURES)).astype(np.float32)
    rows = np.concatenate([listed.rows[chosen], strangers])
    sent = message(net, rows, np.concatenate([targets, targets[:5]]))
    strengths = np.abs(listed.gradients(net).coefficients(sent)).max(1)
    counted, _ = named(strengths, np.sort(chosen), np.sort(chosen))
    assert 10 <= counted.right <= 20
    assert counted.is_beyond_chance


def test_classes_are_named_by_any_of_their_outputs(listed):
    chosen, _ = drawn(listed, 30)
    net = network(3)
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 3, 30))
    loss = functional.cross_entropy(net(torch.from_numpy(listed.rows[chosen])), labels)
    sent = torch.autograd.grad(loss, list(net.parameters()))
    strengths = np.abs(listed.gradients(net).coefficients(sent)).max(1)
    assert named(strengths, np.sort(chosen), np.sort(chosen))[0].right == 30


def test_chance_is_no_leak_and_several_messages_count_as_one():
    assert Named(10, 40, 9.0).share == 0
    assert Named(40, 40, 9.0).share == 1
    one = together([Named(1, 1, 0.01), Named(0, 1, 0.01), Named(1, 1, 0.01)])
    assert (one.right, one.named, one.by_chance) == (2, 3, pytest.approx(0.03))
    assert one.is_beyond_chance
    assert not Named(0, 0, 0.0).is_beyond_chance


def test_crystals_that_stand_on_the_embedded_list_are_named_with_their_targets():
    rows, targets, _ = crystal_rows(300, 0)
    suspects = RecordList(rows)
    first = np.unique(rows, axis=0, return_index=True)[1]  # in the list's order
    chosen = np.random.default_rng(0).choice(len(suspects), 40, replace=False)
    net = seeded_mlp(rows.shape[1], (200, 200), 0)
    sent = message(net, rows[first[chosen]], targets[first[chosen]])
    coefficients = suspects.gradients(net).coefficients(sent)
    assert named(np.abs(coefficients).max(1), np.sort(chosen), np.sort(chosen))[0].right == 40
