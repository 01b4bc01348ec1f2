import io
import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.unified.parts import babyai_parts, random_frames
from unified.cli import DESCRIPTION, main
from unified.cli.conversations import read_conversations, read_numbers
from unified.conversation.lexicon import Lexicon, Phrase
from unified.conversation.processing import UnifiedProcessor
from unified.modeling import UnifiedModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and two images."""
    folder = tmp_path_factory.mktemp("cli")
    model, processor = babyai_parts()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    for name, frame in zip("ab", random_frames(2), strict=True):
        Image.fromarray(frame).save(folder / f"{name}.png")
    return folder


def command(folder, *options):
    steps = ["--num-inference-steps", "1"]
    return ["prompt", "--model", str(folder / "model"), *steps, *map(str, options)]


def test_forward_saves_the_frame_and_the_reply(folder, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    options = ["--task", "open the red door", "--frame", folder / "a.png", "--action", "left"]
    main(command(folder, *options, "--query", "forward", "--out", out))
    assert sorted(path.name for path in out.iterdir()) == ["frame_000.png", "reply.json"]
    with Image.open(out / "frame_000.png") as image:
        assert (image.size, image.mode) == ((56, 56), "RGB")
    (message,) = json.loads((out / "reply.json").read_text())
    assert message["role"] == "world"
    assert message["content"][0] == {"type": "frame", "frame": "frame_000.png"}
    assert message["content"][1]["type"] == "outcome"
    printed = capsys.readouterr().out
    assert f"world  shows   {out / 'frame_000.png'}" in printed
    assert message["content"][1]["outcome"] in printed


def test_a_conversation_is_read_from_a_file_as_a_reply_is_written(folder, tmp_path, capsys):
    def spoken(words, role="task"):
        return {"role": role, "content": [{"type": "text", "text": words}]}

    shown = {"role": "world", "content": [{"type": "frame", "frame": "a.png"}]}
    talk = [spoken("go"), shown, spoken("i see a door", "agent"), spoken("open it")]
    (folder / "talk.json").write_text(json.dumps(talk))
    silent = ["--query", "joint", "--think", "False"]  # or it may say something and not act
    main(command(folder, "--messages", folder / "talk.json", *silent, "--out", tmp_path))
    assert "agent" in capsys.readouterr().out
    reply = json.loads((tmp_path / "reply.json").read_text())
    assert [message["role"] for message in reply[:2]] == ["agent", "world"]
    (tmp_path / "plain.json").write_text(json.dumps([shown, reply[0]]))
    (tmp_path / "a.png").write_bytes((folder / "a.png").read_bytes())
    main(command(folder, "--messages", tmp_path / "plain.json", "--query", "forward"))


def test_equal_seeds_reply_equally(folder, tmp_path):
    options = ["--frame", folder / "a.png", "--action", "left", "--query", "forward"]
    pictures = []
    for number, seed in enumerate([1, 1, 2]):
        main(command(folder, *options, "--seed", seed, "--out", tmp_path / str(number)))
        pictures.append(np.asarray(Image.open(tmp_path / str(number) / "frame_000.png")))
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_frames_and_actions_alternate_and_gaps_are_unknown(folder, capsys):
    options = ["--frame", folder / "a.png", "--frame", folder / "b.png"]
    main(command(folder, *options, "--query", "inverse"))
    assert "agent  did" in capsys.readouterr().out


def test_policy_without_a_folder_prints_and_writes_nothing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--task", "go", "--frame", folder / "a.png", "--think", "False"]
    main(command(folder, *options))
    assert capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_info_tells_what_the_model_is(folder, capsys):
    (folder / "model" / "README.md").write_text("# The card\n")
    main(["info", str(folder / "model")])
    printed = capsys.readouterr().out
    for fact in ["56x56 pixels", "7x7 tokens", "babyai: left, right", "AutoencoderTiny"]:
        assert fact in printed
    assert "# The card" in printed


def test_only_a_model_that_was_a_language_model_can_be_asked(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["ask", "Who are you?", "--model", str(folder / "model")])
    assert stop.value.code == 2
    assert "did not begin as a language model" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["prompt", "--help"], ["info", "--help"]])
def test_help_is_a_tour(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    if arguments == ["--help"]:
        assert 'unified prompt --task "open the red door" --frame a.png' in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the prompt is empty; give --task"),
        (["--action", "left"], "the prompt is empty"),
        (["--messages", "A", "--task", "go"], "--messages is a whole conversation; leave out"),
        (["--messages", "A"], "give a JSON file of messages"),
        (["--messages", "none.json"], "cannot read none.json"),
        (["--task", "go", "--action", "left"], "1 actions for 0 frames"),
        (["--frame", "missing.png"], "missing.png does not exist; give the path of a PNG"),
        (["--frame", "A", "--action", "jump", "--query", "forward"], "Unknown action 'jump'"),
        (["--frame", "A", "--query", "forward"], "'forward' cannot go on"),
        (["--frame", "A", "--temperature", "-1"], "temperature=-1.0 is negative"),
        (["--frame", "A", "--memory", "attic"], "memory='attic' is unknown"),
        (["--frame", "A", "--memory", "place"], "this model knows no places"),
        (["--frame", "A", "--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_input_exits_with_status_2_and_one_line(folder, capsys, options, message):
    given = [folder / "a.png" if option == "A" else option for option in options]
    with pytest.raises(SystemExit) as stop:
        main(command(folder, *given))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("unified: ")
    assert message in error
    assert error.count("\n") == 1


def test_several_prompts_are_answered_as_each_alone(folder, tmp_path, capsys):
    shown = {"role": "world", "content": [{"type": "frame", "frame": "a.png"}]}
    acted = {"role": "agent", "content": [{"type": "action", "action": "left"}]}
    prompts = [[shown, acted], [{"role": "task", "content": "go"}, shown, acted]]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "list.json").write_text(json.dumps(prompts))
    main(command(folder, "--messages", folder / "all.jsonl", "--out", tmp_path / "lines"))
    main(command(folder, "--messages", folder / "list.json", "--out", tmp_path / "list"))
    for number, prompt in enumerate(prompts):
        (folder / "one.json").write_text(json.dumps(prompt))
        alone = tmp_path / str(number)
        main(command(folder, "--messages", folder / "one.json", "--out", alone))
        for several in ("lines", "list"):
            for name in ("frame_000.png", "reply.json"):
                found = tmp_path / several / f"{number:03d}" / name
                assert found.read_bytes() == (alone / name).read_bytes()
    assert "prompt 1\n" in capsys.readouterr().out


def test_prompts_are_read_from_standard_input(folder, monkeypatch, capsys):
    line = json.dumps([{"role": "task", "content": "go"}])
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\n\n{line}\n"))
    main(command(folder, "--messages", "-"))
    assert capsys.readouterr().out.count("world  shows") == 2


@pytest.mark.parametrize("name", ["../a.png", "{folder}/a.png", "link.png"])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_frame_outside_of_the_messages_folder_is_refused_unless_allowed(
    folder, tmp_path, capsys, name, ending
):
    inside = tmp_path / "inside"
    inside.mkdir()
    shutil.copy(folder / "a.png", tmp_path)
    (inside / "link.png").symlink_to(tmp_path / "a.png")
    frame = {"type": "frame", "frame": name.format(folder=folder)}
    file = inside / f"talk.{ending}"
    file.write_text(json.dumps([{"role": "world", "content": [frame]}]))
    with pytest.raises(SystemExit):
        main(command(folder, "--messages", file))
    assert "put the file below it, or say --allow-outside" in capsys.readouterr().err
    main(command(folder, "--messages", file, "--allow-outside"))
    assert "world" in capsys.readouterr().out


def test_every_sampling_option_reaches_the_model(folder, capsys):
    told = ["--frame", folder / "a.png", "--action", "left", "--query", "joint"]
    options = {"temperature": 1.0, "top-k": 3, "top-p": 0.9, "solver": "heun", "max-turns": 2}
    options |= {"max-text-tokens": 4, "max-new-tokens": 60, "think": True, "seed": 3}
    main(
        command(folder, *told, *(part for name in options for part in (f"--{name}", options[name])))
    )
    printed = capsys.readouterr().out
    model = UnifiedModel.from_pretrained(folder / "model")
    processor = UnifiedProcessor.from_pretrained(folder / "model")
    messages = [
        {"role": "world", "content": [{"type": "frame", "frame": folder / "a.png"}]},
        {"role": "agent", "content": [{"type": "action", "action": "left"}]},
    ]
    values = {name.replace("-", "_"): value for name, value in options.items()}
    inputs = processor.apply_chat_template(messages)
    reply = model.generate(**inputs, query="joint", num_inference_steps=1, **values)
    said = [i["text"] for m in processor.decode(reply) for i in m["content"] if "text" in i]
    assert [
        line[15:] for line in printed.splitlines() if "says" in line and "agent" in line
    ] == said


def test_a_device_that_is_not_there_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        main(command(folder, "--frame", folder / "a.png", "--device", "toaster"))
    assert "--device 'toaster' cannot be used" in capsys.readouterr().err


def test_what_a_checkpoint_was_taught_to_hear_is_listed_and_other_words_earn_a_hint(
    folder, tmp_path, capsys
):
    shutil.copytree(folder / "model", tmp_path / "model")
    phrase = Phrase("imagine: DESCRIPTION", "forward", "a first frame")
    processor = UnifiedProcessor.from_pretrained(tmp_path / "model")
    processor.lexicon = Lexicon.of(["open the red door"], [phrase])
    processor.save_pretrained(tmp_path / "model")
    assert UnifiedProcessor.from_pretrained(tmp_path / "model").lexicon == processor.lexicon
    with pytest.raises(SystemExit):
        main(["prompt", "--model", str(tmp_path / "model"), "--help"])
    main(["info", str(tmp_path / "model")])
    printed = capsys.readouterr().out
    assert "imagine: DESCRIPTION" in printed.split("decoder")[1]
    assert "door open red the" in printed
    options = ["--model", tmp_path / "model", "--frame", folder / "a.png", "--task"]
    main(command(folder, *options, "open the red dor"))
    error = capsys.readouterr().err
    assert "hint: this checkpoint never heard 'dor' (like it: door) in training" in error
    main(command(folder, *options, "open the red door"))
    assert not capsys.readouterr().err


def test_a_sample_frame_is_written_and_its_task_said(tmp_path, capsys):
    main(["sample", "--level", "OpenDoor", "--out", str(tmp_path / "a.png")])
    assert "task   open the door on your right" in capsys.readouterr().out
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (56, 56)
    with pytest.raises(SystemExit):
        main(["sample", "--out", str(tmp_path / "a.jpg")])
    assert "a.jpg is no PNG; end it in .png" in capsys.readouterr().err


def test_help_imports_neither_torch_nor_transformers():
    code = "import sys\nfrom unified.cli import main\ntry: main(['prompt', '--help'])\n"
    code += "except SystemExit: print('torch' in sys.modules, 'transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("False False")


def test_lines_end_where_json_lines_do(tmp_path):
    told = [{"role": "task", "content": "go\u2028left"}]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(told, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_conversations(file) == [told]


def test_an_action_by_number_is_the_action_of_that_name(folder, capsys):
    shown = []
    for action in ("left", "0"):
        main(command(folder, "--frame", folder / "a.png", "--action", action))
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    messages = [{"role": "agent", "content": [{"type": "action", "action": "5"}]}]
    read_numbers(messages, ("<5>",))
    assert messages[0]["content"][0]["action"] == "5"


def test_the_commands_of_the_help_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line.partition(": ")[2].strip() for line in DESCRIPTION.splitlines()]
    ready = ("unified sample", "unified prompt", "unified info")
    run = [line for line in lines if line.startswith(ready)]
    for line in run:
        main(shlex.split(line)[1:])
    assert len(run) == 8
    said = capsys.readouterr().out
    assert "agent  did     left" in said
    assert "i see" in said
