"""What users of transformers and gymnasium expect."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from tests.unified.parts import babyai_parts, random_frames
from unified.modeling import UnifiedModel
from unified.sampling.choice import choose
from unified.sampling.options import Options

FRAMES = random_frames(3)


@pytest.fixture(scope="module")
def parts():
    return babyai_parts()


def world(frame, role="world", kind="frame"):
    return {"role": role, "content": [{"type": kind, kind: frame}]}


def agent(action):
    return {"role": "agent", "content": [{"type": "action", "action": action}]}


TASK = {"role": "task", "content": "open the red door"}


def inputs(parts, *messages):
    return parts[1].apply_chat_template(list(messages))


def same(reply, other):
    pairs = zip(reply.rows(), other.rows(), strict=True)
    return all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in pairs)


# generate


@pytest.mark.parametrize(
    ("messages", "query"),
    [
        ([TASK], "forward"),
        ([TASK, world(FRAMES[0])], "policy"),
        ([world(FRAMES[0]), agent("left")], "forward"),
        ([world(FRAMES[0]), agent("left"), world(FRAMES[1])], "policy"),
        ([world(FRAMES[0]), agent("unknown"), world(FRAMES[1])], "inverse"),
        ([world(FRAMES[0]), TASK], "policy"),
    ],
)
def test_the_query_is_what_the_prompts_end_asks_for(parts, messages, query):
    given, options = inputs(parts, *messages), {"seed": 0, "num_inference_steps": 1}
    told = parts[0].generate(**given, query=query, think=False, **options)
    assert same(parts[0].generate(**given, think=False, **options), told)


def test_prompts_that_ask_different_things_need_a_query(parts):
    given = parts[1].apply_chat_template([[TASK], [TASK, world(FRAMES[0])]])
    with pytest.raises(ValueError, match=r"different things \(forward, policy\); pass query="):
        parts[0].generate(**given)
    over = world(FRAMES[0])
    over["content"].append({"type": "outcome", "outcome": "success"})
    with pytest.raises(ValueError, match="prompt 0 ends with a final outcome, and nobody is asked"):
        parts[0].generate(**inputs(parts, over))


def test_a_seed_is_a_generator_of_that_seed(parts):
    given = inputs(parts, world(FRAMES[0]), agent("left"))
    one = parts[0].generate(**given, seed=3)
    assert same(one, parts[0].generate(**given, generator=torch.Generator().manual_seed(3)))
    assert not same(one, parts[0].generate(**given, seed=4))


def test_several_replies_to_a_prompt_are_the_rows_of_a_batch_of_copies(parts):
    given = inputs(parts, TASK, world(FRAMES[0]), agent("left"))
    twice = parts[1].apply_chat_template([[TASK, world(FRAMES[0]), agent("left")]] * 2)
    several = parts[0].generate(**given, num_return_sequences=2, seed=1)
    assert same(several, parts[0].generate(**twice, seed=1))
    assert not torch.equal(several.latents[0], several.latents[1])
    with pytest.raises(ValueError, match="num_return_sequences=2 replies to 'policy' are all"):
        parts[0].generate(**inputs(parts, TASK, world(FRAMES[0])), num_return_sequences=2)


def test_sequences_are_prompts_and_replies(parts):
    given = inputs(parts, TASK, world(FRAMES[0]))
    reply = parts[0].generate(**given, think=False)
    (whole,) = reply.sequences
    assert torch.equal(whole, torch.cat([given["input_ids"][0], reply.input_ids[0]]))
    bare = parts[0].generate(**given, think=False, return_dict_in_generate=False)
    assert torch.equal(bare, reply.sequences)


@pytest.mark.parametrize("limit", [1, 3, 52, 53, 60, 110])
def test_a_reply_is_never_longer_than_asked_and_never_cut_within_a_frame(parts, limit):
    given = inputs(parts, world(FRAMES[0]), agent("left"))
    options = {"query": "joint", "max_turns": 3, "num_inference_steps": 1, "think": False}
    whole = parts[0].generate(**given, seed=0, **options).input_ids[0]
    short = parts[0].generate(**given, seed=0, max_new_tokens=limit, **options).input_ids[0]
    assert len(short) <= limit
    assert torch.equal(short, whole[: len(short)])
    config = parts[0].config
    shown = (short == config.frame_token_id).sum()
    assert shown == (short == config.frame_end_token_id).sum()
    assert len(short) in (limit, len(whole)) or whole[len(short)] == config.frame_token_id


def test_a_config_gives_defaults_as_transformers_reads_them(parts):
    model, given = parts[0], inputs(parts, TASK, world(FRAMES[0]))
    assert UnifiedModel.can_generate()
    assert isinstance(model.generation_config, GenerationConfig)
    hot = GenerationConfig(do_sample=True, temperature=0.7, top_k=5, max_new_tokens=9)
    told = model.generate(**given, temperature=0.7, top_k=5, max_new_tokens=9, seed=0)
    assert same(model.generate(**given, generation_config=hot, seed=0), told)
    cold = GenerationConfig(temperature=0.7)  # does not sample
    assert same(model.generate(**given, generation_config=cold, seed=0), model.generate(**given))
    sampled = model.generate(**given, do_sample=True, seed=0)
    assert same(sampled, model.generate(**given, temperature=1.0, seed=0))
    assert same(model.generate(**given, do_sample=False), model.generate(**given))


def test_a_generation_config_is_saved_and_loaded(tmp_path):
    model, _ = babyai_parts()
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path)
    assert UnifiedModel.from_pretrained(tmp_path).generation_config.max_new_tokens == 7


def test_a_streamer_gets_the_prompt_and_then_every_new_token(parts):
    class Streamer:
        def __init__(self):
            self.got, self.is_over = [], False

        def put(self, value):
            self.got.append(value.flatten())

        def end(self):
            self.is_over = True

    streamer, given = Streamer(), inputs(parts, world(FRAMES[0]), agent("left"))
    reply = parts[0].generate(**given, seed=0, streamer=streamer)
    assert streamer.is_over
    assert torch.equal(streamer.got[0], given["input_ids"][0])
    assert torch.equal(torch.cat(streamer.got[1:]), reply.input_ids[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "no argument 'num_beams'; use num_return_sequences"),
        ({"max_length": 9}, "no argument 'max_length'; use max_new_tokens"),
        ({"temprature": 1}, "no argument 'temprature'; use temperature"),
        ({"generation_config": {}}, "generation_config is a dict"),
        ({"generation_config": GenerationConfig(num_beams=4)}, "num_beams=4 of the generation"),
        ({"do_sample": False, "temperature": 1.0}, "contradict each other"),
        ({"do_sample": 1}, "do_sample=1 must be True, False or None"),
        ({"seed": 0, "generator": torch.Generator()}, "seed=0 and a generator"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"generator": 3}, "generator is 3; give torch.Generator"),
        ({"temperature": float("nan")}, "temperature=nan must be a finite number"),
        ({"temperature": float("inf")}, "temperature=inf must be a finite number"),
        ({"temperature": "hot"}, "temperature='hot' must be a finite number"),
        ({"temperature": True}, "temperature=True must be a finite number"),
        ({"top_k": True}, "top_k=True must be a whole number"),
        ({"top_k": 0}, "top_k=0 must be at least 1; None takes all"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"max_turns": 1.5}, "max_turns=1.5 must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"num_inference_steps": 10**9}, "=1000000000 must be at least 1 and at most 1000"),
        ({"think": "yes"}, "think='yes' must be True, False or None"),
        ({"solver": "eulr"}, "did you mean 'euler'"),
        ({"query": 3}, "query 3 is unknown"),
        ({"query": "inverse"}, "prompt 0 has 1 frame, and 'inverse' names the action between"),
        ({"attention_mask": torch.ones(1, 59)}, "attention_mask is torch.float32"),
        ({"attention_mask": torch.full((1, 59), 2)}, "holds other numbers than 1"),
        ({"attention_mask": [1]}, "attention_mask is a list, no tensor"),
        ({"input_ids": [[1]]}, "input_ids is a list, no tensor"),
        ({"latents": torch.zeros(1, 59, 8, dtype=torch.int64)}, "latents are torch.int64"),
        (
            {
                "streamer": SimpleNamespace(put=print, end=print),
                "num_return_sequences": 2,
                "do_sample": True,
            },
            "follows one reply",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(parts, options, message):
    given = inputs(parts, TASK, world(FRAMES[0]))
    length = given["input_ids"].shape[1]
    if isinstance(options.get("attention_mask"), torch.Tensor):
        options = {"attention_mask": options["attention_mask"][:, :1].expand(1, length)}
    if isinstance(options.get("latents"), torch.Tensor):
        options = {"latents": options["latents"][:, :1].expand(1, length, 8)}
    with pytest.raises(ValueError, match=message):
        parts[0].generate(**{**given, **options})


# choosing


def draws(options, logits, count=400):
    legal = torch.tensor([[True, True, True, True, False]])
    generator = torch.Generator().manual_seed(0)
    waits = torch.tensor([True])
    picked = [choose(logits, legal, waits, options, [generator]).item() for _ in range(count)]
    return np.bincount(picked, minlength=5) / count


def test_samples_follow_the_softmax_and_never_leave_what_is_legal():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 50.0]])
    expected = torch.tensor([2.0, 1.0, 0.0, -1.0]).softmax(0)
    assert np.abs(draws(Options(temperature=1.0), logits, 4000)[:4] - expected.numpy()).max() < 0.03
    even = draws(Options(temperature=1e300), logits, 4000)
    assert even[4] == 0
    assert np.abs(even[:4] - 0.25).max() < 0.03
    for tiny in (0.0, 1e-45, 1e-9):
        assert draws(Options(temperature=tiny), logits, 20)[0] == 1


def test_top_p_keeps_the_likeliest_tokens_that_reach_it_together():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05, 1.0]]).log()  # the last one is not legal
    for top_p, kept in [(0.4, 1), (0.45, 1), (0.6, 2), (0.9, 3), (1.0, 4)]:
        found = draws(Options(temperature=1.0, top_p=top_p), logits)
        assert (found > 0).sum() == kept, top_p


# the processor


def test_text_and_images_are_a_task_and_a_first_frame(parts, tmp_path):
    _, processor = parts
    plain = processor.apply_chat_template([[TASK, world(f)] for f in FRAMES[:2]])
    both = processor(text=[TASK["content"]] * 2, images=FRAMES[:2], return_tensors="pt")
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.png")
    paths = processor(text=TASK["content"], images=[str(tmp_path / "a.png"), FRAMES[1]])
    for made in (both, paths):
        assert torch.equal(made["input_ids"], plain["input_ids"])
        torch.testing.assert_close(made["latents"], plain["latents"])
    one = processor(text=TASK["content"])
    assert torch.equal(one["input_ids"], processor.apply_chat_template([TASK])["input_ids"])


def test_a_user_says_the_task_and_then_shows_the_frame(parts):
    _, processor = parts
    image, words = {"type": "image", "image": FRAMES[0]}, {"type": "text", "text": "go"}
    expected = processor.apply_chat_template(
        [{"role": "task", "content": "go"}, world(FRAMES[0]), agent("left"), world(FRAMES[1])]
        + [{"role": "task", "content": "now back"}]
    )
    later = [{"type": "text", "text": "now back"}, {"type": "image", "image": FRAMES[1]}]
    for first in ([image, words], [words, image]):
        act = {"role": "assistant", "content": agent("left")["content"]}
        messages = [{"role": "user", "content": first}, act, {"role": "user", "content": later}]
        made = processor.apply_chat_template(messages, add_generation_prompt=True)
        assert torch.equal(made["input_ids"], expected["input_ids"])


def test_untokenized_conversations_are_their_tokens_as_text(parts):
    _, processor = parts
    text = processor.apply_chat_template([TASK, world(FRAMES[0])], tokenize=False)
    ids = processor.apply_chat_template([TASK, world(FRAMES[0])], return_dict=False)[0]
    assert text == "<task>open the red door<frame>" + "<latent>" * 49 + "</frame>"
    assert processor.decode(ids) == text
    batch = processor.apply_chat_template([[TASK], [TASK]], tokenize=False)
    assert batch == ["<task>open the red door"] * 2


def test_markers_that_somebody_writes_out_are_words(parts):
    model, processor = parts
    for text in ("go <frame> <left>", "</frame> <unknown>"):
        ids = processor.apply_chat_template([{"role": "task", "content": text}])["input_ids"][0]
        assert int(ids[1:].max()) < model.config.text_token_ids[1]
        assert processor.segments(ids, None, model.config)[0].text == text


def test_a_batch_is_decoded_to_a_list_and_token_ids_to_text(parts):
    model, processor = parts
    reply = model.generate(**inputs(parts, TASK, world(FRAMES[0])), think=False)
    (alone,) = processor.batch_decode(reply)
    assert alone == processor.decode(reply)
    (text,) = processor.batch_decode(reply.sequences[:, -len(reply.input_ids[0]) :])
    assert text == processor.tokenizer.decode(reply.input_ids[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_processor_can_be_sent_to_a_worker(parts, copied):
    _, processor = parts
    other = copied(processor)
    one, two = (p.apply_chat_template([TASK, world(FRAMES[0])]) for p in (processor, other))
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert torch.equal(one["latents"], two["latents"])
    assert (
        repr(other)
        == repr(processor)
        == (
            "UnifiedProcessor(533 tokens, codec AutoencoderTiny of 8 channels, actions 'babyai' "
            "(discrete, 7 tokens))"
        )
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foo": 1}, "option 'foo' is unknown; use return_tensors"),
        ({"return_tensors": "np"}, "return_tensors='np' is not made; use 'pt'"),
        ({"padding": "max_length"}, "padding='max_length' is not made"),
        ({"tokenize": torch.ones(2)}, "tokenize=a Tensor"),
    ],
)
def test_options_of_the_chat_template_are_refused_by_name(parts, options, message):
    with pytest.raises(ValueError, match=message):
        parts[1].apply_chat_template([TASK], **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "there is nothing to read; give text=, images=, or both"),
        ({"text": ["a"], "images": FRAMES[:2]}, "text and images have 1 and 2 entries"),
        ({"text": ["a"], "sequences": []}, "not both"),
        ({"sequences": 3}, "was given a int"),
        ({"sequences": [TASK]}, "messages go through apply_chat_template"),
        ({"text": "a", "foo": 1}, "option 'foo' is unknown"),
    ],
)
def test_a_processor_says_what_it_takes(parts, arguments, message):
    with pytest.raises(ValueError, match=message):
        parts[1](**arguments)


def broken(**item):
    return [{"role": "world", "content": [{"type": "frame", **item}]}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (3, "the conversation is a int"),
        ((m for m in [TASK]), "the conversation is a generator"),
        ([{"role": "task", "content": 3}], r"message 0 \(task\): content is 3; give words"),
        ([{"role": "task", "content": torch.ones(3)}], r"content is a Tensor of shape \(3,\)"),
        ([{"role": "task", "content": {"type": "text"}}], "content is a dict; give words"),
        ([{"role": "task", "content": (i for i in [1])}], "content is a generator"),
        ([{"role": "task", "content": "a \ud800"}], r"message 0 \(task\): character 2 of"),
        ([{"role": "task", "content": "a", "name": "b"}], "message 0 has 'name'"),
        ([TASK, TASK], r"message 1 \(task\): words of the task follow words of the task"),
        ([{"role": ["task"], "content": "a"}], "message 0 has role a list"),
        (broken(frame=torch.zeros(56, 56, 3, requires_grad=True)), "dtype float32"),
        (broken(frame={}), "dtype object"),
        (broken(image=FRAMES[0]), "'image' of a frame is unknown"),
        (broken(), "frame is missing; give 'frame'"),
        (broken(frame="/no/such.png"), r"message 0 \(world\): /no/such.png does not exist"),
        ([world(FRAMES[0]), {"role": "agent", "content": [{"type": "action"}]}], "action is miss"),
        (
            [world(FRAMES[0]), agent(torch.tensor(0.5))],
            r"message 1 \(agent\): An action .* got tensor",
        ),
        ([world(FRAMES[0]), agent(2**70)], r"message 1 \(agent\): Action index"),
        ([world(FRAMES[0]), agent({"a": 1})], r"message 1 \(agent\): An action is a name"),
    ],
)
def test_what_is_no_conversation_is_refused_by_message(parts, messages, message):
    with pytest.raises(ValueError, match=message):
        parts[1].apply_chat_template(messages)


# model cards


def test_a_saved_model_has_a_card_that_says_how_to_load_it(tmp_path):
    model, _ = babyai_parts()
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "import unified  # needed" in card
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    (tmp_path / "README.md").write_text("my own words")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model, _ = babyai_parts()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name: tensor.to(torch.int8) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model.safetensors is I8; give weights in F64, F32"):
        UnifiedModel.from_pretrained(tmp_path)
