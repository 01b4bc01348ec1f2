from typing import Any

import pytest

from data import recording
from data.dataset import EpisodeDataset
from train.heard import heard
from train.rows.documents import OPENINGS
from train.rows.mixture import MixtureConfig
from unified.conversation.lexicon import Lexicon


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heard") / "data"
    recording.record_babyai(["GoToRedBall"], episodes=2, seed=40, out=folder)
    return EpisodeDataset(folder)


def test_what_is_recorded_and_drawn_is_heard(episodes):
    lexicon = heard(episodes, MixtureConfig())
    said: Any = [episodes[i] for i in range(len(episodes))]
    texts = [e.task for e in said] + [c for e in said for c in e.captions if c]
    texts += [s.text for e in said for turn in e.said for s in turn]
    phrases = ["describe what you see", "i see DESCRIPTION"]
    assert [phrase.say for phrase in lexicon.phrases] == phrases
    assert lexicon.words == Lexicon.of([*texts, *OPENINGS, "describe what you see"]).words
    promised = set(heard(episodes, MixtureConfig(promise_share=0.1)).words)
    assert promised == {*lexicon.words, "here", "one", "can"}
    assert not heard(episodes, MixtureConfig(describe_share=0, imagine_share=0)).phrases


def test_training_on_other_data_adds_to_what_was_known(episodes):
    before = Lexicon.of(["zebra"])
    after = heard(episodes, MixtureConfig(), before)
    assert set(after.words) == {"zebra", *heard(episodes, MixtureConfig()).words}
    assert heard(episodes, MixtureConfig(), after) == after


def test_a_language_model_knows_all_words(episodes):
    lexicon = heard(episodes, MixtureConfig(), knows_words=True)
    assert not lexicon.words
    assert lexicon.hint("onomatopoeia") is None
