"""The evaluation itself: an oracle scores full marks, a random model is scored at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from eval.babyai.episodes import recorded_episodes, wandering_episodes
from eval.babyai.player import Player, first_frames
from eval.babyai.tally import Tally, psnr, score_frame
from eval.babyai.truth import classify_tiles
from eval.game import told
from eval.report import Report, load
from eval.run import EvalArguments, evaluate
from eval.seeds import DEVELOPMENT_SEEDS, FINAL_RANGE, FINAL_SEEDS, TRAINING_SEEDS, first_seed
from eval.statistics import balanced_accuracy
from train.export import ExportArguments, export
from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import action_segment
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


def test_seeds_of_the_final_run_are_looked_at_by_it_alone() -> None:
    assert first_seed(None, final=False) == 1_000_000
    assert first_seed(1_999_000, final=False) == 1_999_000
    assert first_seed(None, final=True) >= 2_500_000
    with pytest.raises(ValueError, match="is kept for the final run"):
        first_seed(2_500_000, final=False)
    with pytest.raises(ValueError, match="cannot be chosen in a final run"):
        first_seed(2_600_000, final=True)


def test_ranges_of_final_seeds_do_not_meet_each_other_or_training_and_development() -> None:
    begins = sorted(FINAL_SEEDS.values())
    assert begins[0] >= DEVELOPMENT_SEEDS.stop > DEVELOPMENT_SEEDS.start == TRAINING_SEEDS.stop
    assert all(b - a >= FINAL_RANGE for a, b in zip(begins, begins[1:], strict=False))
    assert EvalArguments().agent_episodes + EvalArguments().episodes < FINAL_RANGE


def test_a_final_run_evaluates_the_float16_weights_on_its_own_seeds(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def look(player: Player, level: str, arguments: EvalArguments, report: Report) -> None:
        seen["weights"] = next(player.model.parameters()).detach().clone()

    monkeypatch.setattr("eval.run._evaluate_level", look)
    report = evaluate(EvalArguments(model=str(random_model), levels=("GoToLocal",), final=True))
    assert report.settings["first_seed"] == max(FINAL_SEEDS.values())
    weights = next(UnifiedModel.from_pretrained(random_model).parameters())
    assert not torch.equal(weights, weights.half().float())
    torch.testing.assert_close(seen["weights"], weights.half().float(), atol=0, rtol=0)


def test_the_models_game_says_what_the_session_says_and_a_rollout_goes_on_from_its_own_frames(
    random_model: Path,
) -> None:
    model, processor = load(str(random_model), "cpu")
    player, episode = Player(model, processor), wandering_episodes("GoToLocal", 1, 1_000_003, 3)[0]
    game, session = player.begin([episode], seed=3), player.start([episode], seed=3)
    drawn = told(episode.views[0])
    for view in episode.views[1:]:
        drawn = game.draw([view.action], 2)[0]
        session.append([player.stream(action_segment(view.action))])
        frame = first_frames(player.replies(session.run("forward", num_inference_steps=2)))
        np.testing.assert_array_equal(drawn.frame, player.pixels(frame)[0])
        assert drawn.outcome == frame[0].outcome
    fed = player.begin([episode], seed=3)
    fed.tell([told(episode.views[1])])
    # With the true frame told instead, the same noise gives another frame.
    assert (fed.draw([episode.views[2].action], 2)[0].frame != drawn.frame).any()


def test_asking_a_fork_of_a_game_changes_nothing(random_model: Path) -> None:
    model, processor = load(str(random_model), "cpu")
    player, episode = Player(model, processor), wandering_episodes("GoToLocal", 1, 1_000_003, 3)[0]
    game, other = player.begin([episode], seed=3), player.begin([episode], seed=3)
    game.fork().draw(["left"], 1)
    game.choose()
    for one in (game, other):
        one.tell([told(episode.views[1])])
    actions = [episode.views[2].action]
    np.testing.assert_array_equal(
        game.fork().draw(actions, 1)[0].frame, other.fork().draw(actions, 1)[0].frame
    )


def test_a_report_says_how_many_failures_its_outcomes_had() -> None:
    report = Report({})
    for i in range(3):
        report.outcome.add(f"e{i}", "ongoing", "ongoing")
        report.outcome.add(f"e{i}", "success", "ongoing")
    rows = dict((name, (value, floor)) for name, value, floor in report.rows())
    assert rows["outcome: true frames that are failures"] == ("0 of 6", "")
    value, floor = rows["outcome: balanced accuracy (2 classes)"]
    assert value.startswith("50.00 %")
    assert floor.startswith("always the same 50.00 %")


def test_a_report_holds_no_number_that_json_lacks(tmp_path: Path) -> None:
    report = Report({})
    report.tally.measure("next/psnr/model", "only one", 30.0)
    report.save(tmp_path)
    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert content["shares"]["all"]["next/psnr/model"] == {"value": 30.0, "low": None, "high": None}


def test_an_exported_model_carries_its_scores_and_answers_as_before(
    random_model: Path, tmp_path: Path
) -> None:
    report = Report({**vars(EvalArguments()), "parameters": 7, "machine": "none"})
    report.settings = {k: str(v) if isinstance(v, Path) else v for k, v in report.settings.items()}
    report.settings["first_seed"], report.settings["levels"] = 1_000_000, ["GoToLocal"]
    report.outcome.add("GoToLocal/1", "ongoing", "ongoing")
    report.outcome.add("GoToLocal/1", "success", "success")
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
