"""Frames of another size than the model's: refused by height and width, cropped or padded."""

import logging

import numpy as np
import pytest
from PIL import Image

from unified import FrameCodec, NamedActions, Sequence, UnifiedProcessor, frame_segment
from unified.media.pictures import fit_picture


@pytest.fixture(scope="module")
def processor():
    return UnifiedProcessor.from_pretrained("babyai")


@pytest.fixture(scope="module")
def wide():
    return np.random.default_rng(0).integers(0, 256, (56, 112, 3), dtype=np.uint8)


def prompt(frame):
    return [{"role": "world", "content": [{"type": "frame", "frame": frame}]}]


def test_an_embedded_checkpoint_knows_how_large_its_frames_are(processor, tmp_path):
    assert processor.latent_grid == (7, 7)
    assert processor.frame_size == (56, 56)
    processor.save_pretrained(tmp_path)
    assert UnifiedProcessor.from_pretrained(tmp_path).frame_size == (56, 56)


def test_what_is_made_of_a_processor_knows_it_too(processor):
    assert processor.with_action_space(NamedActions("own", ["hop"])).frame_size == (56, 56)
    codec = FrameCodec.from_config("tokenizers_cfg/codec/babyai.json")
    assert processor.with_codec(codec).latent_grid is None  # until the model adopts it


def test_as_many_tokens_in_another_shape_are_refused(processor):
    flat = np.zeros((8, 392, 3), np.uint8)  # 1 x 49 latents, as many as 7 x 7
    with pytest.raises(ValueError, match="is 8x392 pixels, this model's frames are 56x56"):
        processor.apply_chat_template(prompt(flat))
    with pytest.raises(ValueError, match="frame 0 is 8x392 pixels"):
        processor.encode([Sequence([frame_segment(flat)])])
    latents = np.zeros((8, 1, 49), np.float32)
    with pytest.raises(ValueError, match="has 1x49 latents, the model's have 7x7"):
        processor.encode([Sequence([frame_segment(latents=latents)])])


@pytest.mark.parametrize("how", ["crop", "pad"])
def test_a_grid_of_codes_is_not_enlarged_to_a_frame(how):
    processor = UnifiedProcessor.from_pretrained("babyai", resize=how)
    codes = np.random.default_rng(0).integers(0, 11, (7, 7, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="the frame is 7x7 pixels, which is no picture but numb"):
        processor.apply_chat_template(prompt(codes))
    processor.apply_chat_template(prompt(np.zeros((16, 16, 3), np.uint8)))


def test_the_error_names_the_file_both_sizes_and_the_option(processor, wide, tmp_path):
    Image.fromarray(wide).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is 56x112") as caught:
        processor.apply_chat_template(prompt(tmp_path / "a.png"))
    assert str(caught.value).endswith(
        "a.png is 56x112 pixels, this model's frames are 56x56 (height x width); pass --resize "
        "crop or --resize pad to a command, or resize='crop' or 'pad' to "
        "UnifiedProcessor.from_pretrained"
    )


@pytest.mark.parametrize("how", ["crop", "pad"])
def test_resize_gives_the_frame_that_was_fitted_by_hand_and_tells_it_once(wide, how, caplog):
    processor = UnifiedProcessor.from_pretrained("babyai", resize=how)
    with caplog.at_level(logging.WARNING):
        found = processor.apply_chat_template(prompt(wide))
        processor.apply_chat_template(prompt(wide[::-1]))
    expected = processor.apply_chat_template(prompt(fit_picture(wide, (56, 56), how)))
    assert found["latents"].equal(expected["latents"])
    [told] = caplog.messages
    assert f"56x112 pixels; it is {how}" in told
    with pytest.raises(ValueError, match="resize='stretch' is unknown"):
        UnifiedProcessor.from_pretrained("babyai", resize="stretch")
