"""Training is the same however it is run: any workers, any split into batches, any restart."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.unified.parts import babyai_parts
from unified.conversation.sequence import (
    Sequence,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.model.collator import Collator, loss_weights


@pytest.fixture(scope="module")
def parts():
    return babyai_parts(path_layer=1, motion_loss_weight=10.0)


@pytest.fixture(scope="module")
def conversations(parts):
    """Eight of different lengths and weights: words, expert actions, motions, frames."""
    _, processor = parts
    rng = np.random.default_rng(0)
    found = []
    for index in range(8):
        segments = [text_segment("go to the red ball", "task", weight=0.0)]
        for step in range(1 + index % 4):
            latents = rng.standard_normal((8, 7, 7)).astype(np.float32)
            frame = frame_segment(latents=latents, outcome="ongoing", weight=1.0 + index % 3)
            segments.append(frame)
            if step == 1:
                segments.append(text_segment("turn around now", weight=3.0))
            if step < index % 4:
                motion = (0.5, 1.0, 0.0) if index % 2 else None
                segments.append(action_segment("left", weight=float(index), motion=motion))
        found.append(Sequence(segments))
    return found


def collator_of(parts, **options):
    model, processor = parts
    return Collator(processor, model.config, **options)


def epochs_of(rows, collator, *, workers, batch, persistent=False, epochs=(0, 1)):
    """Noise and noise levels of every row in every epoch, by its number."""
    loader = DataLoader(
        rows,
        batch_size=batch,
        collate_fn=collator,
        num_workers=workers,
        persistent_workers=persistent,
    )
    found = {}
    for epoch in epochs:
        rows.set_epoch(epoch)
        number = 0
        for inputs in loader:
            for noise, levels in zip(inputs["noise"], inputs["noise_levels"], strict=True):
                found[epoch, number] = torch.cat([levels[:200], noise[:200].flatten()])
                number += 1
    return found


def test_noise_is_the_same_for_any_number_of_workers_and_differs_by_row_and_epoch(
    parts, conversations
):
    collator = collator_of(parts, length=600, seed=3)
    rows = collator.rows(conversations)
    expected = epochs_of(rows, collator, workers=0, batch=3)
    drawn = {tuple(noise.tolist()) for noise in expected.values()}
    assert len(drawn) == len(expected) == 16
    for workers, batch, persistent in ((1, 2, False), (2, 3, True)):
        found = epochs_of(rows, collator, workers=workers, batch=batch, persistent=persistent)
        for key, noise in expected.items():
            assert torch.equal(found[key], noise), key
    again = epochs_of(rows, collator, workers=0, batch=8, epochs=(1,))
    assert torch.equal(again[1, 5], expected[1, 5])
    other = collator_of(parts, length=600, seed=4)
    assert not torch.equal(
        epochs_of(other.rows(conversations), other, workers=0, batch=3)[0, 5], expected[0, 5]
    )


def test_equal_conversations_have_noise_of_their_own(parts, conversations):
    collator = collator_of(parts)
    rows = collator.rows([conversations[3]] * 3)
    assert not torch.equal(rows[0].noise, rows[1].noise)
    assert not torch.equal(rows[0].row.noise_levels, rows[1].row.noise_levels)


def test_padding_changes_no_noise(parts, conversations):
    short, long = (collator_of(parts, length=length) for length in (None, 900))
    one, other = (c([c.rows(conversations)[3]])["noise"] for c in (short, long))
    assert other.shape[1] == 900
    assert torch.equal(other[:, : one.shape[1]], one)
    assert not other[:, one.shape[1] :].any()


def test_bare_conversations_have_the_noise_of_their_content_and_a_warning_says_so(
    parts, conversations
):
    collator = collator_of(parts)
    with pytest.warns(UserWarning, match=r"train_dataset=rows and callbacks=\[rows\]"):
        first = collator(conversations[2:4])
    again = collator_of(parts)
    with pytest.warns(UserWarning, match="same noise in every epoch"):
        second = again([copy.deepcopy(conversations[3])])
    length = second["noise"].shape[1]
    assert torch.equal(first["noise"][1, :length], second["noise"][0])
    assert "loss_totals" not in first


def test_an_empty_training_set_is_refused(parts):
    with pytest.raises(ValueError, match="holds no conversation"):
        collator_of(parts).rows([])


def test_what_a_row_weighs_is_the_mean_over_the_training_set(parts, conversations):
    collator = collator_of(parts)
    rows = collator.rows(conversations)
    expected = torch.zeros(3)
    for conversation in conversations:
        for segment in conversation.segments:
            expected[2] += segment.motion is not None
    per_row = torch.stack([loss_weights(rows[i].row) for i in range(8)])
    assert torch.allclose(rows.loss_totals, per_row.mean(0))
    assert rows.loss_totals[2] * 8 == expected[2]
    labels = sum(float(rows[i].row.label_weights.sum()) for i in range(8))
    assert rows.loss_totals[0].item() * 8 == pytest.approx(labels)


def gradient_of(model, batches):
    """Of the mean loss over batches, and that loss."""
    model.zero_grad()
    loss = torch.stack([model(**batch).loss for batch in batches]).mean()
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat([g.flatten() for g in grads])


def test_micro_batches_add_up_to_the_whole_batch(parts, conversations):
    model = copy.deepcopy(parts[0])
    collator = collator_of(parts)
    rows = collator.rows(conversations)
    whole = gradient_of(model, [collator([rows[i] for i in range(8)])])
    for size in (1, 2, 4):
        batches = [collator([rows[i + j] for j in range(size)]) for i in range(0, 8, size)]
        loss, gradient = gradient_of(model, batches)
        assert loss == pytest.approx(whole[0], rel=1e-5)
        assert torch.allclose(gradient, whole[1], atol=1e-5 * whole[1].abs().max().item())
    # Without totals each batch is divided by weights of its own, and they do not add up.
    batches = [collator([rows[i]]) for i in range(8)]
    for batch in batches:
        del batch["loss_totals"]
    assert gradient_of(model, batches)[0] != pytest.approx(whole[0], rel=0.02)


def test_totals_of_the_batch_itself_are_the_loss_without_totals(parts, conversations):
    model = parts[0]
    collator = collator_of(parts)
    rows = [
        replace(row, loss_totals=None)
        for row in map(collator.rows(conversations).__getitem__, range(4))
    ]
    batch = collator(rows)
    plain = model(**batch)
    given = model(**batch, loss_totals=(loss_weights(batch) / 4).expand(4, 3))
    for name in ("loss", "token_loss", "flow_loss", "motion_loss"):
        assert getattr(given, name).item() == pytest.approx(getattr(plain, name).item(), rel=1e-6)


class StopAfterError(Exception):
    """Stands for a power failure."""


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise StopAfterError


def run(parts, conversations, out, *, stop=None, resume=False, batch=2, accumulation=1, workers=0):
    """Five steps of plain Trainer, over an epoch's end; the weights and the losses."""
    model, collator = copy.deepcopy(parts[0]), collator_of(parts, seed=1)
    rows = collator.rows(conversations)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out),
            max_steps=5,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            dataloader_num_workers=workers,
            learning_rate=1e-3,
            save_steps=1,
            logging_steps=1,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=rows,
        data_collator=collator,
        callbacks=[rows, *([] if stop is None else [StopAfter(stop)])],
    )
    trainer.train(resume_from_checkpoint=resume or None)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return model.state_dict(), losses


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_trainer_is_the_uninterrupted_one_bit_by_bit(
    parts, conversations, tmp_path, stop
):
    whole, losses = run(parts, conversations, tmp_path / "whole")
    with pytest.raises(StopAfterError):
        run(parts, conversations, tmp_path / "cut", stop=stop)
    resumed, resumed_losses = run(parts, conversations, tmp_path / "cut", resume=True, workers=2)
    assert resumed_losses == losses
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_a_trainer_that_accumulates_is_the_one_that_does_not(parts, conversations, tmp_path):
    whole, losses = run(parts, conversations, tmp_path / "whole", batch=4)
    split, split_losses = run(parts, conversations, tmp_path / "split", batch=1, accumulation=4)
    assert split_losses == pytest.approx(losses, rel=1e-4)
    for name, tensor in whole.items():
        assert torch.allclose(split[name], tensor, atol=1e-4), name
