"""Conversations: several turns, several images or none; what is supervised, and what generation makes of the same."""

import base64
import io

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from padt.data.collate import collate
from padt.data.conversation import (
    IMAGE_PLACE,
    ConversationError,
    Group,
    ObjectTarget,
    Turn,
    check_turns,
    question,
    read_chat,
    read_messages,
)
from padt.data.tasks import Sample, TaskOptions, render
from padt.errors import UserError
from padt.inference.predict import GenerationSettings, Request, predict
from padt.inference.requests import chat_request
from padt.model.losses import LossSettings
from tests.padt.data.test_collate import picture, square
from tests.padt.data.test_processor import NASTY
from tests.padt.tiny import ROWS, tiny_model

PLAIN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def user(*content):
    return Turn("user", content)


def assistant(*content):
    return Turn("assistant", content)


def group(*vrts, patches=None, image=0, rle=None):
    return Group(ObjectTarget("cat", (0.1, 0.2, 0.5, 0.6), patches or tuple(sorted(set(vrts))), rle), vrts, image)


def two_images():
    """Six and four patches; objects of both images, in two answers."""
    mask = square(56, 56, 0, 0, 28)
    return Sample(
        "set/two",
        "detect",
        (picture(84, 56), picture(56, 56, 1)),
        (
            user(IMAGE_PLACE, "and", IMAGE_PLACE, "where is it?"),
            assistant(
                "here ", group(0, 5, patches=(0, 1, 5)), " and ", group(3, 0, patches=(0, 2, 3), image=1, rle=mask)
            ),
            user("again?"),
            assistant(group(2, image=1), "."),
        ),
    )


def template_text(processor, messages, **options):
    return processor.tokenizer.apply_chat_template(
        messages, chat_template=processor.chat_template, tokenize=False, **options
    )


