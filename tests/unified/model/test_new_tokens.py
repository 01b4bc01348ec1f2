"""New actions are learned on any base: head tied to the embeddings or not, table padded or not."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unified.model.test_language import SIZES, WORDS, save
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence, action_segment, frame_segment, text_segment
from unified.conversation.vocabulary import NAMES, WORLD
from unified.media.actions import NamedActions
from unified.model.adapters import lora_config, save_adapter
from unified.model.language import freeze_language, language_lora
from unified.model.plan import collate, plan_training
from unified.modeling import UnifiedModel

peft = pytest.importorskip("peft")

ACTIONS = ["north", "east", "south", "west"]
PADDED = 128


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def is_tied(request):
    return request.param


@pytest.fixture(scope="module", params=[80, PADDED], ids=["snug", "padded"])
def language(request, is_tied, tmp_path_factory):
    """Folder of a language model; with 80 rows its table has to grow for our markers."""
    folder = tmp_path_factory.mktemp("language")
    config = {**SIZES, "vocab_size": request.param, "tie_word_embeddings": is_tied}
    torch.manual_seed(0)
    return save(LlamaForCausalLM(LlamaConfig(**config)), folder)


def begin(language, actions):
    space = NamedActions("own", actions)
    processor = UnifiedProcessor.from_language_model(language, action_space=space)
    torch.manual_seed(0)
    model = UnifiedModel.from_language_model(
        language, processor, latent_grid=(2, 2), latent_channels=4, modality_experts=True
    )
    return model, processor


def episodes(model, processor):
    """Four frames with one action each, as a batch."""
    rows = []
    for index, action in enumerate(ACTIONS):
        latents = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(index)).numpy()
        frame = frame_segment(latents=latents, outcome="ongoing")
        sequence = Sequence([text_segment("a b", "task", weight=0.0), frame])
        sequence = Sequence([*sequence.segments, action_segment(action)])
        stream = processor.stream(sequence)
        levels = torch.zeros(0, 1)
        rows.append(plan_training(stream, model.config, spans=[], noise_levels=levels))
    return collate(rows, model.config, max(len(row) for row in rows))


def learned(trained, model, processor, rate=1e-2, steps=120):
    """The likeliest action of each episode after some steps on its actions alone."""
    batch = episodes(model, processor)
    first, stop = model.config.action_token_ids
    is_action = (batch["labels"] >= first) & (batch["labels"] < stop)
    batch["label_weights"] = is_action.float()
    parameters = [p for p in trained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        trained(**batch).token_loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = trained.eval()(**batch).logits[is_action]
    return (logits[:, first:stop].argmax(-1)).tolist()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_model_learns_four_actions_that_are_new_to_it(language, method, tmp_path):
    model, processor = begin(language, ["stay", "wait"])
    size = len(processor.tokenizer)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    own = processor.with_action_space(NamedActions("compass", ACTIONS))
    before = {n: w.weight.clone() for n, w in heads(model).items()}
    model.adopt(own)
    assert tuple(model.config.action_token_ids) == (size, size + 4)
    assert model.config.vocab_size == size + 4
    known = slice(size - 2, size)  # the base's own actions
    for name, rows in before.items():
        found = model.adopted.rows(name)
        torch.testing.assert_close(found, rows[known].mean(0).expand(4, -1))
    trained = model
    if method == "full":
        model.fold_adopted()
        assert all(len(w.weight) == size + 4 for w in heads(model).values())
    else:
        trained = peft.get_peft_model(model, lora_config(model, "agent", rank=2))
    # All weights bear a lower rate, and then need more steps for the loss to be near zero.
    options = {"rate": 2e-3, "steps": 240} if method == "full" else {}
    assert learned(trained, model, own, **options) == [0, 1, 2, 3]
    if method == "lora":
        save_adapter(trained, own, tmp_path / "out", base=str(tmp_path / "base"))  # pyright: ignore[reportArgumentType]
        assert all(torch.equal(w.weight, before[n]) for n, w in heads(model).items())
    else:
        model.save_pretrained(tmp_path / "out")
    again = UnifiedModel.from_pretrained(tmp_path / "out").eval()
    batch = episodes(again, own)
    logits = {name: m(**batch).logits for name, m in (("kept", again), ("made", trained))}
    torch.testing.assert_close(logits["kept"], logits["made"], rtol=1e-2, atol=1e-2)


def heads(model):
    return {"embed_tokens": model.model.embed_tokens, "lm_head": model.lm_head}


@pytest.mark.parametrize("method", ["recipe", "frozen"])
def test_a_language_model_learns_the_actions_that_it_was_given(language, method):
    model, processor = begin(language, ACTIONS)
    words = processor.config_fields()["text_token_ids"][1]
    assert words == len(WORDS)
    before = {n: w.weight.clone() for n, w in heads(model).items()}
    for rows in before.values():  # near the average word, none of them the padding's
        away = rows[words:] - rows[:words].mean(0)
        assert 0 < away.std() < 0.05 * rows[:words].std()
        assert len(rows[words : len(processor.tokenizer)].unique(dim=0)) == (
            1 + len((*NAMES, WORLD)) + len(ACTIONS)
        )
    trained = model
    if method == "recipe":
        trained = peft.get_peft_model(model, language_lora(model, words, rank=2))
    else:
        freeze_language(model, words)
    assert learned(trained, model, processor) == [0, 1, 2, 3]
    if method == "recipe":
        model = trained.merge_and_unload()  # pyright: ignore[reportCallIssue]
    first, stop = model.config.action_token_ids
    for name, rows in heads(model).items():
        assert torch.equal(rows.weight[:words], before[name][:words])
        changed = rows.weight[first:stop] - before[name][first:stop]
        if name == "lm_head":
            assert changed.abs().sum(-1).min() > 0
