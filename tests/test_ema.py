"""The moving average of the weights: what it is, and that it is what leaves a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _training import fit_of, frozen_teacher, same_bytes
from torch import Tensor, nn

from kdsteps.training.averaging import WeightAverage
from kdsteps.training.loop import Fit


def deployed(fit: Fit) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in fit.method.deployed().state_dict().items()}


def followed(name: str = "kd", **recipe: Any) -> tuple[Fit, list[dict[str, Tensor]]]:
    """A finished run, and its deployed weights as each step and at last the run left them."""
    fit = fit_of(name, **recipe)
    seen = [deployed(fit)]
    step = fit.schedule.step

    def note() -> None:
        step()
        seen.append(deployed(fit))

    fit.schedule.step = note
    fit.run()
    return fit, [*seen, deployed(fit)]


@pytest.mark.parametrize("decay", [0.25, 0.9])
def test_weights_and_running_statistics_are_averaged_over_the_steps(decay):
    _, (average, *steps, final) = followed(ema=decay)
    for number, weights in enumerate(steps, start=1):
        used = min(decay, (1 + number) / (10 + number))
        average = {
            key: used * value + (1 - used) * weights[key] if value.is_floating_point() else value
            for key, value in average.items()
        }
    counted = [key for key in final if not final[key].is_floating_point()]
    assert counted and all(final[key] == len(steps) for key in counted)
    for key in final.keys() - counted:
        torch.testing.assert_close(final[key], average[key])
    means = [key for key in final if key.endswith("running_mean")]
    assert means and not torch.equal(final[means[0]], steps[-1][means[0]])


def test_the_average_does_not_change_the_training():
    plain, averaged = followed(), followed(ema=0.9)
    assert plain[0].history == averaged[0].history
    assert all(same_bytes(a, b) for a, b in zip(plain[1][:-1], averaged[1][:-1], strict=True))
    assert not same_bytes(plain[1][-1], averaged[1][-1])


def test_what_is_validated_is_what_is_deployed():
    fit = fit_of("kd", ema=0.9)
    validated = []
    fit.validate = lambda: validated.append(deployed(fit)) or {}
    fit.run()
    assert same_bytes(validated[-1], deployed(fit))


def test_a_network_that_ends_in_the_teachers_blocks_leaves_them_as_they_are():
    teacher = frozen_teacher()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    _, seen = followed("simkd", teacher=teacher, ema=0.9)
    assert same_bytes(before, dict(teacher.state_dict()))
    unchanged = [key for key in seen[-1] if torch.equal(seen[0][key], seen[-1][key])]
    assert 0 < len(unchanged) < len(seen[-1])  # the teacher's blocks alone


def test_tied_weights_stay_tied():
    first = nn.Linear(2, 2)
    network = nn.Sequential(first, first)
    average = WeightAverage(network, 0.5)
    with torch.no_grad():
        first.weight.fill_(1.0)
    average.update()
    with average.in_place():
        assert network[0].weight is network[1].weight
        assert not torch.equal(first.weight, torch.ones(2, 2))
    assert torch.equal(first.weight, torch.ones(2, 2))


def test_a_mask_with_infinity_stays_as_it_is():
    network = nn.Linear(2, 2)
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average = WeightAverage(network, 0.9)
    average.update()
    average.swap()
    assert network.mask.tolist() == [0.0, -torch.inf]


def test_complex_weights_are_averaged_like_others():
    network = nn.Module()
    network.filter = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
    average = WeightAverage(network, 0.9)
    with torch.no_grad():
        network.filter.mul_(2)
    average.update()
    decay = 2 / 11
    with average.in_place():
        found = network.filter.detach().clone()
    expected = torch.tensor([1 + 2j, 3 - 1j]) * (decay + 2 * (1 - decay))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(network.filter.detach(), torch.tensor([2 + 4j, 6 - 2j]))