def test_a_conversation_is_what_the_chat_template_makes_of_it(processor, trained_model):
    # A system turn takes the place of the default one, and each answer ends as in Qwen's own training.
    for each in (processor, trained_model.processor):
        encoded = each.encode(Sample("k", "chat", (), read_messages(PLAIN, 0)))
        text = template_text(each, PLAIN).removesuffix("\n")
        assert encoded.input_ids.tolist() == each.tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = each.prompt_ids(read_messages(PLAIN, 0)[:-1])
        text = template_text(each, PLAIN[:-1], add_generation_prompt=True)
        assert prompt == each.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_answer_is_supervised_and_nothing_else(processor):
    encoded = processor.encode(Sample("k", "chat", (), read_messages(PLAIN, 0)))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.supervised, [0]])))
    said = [encoded.input_ids[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    decoded = [processor.decode_ids(ids, skip_special_tokens=False) for ids in said]
    assert decoded == ["Four.<|im_end|>", "Yes.<|im_end|>"]


@pytest.mark.parametrize("words", NASTY)
def test_no_turn_s_words_are_read_as_anything_else(processor, words):
    messages = [{"role": role, "content": words} for role in ("system", "user", "assistant", "user", "assistant")]
    encoded = processor.encode(Sample("k", "chat", (), read_messages(messages, 0)))
    harmless = processor.encode(Sample("k", "chat", (), read_messages(PLAIN, 0)))
    special = set(processor.tokenizer.all_special_ids)
    kept = [[token for token in each.input_ids.tolist() if token in special] for each in (encoded, harmless)]
    assert kept[0] == kept[1] and max(encoded.input_ids) < ROWS and not encoded.is_image.any()


def test_images_count_on_within_a_sample(processor):
    encoded = processor.encode(two_images())
    assert encoded.grids == ((4, 6), (4, 4)) and len(encoded.pixels) == 24 + 16
    runs = np.flatnonzero(np.diff(np.concatenate([[0], encoded.is_image, [0]])))
    assert (runs[1::2] - runs[::2]).tolist() == [6, 4]
    assert [(each.vrts, each.image, each.foreground.tolist()) for each in encoded.groups] == [
        ((0, 5), 0, [0, 1, 5]),
        ((9, 6), 1, [6, 8, 9]),
        ((8,), 1, [8]),
    ]
    for each in encoded.groups:
        at = slice(each.start, each.start + len(each.vrts))
        assert (encoded.input_ids[at] - ROWS).tolist() == list(each.vrts) and encoded.supervised[at].all()
    # The mask lies on the grid of its own image.
    assert encoded.groups[1].mask.shape == (16, 16) and encoded.groups[1].mask[:8, :8].all()


def test_a_batch_mixes_several_images_one_and_none(processor):
    one = Sample.single("set/one", "detect", picture(56, 84, 2), "find", (group(1, 4), "."))
    text = Sample("set/text", "chat", (), read_messages(PLAIN, 0))
    batch = collate([processor.encode(each) for each in (text, two_images(), one)], processor.pad_token_id)
    assert batch.patch_counts == [0, 10, 6] and batch.grid_thw[:, 1:].tolist() == [[4, 6], [4, 4], [6, 4]]
    assert batch.objects.images == [0, 1, 1, 2]
    assert batch.objects.vrt_patches.tolist() == [0, 5, 9, 6, 8, 11, 14]
    assert [row.nonzero().flatten().tolist() for row in batch.foreground] == [[0, 1, 5], [6, 8, 9], [8], [1, 4]]
    assert len(batch.grid_thw) == 3 and len(batch.objects.counts) == 4


@torch.no_grad()
def test_training_sees_what_generation_sees(model):
    # Several images, several turns, beside a text-only sample: every supervised token has the probability that
    # generation gives it after the same tokens.
    processor = model.processor
    sample = two_images()
    text = Sample("set/text", "chat", (), read_messages(PLAIN, 0))
    encoded = [processor.encode(each) for each in (text, sample)]
    batch = collate(encoded, processor.pad_token_id)
    losses = []
    hook = model.lm_head.register_forward_hook(lambda *call: losses.append(call[2]))
    model(batch=batch, loss=LossSettings(robust=False))
    hook.remove()
    for row, (each, source) in enumerate(zip(encoded, (text, sample), strict=True)):
        inputs, _ = processor.prompt_inputs([source.images], [source.turns[:-1]])
        start = inputs["input_ids"].shape[1]
        assert inputs["input_ids"][0].tolist() == each.input_ids[:start].tolist()
        answer = torch.from_numpy(each.input_ids[start:])[None]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answer)], 1)
        chances = model(**inputs).logits[0].log_softmax(-1)
        places = np.flatnonzero(each.supervised)
        expected = -chances[places - 1, each.input_ids[places]]
        torch.testing.assert_close(losses[0][row, : len(places)], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_steps_after_a_prompt_of_several_images_give_the_logits_of_one_pass(random_model):
    # Positions after two pictures lie behind those of the prompt by what the pictures save.
    processor = random_model.processor
    images, turns = [[picture(84, 56), picture(56, 56, 1)]], two_images().turns[:3]
    inputs, _ = processor.prompt_inputs(images, [turns])
    answer = random_model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    whole = {**inputs, "input_ids": answer, "attention_mask": torch.ones_like(answer)}
    extra = answer.shape[1] - inputs["input_ids"].shape[1]
    whole["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, extra))
    logits = random_model(**whole).logits[0]
    logits[:, processor.end_token_id] = -torch.inf
    assert logits[-extra - 1 : -1].argmax(-1).tolist() == answer[0, -extra:].tolist()


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_fresh_padt_keeps_qwen_s_conversations(tied):
    # General ability is kept: until prototypes are trained, every answer is plain Qwen2.5-VL's, token by token.
    model = tiny_model(tied)
    torch.nn.init.zeros_(model.vis_norm.weight)
    plain = Qwen2_5_VLForConditionalGeneration(model.config).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    chats = [
        ([picture(84, 56), picture(56, 56, 1)], two_images().turns[:1]),
        ([picture(112, 84, 2)], (question("a?", 1), assistant("b"), user("c?"))),
        ([], read_messages(PLAIN, 0)[:-1]),
    ]
    for images, turns in chats:
        inputs, _ = model.processor.prompt_inputs([images], [turns])
        ours, theirs = (each.generate(**inputs, max_new_tokens=10, do_sample=False) for each in (model, plain))
        assert ours.tolist() == theirs.tolist() and ours.max() < ROWS


def test_a_conversation_goes_on_from_an_answer_with_its_vrts(random_model):
    # The model sees its own words again, token by token; a batch mixes what is asked for the first and the second time.
    first, second, settings = picture(84, 56), picture(56, 56, 1), GenerationSettings(max_new_tokens=12)
    (answer,) = predict(random_model, [[first, second]], ["where?"], settings)
    assert any(token >= ROWS for token in answer.token_ids)
    processor = random_model.processor
    asked = Request("chat", (question("where?", 2), answer.turn, user("again?")))
    inputs, _ = processor.prompt_inputs([[first, second]], [asked.prompt])
    before = processor.prompt_ids("where?", [6, 4])
    said = [token for token in answer.token_ids if token != processor.end_token_id]
    assert inputs["input_ids"][0, : len(before) + len(said) + 1].tolist() == [*before, *said, processor.end_token_id]
    alone = predict(random_model, [[first, second]], [asked], settings)
    both = predict(random_model, [[first, second], None], [asked, "hello"], settings)
    assert both[0].token_ids == alone[0].token_ids and not both[1].objects


def test_chat_messages_are_answered(random_model):
    def encoded(image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    parts = [{"type": "image_url", "image_url": {"url": encoded(picture(84, 56))}}, {"type": "text", "text": "where?"}]
    settings = GenerationSettings(max_new_tokens=6)
    found = predict(random_model, *chat_request([{"role": "user", "content": parts}]), settings)
    assert found[0].token_ids == predict(random_model, picture(84, 56), "where?", settings)[0].token_ids
    assert found[0].width == 84


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("https://example.com/a.png", "not fetched"),
        ("file:///etc/passwd", "not fetched"),
        ("/etc/passwd", "not fetched"),
        ("data:image/png,abc", "data URL cannot be read"),
        ("data:image/png;base64,?", "data URL cannot be read"),
    ],
)
def test_pictures_of_strangers_are_never_looked_up(image, message):
    content = [{"type": "image", "image": image}, {"type": "text", "text": "?"}]
    with pytest.raises(UserError, match=message):
        chat_request([{"role": "user", "content": content}], files=False)


def test_a_marker_is_a_place_and_pictures_without_one_come_first():
    said = {"role": "assistant", "content": "ok <image>"}

    def content(text, images):
        turns = read_messages([{"role": "user", "content": text}, said], images)
        assert turns[1].content == ("ok <image>",), "only users show pictures"
        return turns[0].content

    assert content("<image>\nWhat?", 1) == (IMAGE_PLACE, "What?")
    assert content("What?\n<image>", 1) == ("What?", IMAGE_PLACE)
    assert content("a <image>, b\n<image>\n\nc", 2) == ("a ", IMAGE_PLACE, ", b", IMAGE_PLACE, "\nc")
    assert content("What?", 2) == (IMAGE_PLACE, IMAGE_PLACE, "What?")


@pytest.mark.parametrize(
    ("turns", "images", "reason"),
    [
        ((user("a <image> b"),), 0, "roles_out_of_order"),
        ((), 0, "roles_out_of_order"),
        ((assistant("a"),), 0, "roles_out_of_order"),
        ((user("a"), user("b"), assistant("c")), 0, "roles_out_of_order"),
        ((user("a"), Turn("system", ("b",)), assistant("c")), 0, "roles_out_of_order"),
        ((user("a"), assistant(" \n")), 0, "answer_empty"),
        ((user("a"), assistant()), 0, "answer_empty"),
        ((user("a"), Turn("tool", ("b",))), 0, "role_unknown"),
        ((user(IMAGE_PLACE, IMAGE_PLACE), assistant("a")), 1, "image_marker_mismatch"),
        ((user("a"), assistant("b")), 1, "image_marker_mismatch"),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_reason(turns, images, reason):
    with pytest.raises(ConversationError) as error:
        check_turns(turns, images, answered=True)
    assert error.value.reason == reason


def test_chat_messages_are_read_in_parts():
    turns, images = read_chat(
        [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}}, {"text": "<image>?"}]},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "image", "image": b"bytes"}]},
        ]
    )
    assert images == ("a.jpg", b"bytes")
    assert [turn.content for turn in turns] == [(IMAGE_PLACE, "<image>?"), ("one",), ("and", IMAGE_PLACE)]
    for message in ({"role": "user"}, {"role": "user", "content": None}, "hello", {"content": "x"}):
        with pytest.raises(ConversationError, match="Message 1"):
            read_chat([message])
    with pytest.raises(ConversationError, match="neither text nor a picture"):
        read_chat([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((group(1, image=2), "."), "object in image 2, but 1 images"),
        ((group(9), "."), "names patch 9 but its image has 6 patches"),
    ],
)
def test_objects_of_images_that_are_not_there_are_refused(processor, content, message):
    with pytest.raises(UserError, match=message):
        processor.encode(Sample.single("set/1", "detect", picture(84, 56), "find", content))
    with pytest.raises(UserError, match="only the assistant's"):
        processor.encode(Sample("k", "detect", (picture(84, 56),), (user(IMAGE_PLACE, group(1)), assistant("a"))))


