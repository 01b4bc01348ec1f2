"""Muon for matrices, AdamW for the rest: each as its reference does it."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from train.optimizer import MuonAdamW, orthogonalise


class Decoder(nn.Module):
    """Matrices of three shapes inside `layers`, others outside."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.layers = nn.ModuleList(
            [nn.Linear(8, 8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 8)]
        )
        self.head = nn.Linear(8, 3)


class Model(nn.Module):
    """As a language model has it: `model.layers.0.weight`."""

    def __init__(self):
        super().__init__()
        self.model = Decoder()


def gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def matrices(model):
    return [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_singular_values_end_near_one_and_directions_stay(shape):
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    result = orthogonalise(matrix)
    values = torch.linalg.svdvals(result)
    assert 0.5 < values.min() <= values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.mT @ result @ right.mT
    assert torch.allclose(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-4)


def test_matrices_move_as_torch_muon_moves_them():
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    optimizer = MuonAdamW(ours.named_parameters(), lr=0.02, weight_decay=0.1)
    muon = Muon(matrices(theirs), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        gradients(ours, seed)
        gradients(theirs, seed)
        optimizer.step()
        muon.step()
    for a, b in zip(matrices(ours), matrices(theirs), strict=True):
        assert torch.allclose(a, b, atol=2e-3)  # theirs iterates in bfloat16


def test_everything_else_moves_as_adamw_moves_it_and_vectors_do_not_decay():
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    optimizer = MuonAdamW(ours.named_parameters(), lr=0.02, weight_decay=0.1)
    rest = [p for n, p in theirs.named_parameters() if ".layers." not in n or p.ndim < 2]
    adamw = AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.02,
        betas=(0.9, 0.95),
    )
    for seed in range(3):
        gradients(ours, seed)
        gradients(theirs, seed)
        optimizer.step()
        adamw.step()
    found = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        if ".layers." not in name or parameter.ndim < 2:
            assert torch.equal(found[name], parameter), name


def test_a_saved_state_goes_on_as_if_it_had_not_been_saved():
    whole = Model()
    optimizer = MuonAdamW(whole.named_parameters(), lr=0.02, weight_decay=0.1)
    gradients(whole, 0)
    optimizer.step()
    resumed = copy.deepcopy(whole)
    other = MuonAdamW(resumed.named_parameters(), lr=0.5, weight_decay=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, chosen in ((whole, optimizer), (resumed, other)):
        gradients(model, 1)
        chosen.step()
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_schedule_moves_every_learning_rate_and_gradients_stay_to_be_seen():
    model = Model()
    optimizer = MuonAdamW(model.named_parameters(), lr=0.02, weight_decay=0.1)
    schedule = LambdaLR(optimizer, lambda step: 0.5)
    gradients(model, 0)
    optimizer.step()
    schedule.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_closure_is_called_once_and_before_anything_moves():
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    first = MuonAdamW(ours.named_parameters(), lr=0.02, weight_decay=0.1)
    second = MuonAdamW(theirs.named_parameters(), lr=0.02, weight_decay=0.1)
    calls = []

    def closure():
        calls.append(1)
        gradients(ours, 0)
        return 3.0

    assert first.step(closure) == 3.0
    gradients(theirs, 0)
    second.step()
    assert len(calls) == 1
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
