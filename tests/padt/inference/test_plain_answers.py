"""General ability is kept: a fresh PaDT writes the answers of the Qwen2.5-VL it was made from, token for token."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from padt.checkpoints.loading import load_model
from padt.inference.predict import GenerationSettings
from padt.model.modeling import PaDTForConditionalGeneration
from tests.padt.folders import hub_folder
from tests.padt.inference.test_predict import picture

TOKENS = 24


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def twins(request, tmp_path_factory) -> tuple[Qwen2_5_VLForConditionalGeneration, PaDTForConditionalGeneration]:
    """A Hub folder, as transformers' own class and as a fresh PaDT read it; logits are spread enough to differ."""
    folder = Path(tmp_path_factory.mktemp("hub"))
    plain = hub_folder(folder, tied=request.param)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if parameter.dim() >= 2:
                torch.nn.init.normal_(
                    parameter, std=(2.0 if "language_model" in name else 0.7) * parameter.shape[-1] ** -0.5
                )
    plain.save_pretrained(folder)
    return plain, load_model(folder, device="cpu", dtype=torch.float32)


def inputs_of(fresh, images, prompts):
    return fresh.processor.prompt_inputs(images, prompts)[0]


CASES = {
    "a picture": ([[picture()]], ["What is that?"]),
    "two pictures": ([[picture(), picture(60, 130, 2)]], ["And these?"]),
    "text alone": ([[]], ["Hello, who are you?"]),
    "a padded batch": ([[picture()], [], [picture(200, 60, 3)]], ["What is that?", "Hi!", "Tell me more about it."]),
}


def answer(model, inputs, pad, **options):
    """New tokens; the same seed for everyone."""
    torch.manual_seed(5)
    settings = {"max_new_tokens": TOKENS, "min_new_tokens": 6, "do_sample": False, "pad_token_id": pad, **options}
    return model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}])
def test_a_fresh_model_answers_as_plain_qwen(twins, case, options):
    # Prototypes start at zero, so the logit of a VRT is 0: wherever some word has more, no VRT is drawn.
    plain, fresh = twins
    inputs = inputs_of(fresh, *CASES[case])
    expected, found = (answer(model, inputs, fresh.processor.pad_token_id, **options) for model in twins)
    assert torch.equal(expected, found)
    assert (found < fresh.config.vrt_offset).all() and len(found.unique()) > 3, "the test must see an answer"


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "temperature": 0.9, "top_p": 0.9}])
def test_without_a_picture_every_search_is_plain_qwens(twins, options):
    # With one, beams and draws see the VRTs' share of the probability, small as it is.
    inputs = inputs_of(twins[1], [[], []], ["Hello, who are you?", "Hi!"])
    expected, found = (answer(model, inputs, twins[1].processor.pad_token_id, **options) for model in twins)
    assert torch.equal(expected, found)


def test_prediction_gives_the_plain_answer(twins):
    plain, fresh = twins
    image, words = picture(), "What is that?"
    inputs = inputs_of(fresh, [[image]], [words])
    ids = plain.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    (found,) = fresh.predict(image, words, GenerationSettings(max_new_tokens=TOKENS))
    assert list(found.token_ids) == ids[: len(found.token_ids)] and found.objects == ()


def test_words_have_the_very_logits_of_plain_qwen(twins):
    plain, fresh = twins
    inputs = inputs_of(fresh, *CASES["a padded batch"])
    with torch.no_grad():
        words, both = plain(**inputs).logits, fresh(**inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(both[real][:, : words.shape[-1]], words[real], atol=1e-4, rtol=1e-4)
    rest = both[real][:, words.shape[-1] :]
    assert ((rest == 0) | rest.isinf()).all(), "a fresh VRT has logit 0"
