import pytest

from unified.conversation.lexicon import Lexicon, Phrase
from unified.files import write_json

SAY = Phrase("imagine: DESCRIPTION", "forward", "a first frame")


def test_a_lexicon_comes_back_from_its_file(tmp_path):
    lexicon = Lexicon.of(["Open the red door", "a key"], [SAY])
    assert lexicon.words == ("a", "door", "key", "open", "red", "the")
    write_json(tmp_path / "lexicon.json", lexicon.to_json())
    assert Lexicon.read(tmp_path) == lexicon
    assert Lexicon.read(tmp_path / "nowhere") is None


def test_words_that_were_never_heard_are_named_with_those_that_are_like_them():
    lexicon = Lexicon.of(["open the red door"])
    assert lexicon.unknown("Open the RED dor, now") == {"dor": ["door"], "now": []}
    assert "'dor' (like it: door), 'now' in training" in str(lexicon.hint("the dor now"))
    assert lexicon.hint("open the door") is None
    assert Lexicon().hint("anything") is None


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"words": 3, "phrases": []}', "[" * 9000, "nonsense"]
)
def test_a_broken_lexicon_is_refused(tmp_path, text):
    (tmp_path / "lexicon.json").write_text(text)
    with pytest.raises(ValueError, match="lexicon.json cannot be read .* copy the checkpoint"):
        Lexicon.read(tmp_path)
