"""Messages to tokens and back, saving, and prompts that cannot be read."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from unified.conversation.messages import sequence_from_messages
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import (
    Kind,
    Sequence,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.media.actions import ContinuousActions, NamedActions

GOLDEN = {
    "open the red door": [322, 269, 308, 277],
    "go to the blue ball": [330, 315, 269, 314, 281],
    "pick up a grey key": [338, 337, 256, 304, 289],
    "I see a red ball 2 ahead and 1 left": [40, 283, 256, 308, 281, 297, 263, 267, 284, 295],
    "describe what you see": [445, 412, 336, 283],
    "imagine: ": [370, 25, 220],
    "Zürich": [57, 127, 120, 285, 473],
    "  two  spaces ": [220, 260, 86, 78, 220, 407, 79, 64, 66, 374, 220],
    "<frame>": [27, 69, 81, 487, 29],
    "🙂\n": [172, 253, 247, 224, 198],
}


def pixels(seed=0, size=(16, 16)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def message(role, *items):
    return {"role": role, "content": list(items)}


def text(words):
    return {"type": "text", "text": words}


def frame(**options):
    return {"type": "frame", "frame": pixels(**options)}


def action(name):
    return {"type": "action", "action": name}


PROMPT = [
    message("task", text("open the red door")),
    message("world", frame()),
    message("agent", action("left")),
]


@pytest.mark.parametrize("words", GOLDEN)
def test_words_have_golden_ids_and_come_back(tiny_processor, words):
    sequence = Sequence([text_segment(words, "task")])
    ids = tiny_processor.stream(sequence).input_ids.tolist()
    assert ids == [514, *GOLDEN[words]]
    assert tiny_processor.tokenizer.decode(ids[1:]) == words


def test_markers_outcomes_and_actions_have_golden_ids(world, tiny_processor):
    rng = np.random.default_rng(0)
    segments = [text_segment("go", "task"), world.frame(rng), text_segment("I go")]
    segments += [action_segment(None), world.frame(rng), action_segment("done", hindsight=True)]
    segments += [action_segment("left"), world.frame(rng, "success")]
    ids = tiny_processor.stream(Sequence(segments)).input_ids.tolist()
    go = tiny_processor.tokenizer.encode("go")
    i_go = tiny_processor.tokenizer.encode("I go")
    shown = [516, 518, 518, 518, 518, 517]
    assert ids == [514, *go, *shown, 522, 515, *i_go, 519, 521] + [
        *shown,
        522,
        520,
        532,
        515,
        519,
        526,
        *shown,
        523,
    ]


def test_an_action_round_trips_by_name_and_by_number(tiny_processor):
    space = tiny_processor.action_space
    for number, name in enumerate(space.names):
        assert (
            tiny_processor.action_ids(name) == tiny_processor.action_ids(number) == [526 + number]
        )
        assert space.decode([tiny_processor.token_names[526 + number]]) == name


@settings(max_examples=30)
@given(
    num_frames=st.integers(0, 4),
    seed=st.integers(0, 99),
    task=st.sampled_from(["go", "öffne die Tür <frame>"]),
    thoughts=st.booleans(),
    hindsight=st.booleans(),
    exchanges=st.booleans(),
    last_outcome=st.sampled_from([None, "ongoing", "success", "failure"]),
)
def test_tokens_read_back_are_the_conversation(world, **options):
    processor, config = world.processor, world.config()
    episode = world.episode(**options)
    inputs = processor.encode([episode])
    latents = inputs.get("latents")
    read = processor.segments(
        inputs["input_ids"][0], None if latents is None else latents[0], config
    )
    assert len(read) == len(episode)
    for found, segment in zip(read, episode.segments, strict=True):
        for name in ("kind", "role", "text", "action", "hindsight", "outcome"):
            assert getattr(found, name) == getattr(segment, name), name
        if segment.kind is Kind.FRAME:
            assert torch.equal(torch.as_tensor(found.latents), torch.as_tensor(segment.latents))


def test_a_reply_ends_before_the_task_speaks_again(world, tiny_processor):
    frame = world.frame(np.random.default_rng(0))
    segments = [text_segment("go", "task", weight=0.0), frame, text_segment("a door", weight=0.5)]
    segments += [
        text_segment("open it", "task", weight=0.0),
        text_segment("yes"),
        action_segment("left"),
    ]
    stream = tiny_processor.stream(Sequence(segments))
    names = [tiny_processor.token_names[int(i)] for i in stream.input_ids]
    places = [i for i, name in enumerate(names) if name in ("<task>", "<agent>", "<eos>")]
    spoken = [(names[i], float(stream.weights[i])) for i in places]
    turn = [("<agent>", 0.0), ("<eos>", 0.5), ("<task>", 0.0), ("<agent>", 0.0)]
    assert spoken == [("<task>", 0.0), *turn]
    assert names[-2:] == ["<action>", "<left>"]


def test_an_unknown_action_told_in_hindsight_stays_so(world, tiny_processor):
    rng = np.random.default_rng(0)
    segments = [world.frame(rng), action_segment(None), world.frame(rng)]
    segments += [action_segment(None, hindsight=True), action_segment("left")]
    inputs = tiny_processor.encode([Sequence(segments)])
    read = tiny_processor.segments(inputs["input_ids"][0], inputs["latents"][0], world.config())
    assert [(s.action, s.hindsight) for s in read if s.kind is Kind.ACTION] == [
        (None, False),
        (None, True),
        ("left", False),
    ]


def test_the_experts_action_is_the_target_where_another_one_is_shown(world, tiny_processor):
    moves = [action_segment("left", target="right", weight=2.0), action_segment("done", weight=0)]
    rng = np.random.default_rng(0)
    sequence = Sequence([world.frame(rng), moves[0], world.frame(rng), moves[1], world.frame(rng)])
    stream = tiny_processor.stream(sequence)
    places = ((stream.input_ids >= 526) & (stream.input_ids < 533)).nonzero()[:, 0]
    assert stream.input_ids[places].tolist() == [526, 532]
    assert stream.targets[places].tolist() == [527, 532]
    assert stream.weights[places].tolist() == [2, 0]
    others = torch.ones(len(stream), dtype=torch.bool).index_fill(0, places, False)
    assert torch.equal(stream.targets[others], stream.input_ids[others])


def test_a_motion_stands_at_its_action_and_nowhere_else(world, tiny_processor):
    rng = np.random.default_rng(0)
    motion = (1.5, 0.0, -2.0)
    segments = [world.frame(rng), action_segment("right", motion=motion), world.frame(rng)]
    segments += [action_segment(None, motion=motion), world.frame(rng)]
    segments += [action_segment("left", hindsight=True)]
    stream = tiny_processor.stream(Sequence(segments))
    is_known = stream.motions.isfinite().all(-1)
    assert stream.input_ids[is_known].tolist() == tiny_processor.action_ids("right")
    assert stream.motions[is_known].tolist() == [list(motion)]


def test_pixels_become_the_codecs_latents(tiny_processor):
    inputs = tiny_processor.apply_chat_template(PROMPT, return_tensors="pt")
    is_latent = inputs["input_ids"][0] == 518
    latents = tiny_processor.encode_pixels(pixels()[None])[0]
    torch.testing.assert_close(inputs["latents"][0, is_latent], latents.flatten(1).T)
    assert not inputs["latents"][0, ~is_latent].any()


def test_images_and_arrays_and_plain_strings_are_read_alike(tiny_processor):
    plain = [
        {"role": "task", "content": "open the red door"},
        message("world", {"type": "frame", "frame": Image.fromarray(pixels())}),
        message("agent", action("left")),
    ]
    one = tiny_processor.apply_chat_template(PROMPT)
    other = tiny_processor.apply_chat_template(plain)
    assert torch.equal(one["input_ids"], other["input_ids"])
    assert torch.equal(one["latents"], other["latents"])


def test_ragged_conversations_are_padded_on_the_right(tiny_processor):
    batch = tiny_processor.apply_chat_template([PROMPT, PROMPT[:1], PROMPT[:2]])
    for row, prompt in enumerate([PROMPT, PROMPT[:1], PROMPT[:2]]):
        alone = tiny_processor.apply_chat_template(prompt)
        length = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, :length], alone["input_ids"][0])
        assert batch["attention_mask"][row].sum() == length
        assert (batch["input_ids"][row, length:] == 512).all()


def test_a_frame_that_was_answered_is_ongoing_and_the_last_is_untold(tiny_processor):
    messages = [*PROMPT, message("world", frame(seed=1))]
    frames = sequence_from_messages(messages, tiny_processor.action_ids).frames()
    assert [segment.outcome for segment in frames] == ["ongoing", None]


def test_a_reply_is_messages_that_the_conversation_goes_on_with(world, tiny_model, tiny_processor):
    ongoing = {"type": "outcome", "outcome": "ongoing"}
    messages = [PROMPT[0], message("world", frame(), ongoing)]
    for query in ("policy", "forward", "policy"):
        inputs = tiny_processor.apply_chat_template(messages, return_tensors="pt")
        reply = tiny_processor.decode(tiny_model.generate(**inputs, query=query, think=False))
        if query == "forward":
            assert reply[0]["content"][0]["frame"].size == (16, 16)
            reply[0]["content"][1] = ongoing
        messages += reply
    sequence = sequence_from_messages(messages, tiny_processor.action_ids)
    kinds = [segment.kind.value for segment in sequence.segments]
    assert kinds == ["text", "frame", "action", "frame", "action"]


@pytest.fixture(scope="module")
def saved(tiny_model, tiny_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("loader", [UnifiedProcessor, AutoProcessor])
def test_a_saved_processor_comes_back_the_same(saved, tiny_processor, loader):
    loaded = loader.from_pretrained(saved)
    assert type(loaded) is UnifiedProcessor
    assert loaded.config_fields() == tiny_processor.config_fields()
    one, other = (p.apply_chat_template(PROMPT) for p in (loaded, tiny_processor))
    assert torch.equal(one["input_ids"], other["input_ids"])
    torch.testing.assert_close(one["latents"], other["latents"], rtol=0, atol=0)


def test_missing_or_broken_processor_files_are_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="no processor_config.json; save one"):
        UnifiedProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a folder, nor an embedded name"):
        UnifiedProcessor.from_pretrained(tmp_path / "nowhere")
    for name in ("processor_config.json", "tokenizer.json"):
        folder = tmp_path / name
        shutil.copytree(saved, folder)
        (folder / name).write_text((folder / name).read_text()[:30])
        with pytest.raises(ValueError, match="copy the checkpoint again"):
            UnifiedProcessor.from_pretrained(folder)


def test_a_broken_grid_or_a_misspelt_option_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="has no option 'resise'; it takes resize"):
        UnifiedProcessor.from_pretrained(saved, resise="crop")
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "processor_config.json"
    content = json.loads(file.read_text())
    for grid in ("x", [7], [7, 0]):
        file.write_text(json.dumps({**content, "latent_grid": grid}))
        with pytest.raises(ValueError, match=r"processor_config.json has latent_grid=.* copy the"):
            UnifiedProcessor.from_pretrained(tmp_path)


WORLD = message("world", frame())
BAD_MESSAGES = [
    ([], "the prompt is empty; give at least a task or a frame"),
    (["open the door"], "message 0 is 'open the door'; give a dict"),
    ([message("wizard", text("hello"))], "role 'wizard'; use one of task, agent, world"),
    ([message("task")], r"message 0 \(task\) has no content"),
    ([message("task", text(""))], "text is ''; give words"),
    ([message("task", "go")], "item 'go' cannot be read; give a dict"),
    ([WORLD, message("world", text("hello"))], "the world speaks before the agent has acted"),
    (
        [message("world", text("hello")), message("task", text("go"))],
        "the world's words stand before what they describe",
    ),
    ([message("task", {"type": "video"})], "type 'video' is unknown; use text, frame"),
    (
        [WORLD, message("agent", action("left")), message("task", text("go"))],
        r"message 2 \(task\): the task speaks after an action; put the frame that it led",
    ),
    ([WORLD, message("task", text("go")), WORLD], "a frame follows a frame"),
    ([message("agent", frame())], "only the world shows frames"),
    ([message("world", action("left"))], "only the agent acts"),
    ([WORLD, message("agent", action("jump"))], "Unknown action 'jump' .* use one of left, right"),
    ([WORLD, message("agent", action(7))], r"Action index 7 is outside \[0, 7\)"),
    ([message("world", {"type": "outcome", "outcome": "ongoing"})], "put it behind one"),
    ([message("world", frame(), {"type": "outcome"})], "outcome is missing; use one of ongoing"),
    ([message("world", frame(), {"type": "outcome", "outcome": "won"})], "'won' is unknown"),
    ([message("world", frame(), frame())], "a frame follows a frame; put an action between"),
    ([WORLD, message("agent", text("I go")), WORLD], "put an action between"),
    ([WORLD, message("agent", action("left"), action("left"))], "put the frame that it led to"),
    ([message("world", frame(size=(15, 16)))], "15"),
    (
        [
            message(
                "world",
                frame(),
            ),
            message("agent", action("left")),
            message("world", frame(size=(8, 16))),
        ],
        "frames differ in size",
    ),
    ([message("world", {"type": "frame", "frame": None})], "the frame is missing"),
    ([message("world", {"type": "frame", "frame": pixels() / 255})], r"dtype float64 .* uint8"),
    ([message("world", {"type": "frame", "frame": pixels()[..., 0]})], r"shape \(16, 16\)"),
    ([message("world", {"type": "frame", "frame": pixels().transpose(2, 0, 1)})], "height, width"),
]


@pytest.mark.parametrize(("messages", "words"), BAD_MESSAGES, ids=[w for _, w in BAD_MESSAGES])
def test_a_conversation_that_cannot_be_read_is_refused(tiny_processor, messages, words):
    with pytest.raises(ValueError, match=words):
        tiny_processor.apply_chat_template(messages)


def test_words_of_the_world_are_refused_where_the_tokenizer_has_no_marker_for_them():
    processor = UnifiedProcessor.from_pretrained("babyai")
    assert "world" not in processor.ids
    with pytest.raises(ValueError, match="never taught words of the world"):
        processor.apply_chat_template([message("world", text("hello"))])


def test_other_kinds_of_tensors_are_refused(tiny_processor):
    with pytest.raises(ValueError, match="'np' is not made; use 'pt'"):
        tiny_processor.apply_chat_template(PROMPT, return_tensors="np")


def test_latents_that_are_not_finite_are_refused(world, tiny_processor, tiny_model):
    broken = frame_segment(latents=np.full((4, 2, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="latents hold NaN or infinity"):
        tiny_processor.encode([Sequence([broken])])
    inputs = tiny_processor.apply_chat_template(PROMPT)
    latents = torch.where(inputs["latents"] != 0, torch.inf, 0)
    with pytest.raises(ValueError, match="latents hold NaN or infinity"):
        tiny_model.start(inputs["input_ids"], latents)


def changed(inputs, **changes):
    return {**inputs, **changes}


def test_inputs_of_wrong_shapes_are_refused(tiny_processor, tiny_model):
    inputs = tiny_processor.apply_chat_template(PROMPT)
    ids, latents = inputs["input_ids"], inputs["latents"]
    for changes, words in [
        ({"input_ids": ids[0]}, r"give \(rows, tokens\) int64"),
        ({"input_ids": ids.float()}, r"dtype torch.float32 do not fit"),
        ({"input_ids": ids + 100}, "leave the vocabulary of 533"),
        ({"input_ids": ids[:, :0]}, "a prompt is empty|does not fit"),
        ({"attention_mask": ids[:, 1:]}, "attention_mask of shape"),
        (
            {"attention_mask": (torch.arange(ids.shape[1]) > 1).long()[None]},
            "pad prompts on the right",
        ),
        ({"attention_mask": torch.zeros_like(ids)}, "a prompt is empty"),
        ({"latents": latents[..., :3]}, "latents of shape .* do not fit"),
        ({"latents": None}, "latents of shape None do not fit"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 rows"),
    ]:
        with pytest.raises(ValueError, match=words):
            tiny_model.start(**changed(inputs, **changes))


def test_frames_of_another_size_than_the_models_are_refused(world, tiny_processor, tiny_model):
    inputs = tiny_processor.apply_chat_template([message("world", frame(size=(16, 24)))])
    with pytest.raises(ValueError, match="model's frames are 2x2 tokens: resize the frames"):
        tiny_model.generate(**inputs, query="policy")
    session = tiny_model.start(**tiny_processor.apply_chat_template(PROMPT))
    large = world.frame(np.random.default_rng(0), shape=(4, 2, 3))
    with pytest.raises(ValueError, match="model's frames are 2x2 tokens: resize the frames"):
        session.append([tiny_processor.stream(Sequence([large]))])


def test_too_long_a_prompt_is_refused(world, tiny_processor):
    model = world.model(max_position_embeddings=8)
    with pytest.raises(ValueError, match="tokens exceeds 8; shorten it"):
        model.generate(**tiny_processor.apply_chat_template(PROMPT), query="forward")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 is negative"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"max_turns": 0}, "max_turns=0 must be at least 1"),
        ({"max_text_tokens": 0}, "max_text_tokens=0 must be at least 1"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be at least 1"),
        ({"solver": "plms"}, "solver 'plms' is unknown; use one of euler, heun"),
    ],
)
def test_options_out_of_range_are_refused(tiny_processor, tiny_model, options, words):
    inputs = tiny_processor.apply_chat_template(PROMPT)
    with pytest.raises(ValueError, match=words):
        tiny_model.generate(**inputs, query="forward", **options)


def test_broken_weights_are_refused_instead_of_sampled(world, tiny_processor):
    inputs = tiny_processor.apply_chat_template(PROMPT)
    for name, words in [("lm_head", "logits hold NaN"), ("latent_head", "generated latents hold")]:
        model = world.model(tie_word_embeddings=False)
        with torch.no_grad():
            getattr(model, name).weight[0] = torch.nan
        with pytest.raises(ValueError, match=words):
            model.generate(**inputs, query="forward")


def test_as_many_streams_as_rows_are_wanted(tiny_processor, tiny_model):
    session = tiny_model.start(**tiny_processor.apply_chat_template(PROMPT))
    with pytest.raises(ValueError, match="2 streams for 1 rows"):
        session.append([None, None])


def test_a_tokenizer_without_our_markers_is_refused():
    class Foreign:
        def get_vocab(self):
            return {"<eos>": 0}

    with pytest.raises(ValueError, match="lacks <task> <agent> .*special_tokens.json"):
        UnifiedProcessor(tokenizer=Foreign())


@pytest.mark.parametrize(
    "names", [["left", "fly"], ["frame"], ["right", "left"], ["left", "stay", "right"]]
)
def test_actions_that_the_vocabulary_knows_otherwise_get_tokens_of_their_own(
    world, names, tmp_path
):
    size = len(world.processor.tokenizer)
    processor = world.processor.with_action_space(NamedActions("own", names))
    assert processor.config_fields()["action_token_ids"] == (size, size + len(names))
    assert processor.tokenizer.convert_ids_to_tokens(size) == f"<own:{names[0]}>"
    again = processor.with_action_space(NamedActions("own", names))
    assert again.config_fields() == processor.config_fields()
    other = processor.with_action_space(NamedActions("own", [names[0], "up", *names[1:]]))
    assert other.tokenizer.convert_ids_to_tokens(other.action_ids("up")) == ["<own2:up>"]
    processor.save_pretrained(tmp_path)
    for loaded in (processor, UnifiedProcessor.from_pretrained(tmp_path)):
        config = world.config(**loaded.config_fields())
        for index, name in enumerate(names):
            assert loaded.action_ids(name) == [size + index]
            stream = loaded.stream(Sequence([text_segment("go", "task"), action_segment(name)]))
            assert loaded.segments(stream.input_ids, None, config)[-1].action == name


def test_actions_that_the_vocabulary_knows_as_they_are_need_no_new_tokens(world):
    same = world.processor.with_action_space(NamedActions("own", ["left", "right"]))
    assert len(same.tokenizer) == len(world.processor.tokenizer)
    assert same.config_fields()["vocab_size"] == world.processor.config_fields()["vocab_size"]


def test_an_action_of_numbers_may_be_an_array(world):
    space = ContinuousActions.between("arm", ["x", "y"], [-1, -1], [1, 1], bins=4)
    processor = world.processor.with_action_space(space)
    values = [0.3, -0.9]
    inputs = [
        processor.apply_chat_template(
            [
                message("world", frame()),
                message("agent", action(segments)),
            ]
        )
        for segments in (np.array(values), values, json.dumps(values))
    ]
    assert torch.equal(inputs[0]["input_ids"], inputs[1]["input_ids"])
    assert torch.equal(inputs[0]["input_ids"], inputs[2]["input_ids"])


def test_without_its_action_space_a_processor_says_which_file_is_missing(
    tiny_processor, tiny_model, tmp_path
):
    tiny_processor.save_pretrained(tmp_path)
    (tmp_path / "action_space.json").unlink()
    loaded = UnifiedProcessor.from_pretrained(tmp_path)
    prompt = [message("world", frame()), message("agent", action("left"))]
    ids = torch.tensor([tiny_processor.ids["agent"], *tiny_processor.action_ids("left")])
    for use in (
        lambda: loaded.apply_chat_template(prompt),
        lambda: loaded.segments(ids, None, tiny_model.config),
        loaded.config_fields,
    ):
        with pytest.raises(ValueError, match="copy the checkpoint again with its action_space"):
            use()
