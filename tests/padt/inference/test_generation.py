"""Answers through transformers' own `generate`: every way of decoding gives sound ids, whoever else is asked beside."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, TextStreamer
from transformers.generation.streamers import BaseStreamer

from padt.errors import UserError
from padt.inference.generation import ForbidRepeatedVRTs
from padt.inference.predict import GenerationSettings, predict, refer_request, text_request
from padt.model.outputs import StateRecorder
from tests.padt.inference.test_predict import assert_same, picture

TOKENS = 12


def prompts(model, *pairs):
    """Left-padded inputs of (picture or None, words) pairs."""
    images = [[] if image is None else [image] for image, _ in pairs]
    return model.processor.prompt_inputs(images, [words for _, words in pairs])[0]


def answers(model, inputs, **options):
    options = {"max_new_tokens": TOKENS, "do_sample": False, **options}
    output = model.generate(**inputs, **options)
    output = output if isinstance(output, torch.Tensor) else output.sequences
    return output[:, inputs["input_ids"].shape[1] :]


def mixed(model):
    return prompts(
        model, (picture(120, 90), "What is that?"), (None, "Hello there, who are you?"), (picture(60, 200, 1), "x")
    )


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_either_cache_gives_the_greedy_answer(random_model, kind):
    inputs = mixed(random_model)
    plain = answers(random_model, inputs, use_cache=False)
    assert (plain >= random_model.config.vrt_offset).any(), "the test must see VRTs"
    assert torch.equal(answers(random_model, inputs, cache_implementation=kind), plain)
    predicted = [
        predict(random_model, [picture()], ["What is that?"], GenerationSettings(max_new_tokens=TOKENS, cache=cache))
        for cache in (kind, "dynamic")
    ]
    assert_same(*(found[0] for found in predicted))


def test_no_row_is_given_a_vrt_of_another_rows_picture(random_model):
    model, inputs = random_model, mixed(random_model)
    patches = (inputs["input_ids"] == model.config.image_token_id).sum(1)
    torch.manual_seed(0)
    for options in ({"do_sample": True, "temperature": 30.0, "top_k": 0}, {"num_beams": 3}):
        ids = answers(model, inputs, max_new_tokens=40, **options)
        assert (ids < model.config.vrt_offset + patches[:, None]).all()


@pytest.mark.parametrize("options", [{"do_sample": True}, {"num_beams": 4}, {"num_beams": 2, "do_sample": True}])
def test_several_sequences_of_one_prompt_and_the_states_that_wrote_them(random_model, options):
    model, inputs = random_model, prompts(random_model, (picture(), "Look."), (picture(84, 60, 3), "And there?"))
    recorder = StateRecorder()
    torch.manual_seed(3)
    output = model.generate(
        **inputs, max_new_tokens=8, num_return_sequences=2, return_dict_in_generate=True, recorder=recorder, **options
    )
    length = inputs["input_ids"].shape[1]
    states = recorder.states(getattr(output, "beam_indices", None))
    assert len(output.sequences) == len(states) == 4
    for row, ids in enumerate(output.sequences):
        alone = prompts(model, *[[(picture(), "Look.")], [(picture(84, 60, 3), "And there?")]][row // 2])
        answer = ids[None, length:]
        alone["input_ids"] = torch.cat([alone["input_ids"], answer], 1)
        alone["attention_mask"] = torch.ones_like(alone["input_ids"])
        with torch.no_grad():
            expected = model(**{**alone, "mm_token_type_ids": None}).last_hidden_state[0, -answer.shape[1] - 1 : -1]
        # What follows an end token is padding.
        ends = torch.isin(answer[0], torch.tensor([model.processor.end_token_id, model.processor.pad_token_id]))
        count = int(ends.nonzero()[0]) if ends.any() else answer.shape[1]
        torch.testing.assert_close(states[row, :count], expected[:count], atol=2e-4, rtol=1e-3)


def test_transformers_streamers_show_whole_answers(random_model, capsys):
    model, inputs = random_model, prompts(random_model, (picture(), "What is that?"))
    ids = answers(model, inputs, streamer=TextStreamer(model.processor, skip_prompt=True, skip_special_tokens=True))[0]
    shown = capsys.readouterr().out
    kept = [token for token in ids.tolist() if token != model.processor.end_token_id]
    # The streamer decodes as it goes, so torn bytes may be shown a little differently; VRTs are all there.
    assert shown.count("<|VRT_") == sum(token >= model.config.vrt_offset for token in kept) > 0


class Seen(BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens.append(value)

    def end(self):
        self.tokens.append(None)


class AfterFour(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.limit)


class OnlyVRTs(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return torch.cat([torch.full_like(scores[:, :320], float("-inf")), scores[:, 320:]], 1)


def test_streamers_stopping_criteria_and_logits_processors_are_heard(random_model):
    model, inputs = random_model, prompts(random_model, (picture(), "What is that?"))
    streamer, stop = Seen(), AfterFour()
    stop.limit = inputs["input_ids"].shape[1] + 4
    ids = answers(
        model,
        inputs,
        streamer=streamer,
        stopping_criteria=StoppingCriteriaList([stop]),
        logits_processor=LogitsProcessorList([OnlyVRTs()]),
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
    )
    assert ids.shape == (1, 4) and (ids >= model.config.vrt_offset).all()
    assert [int(value) for value in streamer.tokens[1:-1]] == ids[0].tolist() and streamer.tokens[-1] is None


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 8.0}])
def test_the_guard_against_repeats_holds_in_every_search(toy_model, shapes, options):
    # This model likes to repeat: without the guard most of its groups do.
    asked = [refer_request("the red circle"), refer_request("the blue square")]
    for forbid in (False, True):
        torch.manual_seed(0)
        settings = GenerationSettings(max_new_tokens=24, masks=False, forbid_repeats=forbid, **options)
        groups = [thing.patches for found in predict(toy_model, shapes, asked, settings) for thing in found.objects]
        assert groups
        repeats = any(len(set(group)) < len(group) for group in groups)
        assert not repeats if forbid else repeats or "temperature" in options


def test_the_guard_lets_the_next_group_have_the_same_vrts():
    guard = ForbidRepeatedVRTs(10)
    hidden = guard(torch.tensor([[3, 12, 13, 4, 13]]), torch.zeros(1, 15)).isinf()
    assert hidden.nonzero()[:, 1].tolist() == [13]


def test_requests_in_two_threads_answer_as_if_alone(toy_model, shapes):
    """Nothing of a request may lie on the module: text-only turns, other grids and batches run at the same time."""
    settings = GenerationSettings(max_new_tokens=24)
    turns = [
        ([shapes], [refer_request("the red circle")]),
        ([[], shapes.resize((84, 280))], [text_request("Hello, what can you do?"), refer_request("the blue square")]),
        ([shapes.resize((300, 60))], [refer_request("the blue square")]),
        ([[]], [text_request("Is there a circle?")]),
    ]
    alone = [predict(toy_model, *turn, settings) for turn in turns]
    assert toy_model.model.rope_deltas is None
    gate = threading.Barrier(len(turns))

    def ask(turn):
        gate.wait()
        return [predict(toy_model, *turn, settings) for _ in range(2)]

    with ThreadPoolExecutor(len(turns)) as pool:
        together = list(pool.map(ask, turns))
    for expected, rounds in zip(alone, together, strict=True):
        for found in rounds:
            for one, other in zip(expected, found, strict=True):
                assert_same(one, other)


def test_a_conversation_goes_on_from_its_cache(random_model):
    """The second turn costs only its own words, and is answered as if all had been read at once."""
    model, inputs = (
        random_model,
        prompts(random_model, (picture(), "What is that?"), (picture(60, 120, 5), "And that?")),
    )
    first = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    more = torch.tensor([model.processor.tokenize(" And then?")] * 2)
    ids = torch.cat([first.sequences, more], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, ids.shape[1] - inputs["attention_mask"].shape[1])], 1)
    whole = {**inputs, "input_ids": ids, "attention_mask": mask.long()}
    del whole["mm_token_type_ids"]
    expected = model.generate(**whole, max_new_tokens=6, do_sample=False)

    continued = {name: whole[name] for name in ("input_ids", "attention_mask", "image_grid_thw")}
    with torch.no_grad():
        start = model.prefill(**inputs)
    known = {"prototypes": start.prototypes, "prototype_mask": start.prototype_mask}
    cache = first.past_key_values
    with pytest.raises(UserError, match="in the cache already"):
        model.generate(**continued, pixel_values=inputs["pixel_values"], past_key_values=cache, max_new_tokens=1)
    found = model.generate(**continued, **known, past_key_values=cache, max_new_tokens=6, do_sample=False)
    assert torch.equal(found, expected)


def test_an_engine_may_drive_prefill_and_steps_of_a_padded_batch(random_model):
    model, inputs = random_model, mixed(random_model)
    expected = answers(model, inputs, max_new_tokens=5, min_new_tokens=5)
    with torch.no_grad():
        output, mask, ids = model.prefill(**inputs), inputs["attention_mask"], []
        for _ in range(5):
            # As `min_new_tokens` has it: the answer may not end yet.
            output.logits[..., model.generation_config.eos_token_id] = float("-inf")
            ids.append(output.logits[:, -1:].argmax(-1))
            mask = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], 1)
            output = model.step(ids[-1], output, attention_mask=mask)
    assert torch.equal(torch.cat(ids, 1), expected)


def test_placeholders_without_their_images_are_refused(random_model):
    inputs = prompts(random_model, (picture(), "What is that?"))
    with pytest.raises(UserError, match="image_grid_thw"):
        random_model(input_ids=inputs["input_ids"])
