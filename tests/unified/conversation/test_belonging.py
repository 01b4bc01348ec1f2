"""Model and processor are two saves: one of each of two checkpoints is no checkpoint."""

import numpy as np
import pytest
import torch

from tests.unified.parts import TOKENIZERS, babyai_parts
from unified.conversation.processing import UnifiedProcessor
from unified.media.actions import NamedActions
from unified.media.codec import FrameCodec
from unified.modeling import UnifiedModel

REFUSED = r"do not belong together \(.* with other {}\): one of them was saved over another's"


def saved(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)
    return folder


def other_codec():
    torch.manual_seed(7)
    return FrameCodec.from_config(TOKENIZERS / "codec" / "babyai.json")


def other_parts(what):
    """Another model with its processor, which differs in one thing."""
    processor = babyai_parts()[1]
    if what == "codec":
        processor = processor.with_codec(other_codec())
    elif what == "actions, tokens":
        processor = processor.with_action_space(NamedActions("arm", ["x1", "x2"]))
    else:  # the same tokens with other meanings, as of another keyboard
        assert processor.action_space is not None
        names = [token.strip("<>") for token in processor.action_space.tokens]
        processor.action_space = NamedActions("another", names)
    fields = {k: v for k, v in babyai_parts()[0].config.to_dict().items() if k != "model_type"}
    config = type(babyai_parts()[0].config)(**{**fields, **processor.config_fields()})
    return UnifiedModel(config), processor


@pytest.mark.parametrize("what", ["codec", "actions, tokens", "actions"])
@pytest.mark.parametrize("first", [0, 1])
def test_what_was_saved_over_another_checkpoint_is_refused_until_both_are(tmp_path, what, first):
    other = other_parts(what)
    saved(tmp_path, *babyai_parts())
    saved(tmp_path, other[first])  # killed here
    with pytest.raises(ValueError, match=REFUSED.format(what)):
        UnifiedProcessor.from_pretrained(tmp_path)
    saved(tmp_path, other[1 - first])
    assert UnifiedProcessor.from_pretrained(tmp_path).fingerprints() == other[1].fingerprints()


def test_a_model_may_be_saved_again_beside_its_processor(tmp_path):
    model, processor = babyai_parts()
    saved(tmp_path, model, processor)
    with torch.no_grad():
        model.model.embed_tokens.weight += 1
    saved(tmp_path, model)
    assert UnifiedProcessor.from_pretrained(tmp_path).fingerprints() == processor.fingerprints()


@pytest.mark.parametrize("space", [None, NamedActions("arm", ["x1", "x2"])])
def test_what_a_model_adopted_it_may_be_saved_with(tmp_path, space):
    model, processor = babyai_parts()
    processor = processor.with_codec(other_codec())
    if space is not None:
        processor = processor.with_action_space(space)
    model.adopt(processor, (7, 7))
    saved(tmp_path, model, processor)
    assert UnifiedProcessor.from_pretrained(tmp_path).fingerprints() == processor.fingerprints()
    model.fold_adopted()
    saved(tmp_path, model)
    assert UnifiedProcessor.from_pretrained(tmp_path).fingerprints() == processor.fingerprints()


def test_a_codec_that_came_later_may_be_said_to_belong_to_a_model(tmp_path):
    model, processor = babyai_parts()
    processor.codec = other_codec()
    saved(tmp_path, model, processor)
    with pytest.raises(ValueError, match=r"set model\.config\.made_for = processor\.fingerprints"):
        UnifiedProcessor.from_pretrained(tmp_path)
    model.config.made_for = processor.fingerprints()
    saved(tmp_path, model)
    loaded = UnifiedProcessor.from_pretrained(tmp_path)
    frame = np.zeros((1, 56, 56, 3), np.uint8)
    assert torch.equal(loaded.encode_pixels(frame), processor.encode_pixels(frame))


def test_a_model_of_which_nobody_knows_is_read_as_before(tmp_path):
    model, _ = babyai_parts()
    model.config.made_for = None
    saved(tmp_path, model, babyai_parts()[1].with_codec(other_codec()))
    assert UnifiedModel.from_pretrained(tmp_path).config.made_for is None
    UnifiedProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["babyai", "babyai-world"])
def test_the_embedded_models_say_what_they_were_made_for(name):
    made_for = UnifiedModel.from_pretrained(name).config.made_for
    assert made_for is not None
    assert made_for == UnifiedProcessor.from_pretrained(name).fingerprints()
    assert made_for.keys() == {"tokens", "actions", "codec"}
