"""The averaged weights: their closed form over steps that differ."""

from types import SimpleNamespace

import pytest
import torch

from train.pretrain import AveragedWeights


def model_of(value):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_the_closed_form_of_its_decay_over_differing_steps(decay):
    weights = [3.0, -1.0, 7.0, 2.0, 11.0, -4.0]
    average = AveragedWeights(model_of(100.0), decay)
    for value in weights:
        average.on_step_end(
            SimpleNamespace(), SimpleNamespace(), SimpleNamespace(), model=model_of(value)
        )
    # The first step replaces the start; after it step n keeps min(decay, (1 + n) / (10 + n)).
    keeps = [min(decay, (1 + n) / (10 + n)) for n in range(1, len(weights))]
    expected = weights[0]
    for value, keep in zip(weights[1:], keeps, strict=True):
        expected = keep * expected + (1 - keep) * value
    found = next(average.average.module.parameters()).item()
    assert found == pytest.approx(expected, rel=1e-6)
    swapped = weights[0]
    for value, keep in zip(weights[1:], keeps, strict=True):
        swapped = (1 - keep) * swapped + keep * value
    assert found != pytest.approx(swapped, rel=1e-3)


def test_the_decay_of_a_recipe_is_used():
    found = []
    for decay in (0.1, 0.15):
        average = AveragedWeights(model_of(0.0), decay)
        for value in (0.0, 1.0, 2.0):
            average.on_step_end(
                SimpleNamespace(), SimpleNamespace(), SimpleNamespace(), model=model_of(value)
            )
        found.append(next(average.average.module.parameters()).item())
    assert found[0] != found[1]
    assert found[0] == pytest.approx(0.1 * 0.9 + 2.0 * 0.9)
