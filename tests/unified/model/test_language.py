"""A language model inside: words alone are what they were, and can be kept so."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence, action_segment, text_segment
from unified.model.language import freeze_language
from unified.modeling import UnifiedModel
from unified.sampling.completion import complete

WORDS = ["[UNK]", *"abcdefghijklmnopqrstuvwxyz", *(f"word{i}" for i in range(37))]
SIZES = {
    "vocab_size": 80,  # more than there are words: some are padded to a round number
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
LANGUAGE = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama, another base": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, rope_parameters={"rope_theta": 5e4, "rope_type": "default"})
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}


def save(model, folder):
    """A language model with a tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which begin at one and zero
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def processor_of(tiny_codec, world):
    def make(folder):
        return UnifiedProcessor.from_language_model(
            folder, action_space=world.processor.action_space, codec=tiny_codec
        )

    return make


def unified(folder, processor, **changes):
    return UnifiedModel.from_language_model(
        folder, processor, latent_grid=(2, 2), window_frames=3, **changes
    )


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("kind", LANGUAGE)
def test_words_alone_give_the_logits_that_they_gave_before(kind, experts, processor_of, tmp_path):
    language = LANGUAGE[kind]().eval()
    folder = save(language, tmp_path)
    model = unified(folder, processor_of(folder), modality_experts=experts)
    ids = torch.randint(0, len(WORDS), (2, 40))
    with torch.no_grad():
        expected, found = language(ids).logits, model(ids).logits
    words = len(WORDS)  # behind them the table is padded
    torch.testing.assert_close(found[..., :words], expected[..., :words], rtol=1e-5, atol=1e-5)


def test_a_language_model_gets_markers_and_actions_behind_its_own_words(processor_of, tmp_path):
    folder = save(LANGUAGE["llama"](), tmp_path)
    processor = processor_of(folder)
    model = unified(folder, processor)
    assert processor.tokenizer.get_vocab().keys() >= {*WORDS, "<frame>", "<left>"}
    assert model.config.text_token_ids == (0, len(WORDS))
    assert model.config.action_token_ids[0] > model.config.latent_token_id >= len(WORDS)
    assert model.config.vocab_size == max(80, len(processor.tokenizer))


def test_it_acts_speaks_draws_and_comes_back_from_disk(processor_of, world, tmp_path):
    folder = save(LANGUAGE["qwen3"](), tmp_path / "language")
    model, processor = unified(folder, processor_of(folder)), processor_of(folder)
    segments = [text_segment("a b c", "task"), *world.episode(1, task=None).segments]
    inputs = processor.encode([Sequence([*segments, action_segment("left")])])
    seed = torch.Generator().manual_seed(0)
    reply = model.generate(**inputs, query="forward", generator=seed)
    model.save_pretrained(tmp_path / "unified")
    processor.save_pretrained(tmp_path / "unified")
    again = UnifiedModel.from_pretrained(tmp_path / "unified")
    inputs = UnifiedProcessor.from_pretrained(tmp_path / "unified").encode(
        [Sequence([*segments, action_segment("left")])]
    )
    other = again.generate(**inputs, query="forward", generator=seed.manual_seed(0))
    torch.testing.assert_close(other.latents[0], reply.latents[0])


def test_words_go_on_as_the_language_model_goes_on(processor_of, tmp_path):
    language = LANGUAGE["qwen3"]().eval()
    folder = save(language, tmp_path)
    model = unified(folder, processor_of(folder))
    ids = torch.randint(0, len(WORDS), (9,))
    expected = []
    with torch.no_grad():
        for _ in range(6):
            whole = torch.cat([ids, torch.tensor(expected, dtype=torch.int64)])
            expected.append(int(language(whole[None]).logits[0, -1, : len(WORDS)].argmax()))
    assert complete(model, ids, max_new_tokens=6).tolist() == expected
    until = expected.index(expected[2]) + 1
    assert complete(model, ids, stop=[expected[2]]).tolist() == expected[:until]


def test_a_frozen_language_path_is_bit_equal_after_training(processor_of, world, tmp_path):
    language = LANGUAGE["llama"]().eval()
    folder = save(language, tmp_path)
    processor = processor_of(folder)
    model = unified(folder, processor, modality_experts=True)
    ids = torch.randint(0, len(WORDS), (2, 40))
    with torch.no_grad():
        before = model(ids).logits[..., : len(WORDS)]
    freeze_language(model, len(WORDS))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    stream = processor.stream(world.episode(3, task="a b"))
    batch = world.batch([world.row(stream, model.config)], model.config)
    losses = []
    for _ in range(12):
        loss = model(**batch).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        assert torch.equal(model(ids).logits[..., : len(WORDS)], before)


def test_without_experts_nothing_could_be_learned_beside_a_frozen_path(processor_of, tmp_path):
    folder = save(LANGUAGE["llama"](), tmp_path)
    with pytest.raises(ValueError, match="with modality_experts=True"):
        freeze_language(unified(folder, processor_of(folder)), len(WORDS))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type=.*linear",
        ),
    ],
)
def test_what_the_decoder_cannot_do_is_refused(config, message, processor_of, tmp_path):
    folder = save(LlamaForCausalLM(LlamaConfig(**{**SIZES, **config})), tmp_path)
    with pytest.raises(ValueError, match=message):
        unified(folder, processor_of(folder))


def test_another_architecture_is_refused(processor_of, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=80, n_embd=32, n_layer=1, n_head=2))
    folder = save(model, tmp_path)
    with pytest.raises(ValueError, match="'gpt2' cannot become the decoder; use one of llama"):
        unified(folder, processor_of(folder))


def test_a_tokenizer_that_has_our_tokens_already_is_refused(processor_of, tmp_path):
    folder = save(LANGUAGE["llama"](), tmp_path)
    processor_of(folder).tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="<unified-pad> .*already"):
        processor_of(folder)


def test_a_tokenizer_of_sentencepiece_works_too(processor_of, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["go to the red ball", "pick up a key and open the door"] * 20),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=50,
        model_type="bpe",
        minloglevel=2,
    )
    own = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    LANGUAGE["llama"]().save_pretrained(tmp_path)
    processor = processor_of(tmp_path)
    model = unified(tmp_path, processor)
    processor.save_pretrained(tmp_path / "ours")
    processor = UnifiedProcessor.from_pretrained(tmp_path / "ours")
    said = [text_segment("go to the red ball", "task")]
    stream = processor.stream(Sequence(said))
    assert processor.segments(stream.input_ids, None, model.config) == said
    assert len(stream) < 12  # pieces, not characters