def test_a_thousand_turns_are_counted_token_by_token(processor):
    # Longer than any budget: the reader decides by num_tokens, so that must be right.
    sample = Sample("k", "chat", (), (user("a"), assistant("b")) * 500)
    encoded = processor.encode(sample)
    text = template_text(processor, [{"role": turn.role, "content": turn.text} for turn in sample.turns])
    assert encoded.num_tokens == len(processor.tokenizer(text.removesuffix("\n"))["input_ids"]) > 6000
    assert encoded.supervised.sum() == 1000
    batch = collate([encoded], processor.pad_token_id)
    assert batch.supervised.targets.shape == (1, 1000)


def test_rows_of_conversations_are_rendered_and_others_say_so():
    stored = {"key": "s/t/1", "image": {"bytes": b"1", "path": "a"}, "more_images": [{"bytes": None, "path": "b"}]}
    messages = [{"role": "user", "content": "<image>, <image>?"}, {"role": "assistant", "content": "no"}]
    rng = np.random.default_rng(0)
    sample = render({**stored, "messages": messages}, "chat", 0, rng, TaskOptions())
    assert sample.images == (b"1", "b") and sample.prompt == ", ?" and sample.answer == ("no",)
    text = {"key": "s/t/2", "image": None, "messages": [{**messages[0], "content": "hi"}, messages[1]]}
    assert render(text, "chat", 0, rng, TaskOptions()).images == ()
    # A set prepared before there were conversations lacks the column.
    with pytest.raises(UserError, match="s/t/1 holds no conversation"):
        render(stored, "chat", 0, rng, TaskOptions())
