"""The evaluation itself: an oracle scores full marks, a random model is scored at all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from eval.babyai.episodes import recorded_episodes, wandering_episodes
from eval.babyai.tally import Tally, psnr, score_frame
from eval.babyai.truth import classify_tiles
from eval.report import Report
from eval.run import EvalArguments, evaluate
from eval.statistics import balanced_accuracy
from train.export import ExportArguments, export
from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.media.action_space import ActionSpace
from unified.media.codec import FrameCodec
from unified.modeling import UnifiedModel

CONFIGS = Path(__file__).parents[2] / "tokenizers_cfg"


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    processor = UnifiedProcessor(
        tokenizer=AutoTokenizer.from_pretrained(CONFIGS / "text"),
        codec=FrameCodec.from_config(CONFIGS / "codec" / "babyai.json"),
        action_space=ActionSpace.from_config(CONFIGS / "actions" / "babyai.json"),
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = UnifiedConfig(**{**processor.config_fields(), **sizes, "num_attention_heads": 1})
    folder = tmp_path_factory.mktemp("model")
    UnifiedModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_true_frame_scores_full_marks_and_a_repeated_one_the_floor() -> None:
    episode = wandering_episodes("GoToLocal", 1, 1_000_003, 6)[0]
    classes = classify_tiles(episode.views[:1], episode.views[1:])
    tally = Tally()
    for known, view, tiles in zip(episode.views, episode.views[1:], classes, strict=False):
        assert score_frame(tally, "x", "e", view.frame, known, view, tiles)
        score_frame(tally, "y", "e", known.frame, known, view, tiles)
    assert str(tally.estimate("x/determined/model")).startswith("100.00 %")
    assert tally.counts["y/all/model"] == tally.counts["x/all/repeat"]
    assert tally.counts["y/changed/model"]["e"][0] == 0


def test_recorded_episodes_hold_one_frame_more_than_actions_and_are_repeatable() -> None:
    first = recorded_episodes("OpenDoor", 2, 1_000_000)
    again = recorded_episodes("OpenDoor", 2, 1_000_000)
    for a, b in zip(first, again, strict=True):
        assert len(a.views) == len(a.actions) + 1 == len(a.captions)
        assert a.actions == b.actions
        assert all((x.frame == y.frame).all() for x, y in zip(a.views, b.views, strict=True))


def test_psnr_of_equal_frames_is_capped_and_of_opposite_ones_is_zero() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    assert psnr(black, black) == 60.0
    assert psnr(black, black + 255) == pytest.approx(0.0)


def test_a_random_model_gets_a_whole_report_twice_the_same(random_model: Path) -> None:
    arguments = EvalArguments(
        model=str(random_model),
        levels=("GoToLocal",),
        agent_episodes=2,
        episodes=2,
        max_steps=3,
        horizon=2,
        max_turns=2,
        num_inference_steps=1,
    )
    report = evaluate(arguments)
    names = [name for name, _, _ in report.rows()]
    for part in ("codec", "agent", "next frame", "rollout", "outcome", "inverse", "captions"):
        assert any(name.startswith(part) for name in names), part
    assert report.agents[0].success.low <= report.agents[0].success.value
    again = evaluate(arguments)
    assert _without_clock(report) == _without_clock(again)


def _without_clock(report: Report) -> dict:
    return {**replace(report, seconds={}).figures()}


def test_seeds_of_training_are_refused() -> None:
    with pytest.raises(ValueError, match="first_seed=5 belongs to training"):
        evaluate(EvalArguments(first_seed=5))


def test_an_exported_model_carries_its_scores_and_answers_as_before(
    random_model: Path, tmp_path: Path
) -> None:
    report = Report({**vars(EvalArguments()), "parameters": 7, "machine": "none"})
    report.settings = {k: str(v) if isinstance(v, Path) else v for k, v in report.settings.items()}
    report.settings["first_seed"], report.settings["levels"] = 1_000_000, ["GoToLocal"]
    report.outcome.truth += ["ongoing", "success"]
    report.outcome.given += ["ongoing", "success"]
    report.save(tmp_path / "report")
    out = export(
        ExportArguments(
            model=random_model,
            report=tmp_path / "report" / "report.json",
            out=tmp_path / "card",
            recipe="none",
            cost="nothing",
        )
    )
    assert "outcome: balanced accuracy" in (out / "README.md").read_text()
    model, copy = UnifiedModel.from_pretrained(random_model), UnifiedModel.from_pretrained(out)
    assert copy.dtype == torch.float32
    ids = torch.tensor([[514, 3, 4]])
    torch.testing.assert_close(copy(ids).logits, model(ids).logits, atol=1e-2, rtol=1e-2)


def test_balanced_accuracy_weighs_a_rare_class_like_a_common_one() -> None:
    result = balanced_accuracy(["a"] * 9 + ["b"], ["a"] * 10)
    assert result.value == pytest.approx(0.5)
