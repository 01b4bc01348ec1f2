"""The committed text tokenizer: golden ids, round trips, no injection, reproducible."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from train.tokenizer import Options, build, main
from unified.media.action_space import ActionSpace

ROOT = Path(__file__).resolve().parents[2] / "tokenizers_cfg"
SPECIALS = json.loads((ROOT / "special_tokens.json").read_text())
ACTIONS = ActionSpace.from_config(ROOT / "actions" / "babyai.json").tokens
TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "text")


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_ids_of_special_tokens_and_actions_follow_the_512_pieces():
    assert len(TOKENIZER) == 533
    order = [*SPECIALS.values(), *ACTIONS]
    assert TOKENIZER.convert_tokens_to_ids(order) == list(range(512, 533))
    assert TOKENIZER.pad_token_id == 512
    assert TOKENIZER.eos_token_id == 513


def test_golden_ids_of_a_task():
    assert TOKENIZER.tokenize("go to the red ball") == ["go", "Ġto", "Ġthe", "Ġred", "Ġball"]
    assert ids("go to the red ball") == [330, 315, 269, 308, 281]


@pytest.mark.parametrize(
    "text",
    [
        "pick up the grey key",
        "open the purple door",
        "put the green box next to a yellow ball on your right",
        "i see an open blue door 3 ahead and 1 left, carrying a red key",
    ],
)
def test_common_words_are_one_token_each(text):
    assert len(ids(text)) == len(text.replace(",", " ,").split())


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_round_trips_and_yields_pieces_only(text):
    tokens = ids(text)
    assert TOKENIZER.decode(tokens) == text
    assert all(token < 512 for token in tokens)


@pytest.mark.parametrize("token", [*SPECIALS.values(), *ACTIONS])
def test_a_special_token_written_in_text_stays_text(token):
    text = f"go to {token}{token} now"
    assert all(index < 512 for index in ids(text))
    assert all(index < 512 for index in TOKENIZER(text)["input_ids"])
    assert TOKENIZER.decode(ids(text)) == text


def test_training_again_gives_the_committed_files(tmp_path, capsys):
    main(Options(out=tmp_path))
    assert "533 tokens" in capsys.readouterr().out
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads(
            (ROOT / "text" / name).read_text()
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_bad_vocabularies_are_refused():
    texts = ["go to the red ball"] * 3
    with pytest.raises(ValueError, match="pad"):
        build(texts, special_tokens={"eos": "<eos>"}, action_tokens=[], vocab_size=256)
    with pytest.raises(ValueError, match="at least 256"):
        build(texts, special_tokens=SPECIALS, action_tokens=[], vocab_size=100)
    with pytest.raises(ValueError, match="declared twice"):
        build(texts, special_tokens=SPECIALS, action_tokens=["<frame>"], vocab_size=256)
    with pytest.raises(ValueError, match="pieces"):
        build(texts, special_tokens=SPECIALS, action_tokens=[], vocab_size=1000)


def test_texts_and_captions_of_recorded_episodes_are_read(tmp_path):
    from data.babyai.recorder import Recorder
    from data.episode import write_shard
    from train.tokenizer import read_episode_texts

    episode = Recorder("GoToRedBall").record(3)
    write_shard(tmp_path / "episodes" / "0.parquet", [episode])
    texts = read_episode_texts(tmp_path)
    said = {s.text for s in episode.segments if s.text} | {
        s.caption for s in episode.segments if s.caption
    }
    assert texts == sorted(said)
    with pytest.raises(ValueError, match=r"data\.prepare"):
        read_episode_texts(tmp_path / "missing")
