"""Finetuning leaves something that loads, answers for its episodes, and resumes."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.dataset import EpisodeDataset
from data.join import join_folders
from data.record import RecordArguments, record
from data.recording import record_babyai
from data.sources.jsonl import import_jsonl
from tests.conftest import TINY_CODEC
from tests.unified.parts import babyai_parts
from train import compare as comparison
from train import finetune
from train.check import Answers, Check, ask
from train.finetune import FinetuneArguments, train
from train.recipes import Recipe
from train.rows.mixture import MixtureConfig
from train.trainer import SaveByTime, newest_checkpoint
from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence
from unified.media.actions import NamedActions
from unified.media.codec import FrameCodec
from unified.model.adapters import fingerprint
from unified.model.plan import collate, plan_training
from unified.modeling import UnifiedModel
from unified.roles.agent import Agent

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_codec):
    """A tiny untrained base with its codec, and a few real episodes."""
    folder = tmp_path_factory.mktemp("finetune")
    record_babyai(["GoToRedBall"], episodes=4, seed=11, out=folder / "data")
    save_tiny(babyai_parts()[1], tiny_codec, folder / "base")
    return folder


def save_tiny(processor, codec, out):
    """A tiny untrained model with the words and actions of a processor."""
    processor.codec = codec
    config = UnifiedConfig(
        **processor.config_fields(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        window_frames=3,
    )
    torch.manual_seed(0)
    UnifiedModel(config).save_pretrained(out)
    processor.save_pretrained(out)


@pytest.fixture
def arguments(folders, tmp_path, monkeypatch):
    """A run of four steps that saves at each of them, on data that have no latents yet."""
    mixture = MixtureConfig(row_length=300, max_frames=3)
    recipe = Recipe(mixture=mixture, steps=4, rows=2, learning_rate=1e-2)
    monkeypatch.setattr(finetune, "finetune", lambda *_, **__: recipe)
    shutil.copytree(folders / "data", tmp_path / "data")
    return FinetuneArguments(
        model=str(folders / "base"),
        data=tmp_path / "data",
        out=tmp_path / "run",
        lora_rank=2,
        check_episodes=2,
        save_seconds=0,
        log_steps=1,
        workers=0,
        sample_steps=0,
    )


@pytest.mark.parametrize("method", ["lora", "full", "scratch"])
def test_what_a_run_leaves_loads_and_says_what_it_is(arguments, method, capsys):
    out = train(replace(arguments, method=method))
    assert out == arguments.out / ("adapter" if method == "lora" else "model")
    model, processor = UnifiedModel.from_pretrained(out), UnifiedProcessor.from_pretrained(out)
    base = fingerprint(UnifiedModel.from_pretrained(arguments.model))
    assert (fingerprint(model) == base) == (method == "lora")
    assert processor.codec is not None
    card = (out / "README.md").read_text()
    assert base in card
    assert "| actions right |" in card
    check = json.loads((out / "check.json").read_text())
    assert check["is_changed"]
    assert "parameters are trained" in capsys.readouterr().out


def test_four_steps_are_two_steps_and_two_more_after_a_resume(arguments, tmp_path, monkeypatch):
    whole = train(replace(arguments, out=tmp_path / "whole", check_episodes=0))
    save = SaveByTime.on_save

    def cut_off(self, args, state, control, **kwargs):
        save(self, args, state, control, **kwargs)
        if state.global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SaveByTime, "on_save", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train(arguments)
    latest = newest_checkpoint(arguments.out)
    assert latest is not None
    assert latest.name == "checkpoint-2"
    with pytest.raises(ValueError, match="checkpoint-2 of an earlier run; add --resume"):
        train(arguments)
    out = train(replace(arguments, resume=True, check_episodes=0))
    found, expected = (load_file(f / "adapter_model.safetensors") for f in (out, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_only_the_episodes_that_were_asked_for_are_learned(arguments):
    train(replace(arguments, episodes=1, steps=1, check_episodes=9, sample_steps=1))
    assert (arguments.out / "samples" / "step-1.png").exists()
    card = (arguments.out / "adapter" / "README.md").read_text()
    assert "on 1 episodes" in card


def test_an_environment_with_actions_of_its_own_is_learned(arguments, tmp_path):
    options = {"actions": "box"}
    env = "tests.data.dot:Dot-v0"
    policy = "tests.data.dot:make_runner"
    record(
        RecordArguments(
            env=env,
            policy=policy,
            out=tmp_path / "dot",
            episodes=3,
            max_steps=4,
            options=options,
            size=(40, 56),  # neither square nor what the base has seen
        )
    )
    out = train(replace(arguments, data=tmp_path / "dot", sample_steps=4))
    with Image.open(arguments.out / "samples" / "step-4.png") as picture:
        assert picture.height == 2 * 2 * 2 * (40 + 4)  # true and drawn, of two episodes, doubled
    model, processor = UnifiedModel.from_pretrained(out), UnifiedProcessor.from_pretrained(out)
    assert model.config.longest_action == 2
    assert tuple(model.config.latent_grid) == (5, 7)
    episode = EpisodeDataset(tmp_path / "dot").sequence(0, pixels=True)
    prompt = processor.encode([Sequence(episode.segments[:2])])
    reply = model.generate(**prompt, query="policy", think=False)
    (turn,) = processor.segments(reply.input_ids[0], None, model.config)
    assert np.shape(np.asarray(turn.action)) == (2,)
    prompt = processor.encode([Sequence(episode.segments[:3])])
    reply = processor.decode(model.generate(**prompt, query="forward"))
    assert reply[0]["content"][0]["frame"].size == (56, 40)
    assert "| actions right |" in (out / "README.md").read_text()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_own_actions_whose_names_the_base_has_get_tokens_of_their_own(arguments, tmp_path, method):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (56, 56, 3), np.uint8)).save(tmp_path / "frame.png")
    frame = {"kind": "frame", "frame": "frame.png", "outcome": "ongoing"}
    names = ["left", "stay", "right"]
    actions = [{"kind": "action", "action": name} for name in names]
    episode = {"segments": [frame, actions[0], frame, actions[1], frame, actions[2], frame]}
    (tmp_path / "own.jsonl").write_text(json.dumps(episode))
    import_jsonl(tmp_path / "own.jsonl", tmp_path / "own")
    out = train(replace(arguments, data=tmp_path / "own", method=method, check_episodes=1))
    model, processor = UnifiedModel.from_pretrained(out), UnifiedProcessor.from_pretrained(out)
    size = UnifiedModel.from_pretrained(arguments.model).config.vocab_size
    assert [processor.action_ids(name) for name in names] == [[size], [size + 1], [size + 2]]
    assert tuple(model.config.action_token_ids) == (size, size + 3)
    agent = Agent(model.eval(), processor, think=False)
    assert agent.act(np.zeros((56, 56, 3), np.uint8), "go") in names


def test_one_model_learns_two_embodiments_and_the_task_says_which(arguments, tmp_path):
    for actions, policy in (("discrete", "go_right"), ("box", "make_runner")):
        record(
            RecordArguments(
                env="tests.data.dot:Dot-v0",
                policy=f"tests.data.dot:{policy}",
                out=tmp_path / actions,
                episodes=4,
                max_steps=3,
                options={"actions": actions},
                bins=8,
            )
        )
    join_folders([tmp_path / "discrete", tmp_path / "box"], ["pad", "arm"], tmp_path / "both")
    out = train(
        replace(arguments, data=tmp_path / "both", method="full", steps=100, check_episodes=0)
    )
    model, processor = UnifiedModel.from_pretrained(out), UnifiedProcessor.from_pretrained(out)
    agent = Agent(model.eval(), processor, think=False)
    frame = EpisodeDataset(tmp_path / "both").frames(0)[0]
    actions = agent.act([frame, frame], ["pad: go right", "arm: go right"])
    assert [set(action) for action in actions] == [{"pad"}, {"arm"}]
    assert agent.environment_action(actions[0]) == 1
    assert agent.environment_action(actions[1]).shape == (2,)


def test_what_is_said_in_mid_episode_is_followed(arguments, tmp_path, monkeypatch):
    mixture = MixtureConfig(
        row_length=300,
        policy_share=1.0,
        joint_share=0.0,
        inverse_share=0.0,
        describe_share=0.0,
        imagine_share=0.0,
        task_dropout=0.0,
    )
    recipe = Recipe(mixture=mixture, steps=100, rows=2, learning_rate=1e-2)
    monkeypatch.setattr(finetune, "finetune", lambda *_, **__: recipe)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (56, 56, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "frame.png")
    frame = {"kind": "frame", "frame": "frame.png", "outcome": "ongoing"}
    lines = []
    for orders in itertools.product(["left", "right"], repeat=3):
        segments = [{"kind": "text", "role": "task", "text": f"go {orders[0]}"}, frame]
        for place, order in enumerate(orders):
            if place:
                segments.append({"kind": "text", "role": "task", "text": f"go {order}"})
            segments += [{"kind": "action", "action": order}, frame]
        lines.append(json.dumps({"segments": segments}))
    (tmp_path / "orders.jsonl").write_text("\n".join(lines))
    import_jsonl(tmp_path / "orders.jsonl", tmp_path / "orders")
    data = tmp_path / "orders"
    out = train(replace(arguments, data=data, method="full", save_seconds=60, check_episodes=2))
    model, processor = UnifiedModel.from_pretrained(out), UnifiedProcessor.from_pretrained(out)
    agent = Agent(model.eval(), processor, think=False)
    for orders in itertools.product(["left", "right"], repeat=3):
        agent.reset()
        done = [agent.act(pixels, f"go {orders[0]}")]
        for order in orders[1:]:
            agent.instruct(f"go {order}")
            done.append(agent.act(pixels))
        assert done == list(orders)


def test_latents_of_another_codec_are_refused(arguments, other_codec):
    from data.latents import write_latents

    write_latents(arguments.data, other_codec)
    with pytest.raises(ValueError, match="with the codec you train with"):
        train(arguments)


def test_a_codec_of_the_data_is_taken_along(arguments, other_codec, tmp_path):
    other_codec.save_pretrained(tmp_path / "codec")
    out = train(replace(arguments, codec=tmp_path / "codec"))
    found = UnifiedProcessor.from_pretrained(out).codec
    assert found is not None
    assert found.fingerprint == other_codec.fingerprint


def test_a_codec_of_other_channels_needs_all_weights(arguments, tmp_path):
    config = {**TINY_CODEC, "autoencoder": {**TINY_CODEC["autoencoder"], "latent_channels": 6}}
    FrameCodec.from_config(config).save_pretrained(tmp_path / "codec")
    wide = replace(arguments, codec=tmp_path / "codec")
    with pytest.raises(ValueError, match="has 6 channels, the model 4; use --method full"):
        train(wide)
    out = train(replace(wide, method="full"))
    assert UnifiedModel.from_pretrained(out).config.latent_channels == 6


@pytest.mark.parametrize("names", [["right", "left"], ["fly"]])
def test_actions_that_are_not_in_the_datas_own_space_are_refused(arguments, names):
    space = NamedActions("own", names)  # the episodes were made with BabyAI's actions
    (arguments.data / "action_space.json").write_text(json.dumps(space.to_config()))
    with pytest.raises(ValueError, match="has action '.*', which is none of"):
        train(replace(arguments, workers=0))


def test_data_that_use_a_part_of_the_models_actions_bring_none(arguments, tmp_path):
    frame = {"kind": "frame", "frame": "frame.png", "outcome": "ongoing"}
    Image.fromarray(np.full((56, 56, 3), 99, np.uint8)).save(tmp_path / "frame.png")
    turns = [{"kind": "action", "action": name} for name in ("right", "left")]
    episode = {"segments": [frame, turns[0], frame, turns[1], frame]}
    (tmp_path / "own.jsonl").write_text(json.dumps(episode))
    import_jsonl(tmp_path / "own.jsonl", tmp_path / "own")
    out = train(replace(arguments, data=tmp_path / "own", check_episodes=0))
    processor = UnifiedProcessor.from_pretrained(out)
    assert len(processor.action_space.tokens) == 7  # pyright: ignore[reportOptionalMemberAccess]


def test_an_unknown_preset_is_refused(arguments):
    with pytest.raises(ValueError, match="'everything' is unknown; use agent"):
        train(replace(arguments, preset="everything"))


def test_the_check_counts_what_one_counts_by_hand(arguments):
    train(replace(arguments, steps=1, check_episodes=0))
    model = UnifiedModel.from_pretrained(arguments.model).eval()
    processor = UnifiedProcessor.from_pretrained(arguments.model)
    episodes = EpisodeDataset(arguments.data, require_latents=True)
    index = int(np.flatnonzero(episodes.lengths <= 8)[0])
    answers = ask(model, processor, episodes, [index])
    stream = processor.stream(episodes.sequence(index))
    row = plan_training(stream, model.config, spans=[], noise_levels=torch.zeros(0, 1))
    with torch.no_grad():
        logits = model(**collate([row], model.config, len(row))).logits[0]
    first, stop = model.config.action_token_ids
    places = [i for i, x in enumerate(row.labels.tolist()) if first <= x < stop]
    right = [int(logits[i, first:stop].argmax()) + first == int(row.labels[i]) for i in places]
    assert answers.actions == pytest.approx(sum(right) / len(right))
    assert answers.frames is not None


GOOD = Check(Answers(0.2, 0.1, 0.3), Answers(0.9, 0.7, 0.8), (2.0, 1.0), (0.5, 0.1), True)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"is_changed": False}, "no weight has changed"),
        (
            {"trained": Answers(0.21, 0.7, 0.8)},
            "actions of training episodes are predicted no better",
        ),
        ({"trained": Answers(0.9, 0.7, 0.3)}, "frames drawn from pure noise are no better"),
        (
            {"base": Answers(None, None, 0.3), "trained": Answers(None, None, 0.8)},
            "the data teach no action and no words",
        ),
        (
            {"base": Answers(None, 0.1, 0.3), "trained": Answers(None, 0.1, 0.8)},
            "what the agent says in training episodes is predicted no better",
        ),
        ({"token_loss": (2.0, 2.0), "flow_loss": (0.5, 0.5)}, "neither loss fell"),
    ],
)
def test_a_warning_names_the_likely_cause(changes, cause):
    (warning,) = replace(GOOD, **changes).warnings()
    assert cause in warning


def test_a_run_that_worked_has_no_warning():
    assert not GOOD.warnings()
    knew_it = replace(GOOD, base=Answers(0.99, 0.9, 0.99), trained=Answers(0.985, 0.9, 0.99))
    assert not knew_it.warnings()


def test_a_comparison_goes_on_where_it_stopped(tmp_path, monkeypatch):
    trained, evaluated = [], []
    share = {"value": 0.5, "low": 0.4, "high": 0.6}

    class Report:
        def save(self, folder):
            folder.mkdir(parents=True)
            names = ["next/determined/model", "next/changed/model", "rollout/16/determined/model"]
            content = {
                "agent": [{"success": share}],
                "shares": {"all": dict.fromkeys(names, share)},
            }
            (folder / "report.json").write_text(json.dumps(content))

    def fake_train(arguments):
        trained.append((arguments.method, arguments.episodes))
        folder = arguments.out / ("adapter" if arguments.method == "lora" else "model")
        folder.mkdir(parents=True)
        (folder / "check.json").write_text("{}")

    monkeypatch.setattr(comparison, "train", fake_train)
    monkeypatch.setattr(comparison, "evaluate", lambda a: evaluated.append(a.model) or Report())
    arguments = comparison.CompareArguments(
        level="PutNextLocal", data=tmp_path, out=tmp_path / "out", episodes=(5, 9)
    )
    table = comparison.compare(replace(arguments, methods=("lora",)))
    assert trained == [("lora", 9), ("lora", 5)]
    assert comparison.compare(replace(arguments, methods=("lora",))) == table
    assert len(evaluated) == 3
    comparison.compare(arguments)
    assert len(trained) == 6
    assert "| lora | 9 | 50.0 % [40.0, 60.0]" in (arguments.out / "compare.md").read_text()


def test_a_base_without_words_of_the_world_learns_from_data_in_which_the_world_speaks(
    arguments, tiny_codec, tmp_path, capsys
):
    base, data = tmp_path / "deaf", tmp_path / "spoken"
    save_tiny(UnifiedProcessor.from_pretrained("babyai"), tiny_codec, base)
    record_babyai(["PutNextLocal"], episodes=2, seed=4, out=data)
    out = train(replace(arguments, model=str(base), data=data, steps=1))
    printed = capsys.readouterr().out
    assert f"{base} has no words of the world" in printed
    check = json.loads((out / "check.json").read_text())
    assert check["trained"]["frames"] is not None
    lexicon = UnifiedProcessor.from_pretrained(out).lexicon
    assert lexicon is not None
    assert not any(phrase.say.startswith("i see") for phrase in lexicon.phrases)
