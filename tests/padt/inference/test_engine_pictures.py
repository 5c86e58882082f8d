"""What the engine keeps of pictures: more questions pay for their words only, and answers stay the same."""

import io

import numpy as np
import pytest
from PIL import Image

from padt.inference.engine import Engine, EngineLimits
from padt.inference.predict import caption_request, detect_request, predict, refer_request
from tests.padt.inference.test_engine import SHORT, SMALL, answers, counted
from tests.padt.inference.test_predict import assert_same, picture


def encoded(image):
    handle = io.BytesIO()
    image.save(handle, "PNG")
    return handle.getvalue()


def test_more_questions_about_a_picture_cost_their_words_only(random_model):
    image = encoded(picture(120, 90))
    asked = [(image, refer_request(f"thing {n}")) for n in range(4)]
    engine = Engine(random_model, SMALL)
    (first,) = answers(engine, asked[:1])
    with counted(random_model.model.visual) as vision, counted(random_model.model.language_model) as language:
        found = answers(engine, asked[1:])
    assert not vision, "the picture must not be seen again"
    patches = first.grid[0] * first.grid[1]
    whole = random_model.processor.prompt_ids(asked[1][1].prompt, [patches])
    prefix = max(place for place, token in enumerate(whole) if token == random_model.processor.image_token_id) + 1
    assert language[0].last_hidden_state.shape[:2] == (3, len(whole) - prefix)
    for (images, request), prediction in zip(asked, [first, *found], strict=True):
        assert_same(prediction, predict(random_model, [images], [request], SHORT)[0])


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_questions_that_come_together_share_their_picture(random_model, cache_mb):
    """The same in one admission, whether anything is kept after it or not."""
    image = picture(120, 90)
    asked = [(image, refer_request(f"thing {n}")) for n in range(5)] + [(picture(seed=3), caption_request())]
    engine = Engine(random_model, EngineLimits(max_rows=8, max_length=512, cache_mb=cache_mb))
    with counted(random_model.model.visual) as vision, counted(random_model.model.language_model) as language:
        found = answers(engine, asked)
    assert len(vision) == 1
    rows = [len(output.last_hidden_state) for output in language if output.last_hidden_state.shape[1] > 1]
    assert sum(rows) == 6 and 4 in rows, "four questions must be read after the one that brought the picture"
    for (images, request), prediction in zip(asked, found, strict=True):
        assert_same(prediction, predict(random_model, [images], [request], SHORT)[0])
    assert bool(engine.cache.nbytes) == bool(cache_mb)


def test_pictures_are_told_apart_by_content(random_model):
    """Equal pixels in another shape, another picture of the same size, the same pictures in another order."""
    first, second = picture(112, 84, 1), picture(112, 84, 2)
    turned = Image.fromarray(np.asarray(first).reshape(112, 84, 3))
    engine = Engine(random_model, SMALL)
    request = detect_request(["cat"])
    asked = [(first, request), (second, request), (turned, request)]
    asked += [([first, second], request), ([second, first], request), ([first, first], request)]
    for images, one in asked:
        (found,) = answers(engine, [(images, one)])
        assert_same(found, predict(random_model, [images], [one], SHORT)[0])
    with counted(random_model.model.visual) as vision:
        answers(engine, [([turned, second], request)])
    assert not vision, "pictures that are known one by one are known together"


def test_the_cache_is_bounded_and_forgets_the_oldest(random_model):
    limits = EngineLimits(max_rows=2, max_length=512, cache_mb=0.1)
    engine = Engine(random_model, limits)
    request = refer_request("it")
    for n in range(12):
        answers(engine, [(picture(seed=n), request)])
        assert 0 < engine.cache.nbytes <= 0.1 * 2**20
    with counted(random_model.model.visual) as vision:
        answers(engine, [(picture(seed=11), request)])
        assert not vision
        (again,) = answers(engine, [(picture(seed=0), request)])
        assert len(vision) == 1
    assert_same(again, predict(random_model, [picture(seed=0)], [request], SHORT)[0])
