"""Training rows: what is shown, what is learned, and that a row depends on its number alone."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from data.dataset import Episode
from train.rows.documents import OPENINGS, Document, retell
from train.rows.mixture import Mixture, MixtureConfig
from train.rows.recall import Seen, last_seen, places_in_world
from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Segment, text_segment
from unified.media.action_space import ActionSpace
from unified.model.flow import NoiseSchedule

CONFIGS = Path(__file__).parents[3] / "tokenizers_cfg"
T = 5


class FewEpisodes:
    """Three episodes of five actions, with latents that count frames."""

    levels = ["GoToLocal"]
    episode_levels = np.array(["GoToLocal"] * 3)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Episode:
        latents = np.zeros((T + 1, 8, 2, 2), np.float16)
        latents += np.arange(T + 1, dtype=np.float16)[:, None, None, None]
        return Episode(
            id=str(index),
            level="GoToLocal",
            seed=index,
            behaviour="noisy",
            task="go to the red ball",
            actions=["left", "right", "forward", "pickup", "toggle"],
            targets=["left", "forward", "forward", None, "forward"],
            action_weights=[1.0, 1.0, 1.0, 0.0, 1.0],
            motions=[None] * 5,
            said=[[], [text_segment("explore")], [], [], [], []],
            told=[None, None, None, "the red ball vanishes", None, None],
            outcomes=[*["ongoing"] * T, "success"],
            captions=["i see a red ball 2 ahead"] * (T + 1),
            latents=latents,
        )


@pytest.fixture(scope="module")
def processor() -> UnifiedProcessor:
    return UnifiedProcessor(
        tokenizer=AutoTokenizer.from_pretrained(CONFIGS / "text"),
        action_space=ActionSpace.from_config(CONFIGS / "actions" / "babyai.json"),
    )


def mixture_of(processor: UnifiedProcessor, **shares: float) -> Mixture:
    config = UnifiedConfig(**{**processor.config_fields(), "latent_grid": (2, 2)})
    mixture = MixtureConfig(
        row_length=160,
        task_dropout=0.0,
        policy_share=shares.get("policy_share", 0.0),
        joint_share=shares.get("joint_share", 0.0),
        inverse_share=shares.get("inverse_share", 0.0),
        describe_share=shares.get("describe_share", 0.0),
        imagine_share=shares.get("imagine_share", 0.0),
    )
    return Mixture(FewEpisodes(), processor, config, mixture, num_rows=100, seed=3)  # pyright: ignore[reportArgumentType]


def learned(dataset: Mixture, index: int) -> list[tuple[str, str]]:
    """Tokens and what is learned after them, where something is."""
    row, names = dataset[index], dataset.processor.token_names
    pairs = zip(row.input_ids.tolist(), row.labels.tolist(), strict=True)
    return [(names[a], names[b]) for a, b in pairs if b != -100]


def test_a_row_depends_on_seed_and_number_alone(processor: UnifiedProcessor) -> None:
    one = mixture_of(processor, joint_share=0.5, describe_share=0.5)
    two = mixture_of(processor, joint_share=0.5, describe_share=0.5)
    _ = two[0], two[1]
    for name in ("input_ids", "noise_levels", "latents", "visible"):
        assert torch.equal(getattr(one[7], name), getattr(two[7], name))
    assert not torch.equal(one[7].noise_levels, one[8].noise_levels[: len(one[7])])


def test_rows_fit_and_are_never_empty(processor: UnifiedProcessor) -> None:
    dataset = mixture_of(processor, joint_share=0.4, inverse_share=0.3, imagine_share=0.3)
    sizes = [len(dataset[i]) for i in range(60)]
    assert 0 < min(sizes) <= max(sizes) <= 160


def test_the_experts_action_is_learned_while_the_taken_one_is_shown(
    processor: UnifiedProcessor,
) -> None:
    dataset = mixture_of(processor, policy_share=1.0)
    seen = {pair for i in range(20) for pair in learned(dataset, i) if pair[0] == "<action>"}
    assert seen == {("<action>", "<left>"), ("<action>", "<forward>")}  # right was not the expert's
    names = processor.token_names
    shown = {names[int(t)] for i in range(20) for t in dataset[i].input_ids}
    assert {"<right>", "<pickup>"} <= shown


def test_only_a_joint_document_pays_for_noisy_frames(processor: UnifiedProcessor) -> None:
    for share in ("policy_share", "inverse_share", "describe_share"):
        row = mixture_of(processor, **{share: 1.0})[0]
        assert not (row.flow_weights > 0).any()
    assert (mixture_of(processor, joint_share=1.0)[0].flow_weights > 0).any()


def test_spans_fall_on_the_frames_of_greater_weight(processor: UnifiedProcessor) -> None:
    dataset = mixture_of(processor, joint_share=1.0)
    dataset.mixture = replace(dataset.mixture, span_share=1.5, first_span_share=0.0)
    rng = np.random.default_rng(0)
    spans = dataset._spans(rng, np.array([1.0, 1e6, 1.0, 1.0]), room=1000)
    assert spans == [(2, 3)] * 6  # the third frame, at six levels
    assert len(dataset._spans(rng, np.ones(4), room=3 * dataset.config.frame_tokens)) == 3
    assert dataset._spans(rng, np.ones(0), room=1000) == [(0, 1)]
    assert set(dataset._spans(rng, np.array([0.0, 1.0, 0.0]), room=1000)) == {(2, 3)}
    assert dataset._spans(rng, np.zeros(3), room=1000) == []


SHOWN = torch.tensor([[1, 2], [1, 3], [2, 3], [4, 1], [4, 4], [2, 5]])  # what two tiles show
TILES = 10 * SHOWN[..., None].float().expand(-1, -1, 8) + 0.01


def test_a_latent_knows_how_many_frames_ago_it_was_last_shown() -> None:
    expected = [[0, 0], [1, 0], [2, 1], [0, 2], [1, 1], [3, 0]]
    assert last_seen(TILES, None).age.tolist() == expected


def test_the_same_thing_at_another_place_was_not_shown_before() -> None:
    still = torch.tensor([[0.0, 0.0], [0.0, 1.0]]).expand(6, 2, 2)
    assert last_seen(TILES, still).age.tolist() == [[0, 0], [1, 0], [0, 1], [0, 0], [1, 0], [3, 0]]
    moving = still + torch.arange(6)[:, None, None] * torch.tensor([0.0, 1.0])
    walked = 10 * (torch.arange(6)[:, None] + torch.arange(2))[..., None].expand(-1, -1, 8).float()
    assert last_seen(walked, moving).age.tolist() == [[0, 0]] + [[1, 0]] * 5
    assert not last_seen(walked, still).age.any()


def test_a_latent_is_changed_where_its_place_last_showed_something_else() -> None:
    still = torch.tensor([[0.0, 0.0], [0.0, 1.0]]).expand(6, 2, 2)
    changed = [
        [False, False],
        [False, True],
        [True, False],
        [True, True],
        [False, True],
        [True] * 2,
    ]
    assert last_seen(TILES, still).is_changed.tolist() == changed
    assert not last_seen(TILES, None).is_changed.any()
    walked = still + torch.arange(6)[:, None, None] * torch.tensor(
        [0.0, 5.0]
    )  # never the same place
    assert not last_seen(TILES, walked).is_changed.any()


def test_what_changed_weighs_more(processor: UnifiedProcessor) -> None:
    dataset = mixture_of(processor, joint_share=1.0)
    dataset.mixture = replace(dataset.mixture, recall_weight=1.0, change_weight=8.0)
    age = torch.tensor([[0, 0], [1, 0], [3, 12]])
    changed = torch.tensor([[False, False], [True, True], [True, True]])
    weights = dataset._latent_weights(Seen(age, changed))
    assert weights.tolist() == [[1.0, 1.0], [8.0, 8.0], [8.0, 12.0]]


def test_spans_seek_frames_before_which_the_world_said_what_happens(
    processor: UnifiedProcessor,
) -> None:
    dataset = mixture_of(processor, joint_share=1.0)
    share = {}
    for weight in (1.0, 1e6):
        dataset.mixture = replace(
            dataset.mixture, event_weight=weight, span_share=0.2, first_span_share=0.0
        )
        drawn = []  # latents count frames; the event comes before the fourth
        for i in range(12):
            row = dataset[i]
            drawn += row.latents[row.flow_weights > 0][:, 0].tolist()
        share[weight] = drawn.count(3.0) / len(drawn)
    assert share[1e6] > 2 * share[1.0] > 0


def test_places_follow_turns_and_steps(processor: UnifiedProcessor) -> None:
    config = mixture_of(processor).config
    config.path_origin = (1, 0)
    quarter = torch.pi / 2
    places = places_in_world([(quarter, 0.0, 0.0), (0.0, 1.0, 0.0)], config)
    expected = [
        [[1, 0], [1, 1], [0, 0], [0, 1]],  # ahead and right of the agent, who stands at row 1
        [[0, 1], [-1, 1], [0, 0], [-1, 0]],  # turned to the right
        [[0, 2], [-1, 2], [0, 1], [-1, 1]],  # and one step on
    ]
    torch.testing.assert_close(places, torch.tensor(expected).float(), rtol=0, atol=1e-5)


def test_a_mixture_draws_from_its_levels_alone(processor: UnifiedProcessor) -> None:
    episodes = FewEpisodes()
    episodes.levels = ["GoToLocal", "OpenDoor"]
    episodes.episode_levels = np.array(["GoToLocal", "OpenDoor", "GoToLocal"])
    dataset = mixture_of(processor, policy_share=1.0)

    def of(*levels: str) -> Mixture:
        chosen = replace(dataset.mixture, levels=levels)
        options = {"num_rows": 9, "seed": 0}
        return Mixture(episodes, processor, dataset.config, chosen, **options)  # pyright: ignore[reportArgumentType]

    assert of("OpenDoor").chosen.tolist() == [1]
    with pytest.raises(ValueError, match="no episode of Clutter, only of GoToLocal, OpenDoor"):
        of("Clutter")


def test_what_no_earlier_frame_shows_weighs_as_a_reveal(processor: UnifiedProcessor) -> None:
    dataset = mixture_of(processor, joint_share=1.0)
    dataset.mixture = replace(dataset.mixture, reveal_weight=0.25)
    weights = torch.cat([dataset[i].flow_weights for i in range(20)])
    assert set(weights.tolist()) == {0.0, 0.25}  # every frame of these episodes is new


def test_latents_that_come_back_weigh_more_in_the_loss(processor: UnifiedProcessor) -> None:
    class Returning(FewEpisodes):
        def __getitem__(self, index: int) -> Episode:
            episode = super().__getitem__(index)
            assert episode.latents is not None
            latents = np.zeros_like(episode.latents)
            # Out of sight for one frame, then for two.
            latents[:, :, 0, 1] = np.array([5, 0, 5, 0, 0, 5])[:, None]
            return replace(episode, latents=latents)

    dataset = mixture_of(processor, joint_share=1.0)
    dataset.episodes = Returning()  # pyright: ignore[reportAttributeAccessIssue]
    dataset.mixture = replace(dataset.mixture, recall_weight=6.0)
    rows = [dataset[i] for i in range(20)]
    weights = torch.cat([row.flow_weights for row in rows])
    latents = torch.cat([row.latents for row in rows])[:, 0]
    assert set(weights.tolist()) == {0.0, 1.0, 7.0, 13.0}
    assert set(latents[weights >= 7].tolist()) == {5.0}


def test_an_inverse_document_hides_the_action_before_and_tells_it_after(
    processor: UnifiedProcessor,
) -> None:
    dataset = mixture_of(processor, inverse_share=1.0)
    pairs = [pair for i in range(20) for pair in learned(dataset, i)]
    assert not [b for a, b in pairs if a == "<action>"]
    assert {b for a, b in pairs if a == "<inverse>"} == {
        f"<{a}>" for a in ("left", "right", "forward", "pickup", "toggle")
    }


def test_a_described_frame_teaches_words_and_no_action(processor: UnifiedProcessor) -> None:
    dataset = mixture_of(processor, describe_share=1.0)
    pairs = [pair for i in range(20) for pair in learned(dataset, i)]
    assert "<success>" not in {b for _, b in pairs}
    assert not [b for a, b in pairs if a == "<action>"]
    assert {b for _, b in pairs} & {"<eos>", "<action>"} == {"<eos>", "<action>"}


def test_an_imagined_frame_follows_its_description(processor: UnifiedProcessor) -> None:
    row = mixture_of(processor, imagine_share=1.0)[0]
    names = [processor.token_names[int(t)] for t in row.input_ids]
    assert names[0] == "<world>"
    assert "<frame>" in names
    assert not [b for _, b in learned(mixture_of(processor, imagine_share=1.0), 0) if b[0] != "<"]
    assert (row.flow_weights > 0).sum() % 4 == 0
    assert (row.flow_weights > 0).any()


def test_noise_levels_stay_in_range_and_hold_their_share_of_pure_noise() -> None:
    schedule = NoiseSchedule(pure_noise_share=0.3, context_share=0.5, context_max=0.1)
    generator = torch.Generator().manual_seed(0)
    levels = schedule.sample((20_000,), generator)
    assert 0 <= levels.min() <= levels.max() == 1
    assert abs(float((levels == 1).float().mean()) - 0.3) < 0.02
    context = schedule.sample_context((20_000,), generator)
    assert float(context.max()) <= 0.1
    assert abs(float((context == 0).float().mean()) - 0.5) < 0.02


def talking(**changes: object) -> Episode:
    """The task speaks again after frame 2, and the agent says something at the end."""
    episode = FewEpisodes()[0]
    said = [list(words) for words in episode.said]
    asked = text_segment("now the blue key", "task", weight=0.0)
    said[2] = [text_segment("a door", weight=0.5), asked, text_segment("explore")]
    said[T] = [text_segment("a red ball")]
    return replace(episode, **{"said": said, **changes})  # pyright: ignore[reportArgumentType]


def policy(episode: Episode, first: int, last: int, **words: Any) -> list[Segment]:
    """The segments of a document to act in."""
    document = Document(episode=episode, first=first, last=last, action_weight=4.0, **words)
    return document.segments("policy", np.random.default_rng(0))


def spoken(episode: Episode, first: int, last: int, dropout: float = 0.0) -> list[object]:
    """Words with their weights, actions and outcomes of a policy document."""
    task = None if dropout else episode.task
    segments = policy(episode, first, last, task=task, is_true_task=not dropout)
    return [(s.text, s.weight) if s.text else s.action or s.outcome for s in segments]


TASK, ASKED = ("go to the red ball", 0.0), ("now the blue key", 0.0)
REPLY = ("a door", 0.5)
TOLD = ("the red ball vanishes", 1.0)


def test_words_stand_where_they_were_said() -> None:
    whole = ["ongoing", "left", "ongoing", ("explore", 1.0), "right", "ongoing"]
    whole += [REPLY, ASKED, ("explore", 1.0), "forward", TOLD, "ongoing", "pickup", "ongoing"]
    whole += ["toggle"]
    assert spoken(talking(), 0, T + 1) == [TASK, *whole, "success", ("a red ball", 1.0)]


def test_who_was_about_to_act_is_not_shown_to_stop() -> None:
    assert spoken(talking(), 2, 3) == [TASK, "ongoing", REPLY, ASKED]
    assert spoken(talking(), 1, 2) == [TASK, "ongoing"]


def test_without_its_task_nothing_of_an_episode_is_learned_or_said(
    processor: UnifiedProcessor,
) -> None:
    acts = ["ongoing", "left", "ongoing", "right", "ongoing"]
    assert spoken(talking(), 0, 3, dropout=1.0) == acts
    dataset = mixture_of(processor, policy_share=1.0)
    dataset.mixture = replace(dataset.mixture, task_dropout=1.0)
    assert not [pair for pair in learned(dataset, 0) if pair[0] in ("<action>", "<agent>")]


def test_an_episode_that_never_had_a_task_is_learned() -> None:
    segments = policy(talking(task=None), 0, 4, task=None, is_true_task=True)
    assert [s.weight for s in segments if s.kind == "action"] == [4.0] * 3
    said = [s.text for s in segments if s.text and s.role != "world"]
    assert said == ["explore", "a door", ASKED[0], "explore"]


def test_under_another_task_only_answers_are_learned_and_no_outcome(
    processor: UnifiedProcessor,
) -> None:
    question = text_segment("what do you carry?", "task", weight=0.0)
    asked = [[], [text_segment("explore")], [question, text_segment("nothing")], [], [], []]
    segments = policy(talking(said=asked), 0, 5, task="open the door", is_true_task=False)
    said = [(s.text, s.weight) for s in segments if s.text and s.role == "agent"]
    assert said == [("nothing", 1.0)]
    assert not any(s.weight for s in segments if s.kind == "action")
    dataset = mixture_of(processor, joint_share=1.0)
    dataset.episodes = Tasks()  # pyright: ignore[reportAttributeAccessIssue]
    dataset.mixture = replace(dataset.mixture, task_swap=1.0)
    for i in range(6):
        assert not {b for _, b in learned(dataset, i)} & {"<ongoing>", "<success>", "<left>"}
        assert (dataset[i].flow_weights > 0).any()


def test_the_world_may_open_with_a_promise_of_the_true_task(processor: UnifiedProcessor) -> None:
    dataset = mixture_of(processor, joint_share=1.0)
    dataset.mixture = replace(dataset.mixture, promise_share=1.0, task_dropout=1.0)
    row = [processor.token_names[int(token)] for token in dataset[0].input_ids]
    words = processor.tokenizer.encode("here one can go to the red ball")
    assert "<task>" not in row
    start = row.index("<world>") + 1
    assert dataset[0].input_ids[start : start + len(words)].tolist() == words


def test_time_that_passed_moves_all_that_comes_later(processor: UnifiedProcessor) -> None:
    dataset = mixture_of(processor, joint_share=1.0)
    dataset.mixture = replace(dataset.mixture, skip_share=0.0)
    plain = dataset[0].position_ids
    dataset.mixture = replace(dataset.mixture, skip_share=1.0)
    skipped = dataset[0].position_ids
    assert plain.max() < 200
    assert skipped.max() >= plain.max()


def test_a_caption_is_told_again_with_other_words_and_the_same_things() -> None:
    caption = "i see a red ball 2 ahead, a blue key 1 left, carrying a box"
    things = {"a red ball 2 ahead", "a blue key 1 left", "carrying a box"}
    told = [retell(caption, np.random.default_rng(i)) for i in range(40)]
    for words in told:
        opening = next(start for start in OPENINGS if words.startswith(start))
        assert set(words.removeprefix(opening).strip().split(", ")) <= things
    assert len(set(told)) > 10
    assert retell("i see nothing", np.random.default_rng(0)).endswith("nothing")


class Tasks(FewEpisodes):
    """An episode has another task each time that it is looked at."""

    def __init__(self) -> None:
        self.number = itertools.count()

    def __getitem__(self, index: int) -> Episode:
        return replace(super().__getitem__(index), task=f"go to door {next(self.number)}")


class Talkative(FewEpisodes):
    def __init__(self, count: int):
        self.count = count

    def __getitem__(self, index: int) -> Episode:
        words = [text_segment("a red ball " * self.count)]
        return replace(super().__getitem__(index), said=[words] * (T + 1))


def test_the_more_is_said_the_fewer_frames_make_a_document(processor: UnifiedProcessor) -> None:
    dataset = mixture_of(processor, policy_share=1.0)
    dataset.episodes = Talkative(12)  # pyright: ignore[reportAttributeAccessIssue]
    frames = [int((dataset[i].input_ids == dataset.config.frame_token_id).sum()) for i in range(9)]
    assert 0 < min(frames) <= max(frames) < 6
    dataset.episodes = Talkative(90)  # pyright: ignore[reportAttributeAccessIssue]
    dataset.mixture = replace(dataset.mixture, max_frames=2)
    assert max(len(dataset[i]) for i in range(3)) <= 160  # frames before all that is said


def test_a_row_that_nothing_fits_into_is_refused(processor: UnifiedProcessor) -> None:
    dataset = mixture_of(processor, policy_share=1.0)
    dataset.mixture = replace(dataset.mixture, row_length=20)
    with pytest.raises(ValueError, match="none of 1000 episodes .* row_length=20 tokens"):
        dataset[0]


def without_world_token() -> UnifiedProcessor:
    """The embedded model's words, among which is none that opens the world's."""
    embedded = UnifiedProcessor.from_pretrained("babyai")
    return UnifiedProcessor(tokenizer=embedded.tokenizer, action_space=embedded.action_space)


def test_a_model_without_words_of_the_world_sees_no_frame_before_which_the_world_speaks() -> None:
    deaf = without_world_token()
    shares = ("policy", "joint", "inverse", "describe", "imagine")
    dataset = mixture_of(deaf, **{f"{name}_share": 0.2 for name in shares})
    assert not dataset.hears_world
    assert dataset.mixture.imagine_share == 0
    frames = set()
    for index in range(100):
        row = dataset[index]
        frames |= set(row.latents.unique().tolist())
    assert frames == {0.0, 1.0, 2.0, 4.0, 5.0}  # the world speaks before frame 3


def test_a_model_without_words_of_the_world_is_named_where_nothing_else_is_left() -> None:
    deaf = without_world_token()
    dataset = mixture_of(deaf, imagine_share=1.0)
    with pytest.raises(ValueError, match="hears no words of the world"):
        dataset[0]
