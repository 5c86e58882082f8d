"""Masks refined by SAM 2: what it is told lies where the object is, and nothing but masks changes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from padt.data.rle import decode, encode
from padt.errors import UserError
from padt.inference.refine import PROMPTS, MaskRefiner, Refinement, load_refiner
from padt.inference.results import Frame, PredictedObject, Prediction
from padt.pretrained.quiet import quiet_transformers
from tests.padt.tiny_sam import SIZE, write_tiny_sam

WIDTH, HEIGHT = 200, 120
GRID = (4, 7)


@pytest.fixture(scope="module")
def sam(tmp_path_factory) -> str:
    with quiet_transformers():
        return write_tiny_sam(tmp_path_factory.mktemp("sam") / "sam")


def picture(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def thing(x0: int, y0: int, x1: int, y1: int, patches=(9, 10), image: int = 0, **values) -> PredictedObject:
    """A rectangle's object, with a corner of its mask cut off."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    mask[y0 : (y0 + y1) // 2, (x0 + x1) // 2 : x1] = False
    known = {"label": "a", "score": 0.5, "span": (0, 2), "confidence": 0.5, "complete": True, "image": image}
    box = (float(x0), float(y0), float(x1), float(y1))
    return PredictedObject(box=box, mask=encode(mask), patches=patches, **{**known, **values})


def prediction(*objects: PredictedObject, pictures: int = 1, **values) -> Prediction:
    return Prediction("text", objects, (Frame(WIDTH, HEIGHT, GRID),) * pictures, **values)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


class Echo:
    """A SAM 2 that gives back the mask that it is told, and remembers what it was told and shown."""

    device, dtype = torch.device("cpu"), torch.float32
    prompt_encoder = SimpleNamespace(input_image_size=1024, mask_input_size=(256, 256))

    def __init__(self, answer=None) -> None:
        self.told: list[dict] = []
        self.seen: list[torch.Tensor] = []
        self._answer = answer

    def get_image_embeddings(self, pixels):
        self.seen.append(pixels)
        return [torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 4, 4)]

    def __call__(self, image_embeddings, multimask_output, **told):
        count = len(next(iter(told.values())))
        assert all(len(each) == count for each in image_embeddings) and not multimask_output
        self.told.append(told)
        masks = told.get("input_masks", torch.ones(count, 1, 256, 256))
        return SimpleNamespace(pred_masks=(masks if self._answer is None else self._answer(masks))[:, None])


def echo(prompt: str, answer=None, boxes: bool = False) -> tuple[MaskRefiner, Echo]:
    model = Echo(answer)
    return MaskRefiner(
        model, lambda image, **_: {"pixel_values": torch.zeros(1, 3, 8, 8)}, Refinement(prompt, boxes=boxes)
    ), model


def test_a_mask_told_comes_back_where_it_was():
    """The frame of mask prompts and of masks: what goes in whole must come out at the same place."""
    refiner, _ = echo("mask")
    small, wide = thing(20, 30, 50, 100), thing(90, 8, 199, 40)
    (refined,) = refiner.refine([picture()], [prediction(small, wide)])
    for before, after in zip((small, wide), refined.objects, strict=True):
        assert after.mask["size"] == [HEIGHT, WIDTH]
        assert iou(decode(before.mask), decode(after.mask)) > 0.97
        assert replace(after, mask=None) == replace(before, mask=None)


def test_boxes_and_points_are_told_in_the_square_that_the_picture_is_stretched_to():
    found = thing(50, 30, 100, 90, patches=(0, 27))
    refiner, model = echo("box+mask")
    refiner.refine([picture()], [prediction(found)])
    (told,) = model.told
    assert told["input_boxes"][0, 0].tolist() == pytest.approx([256.0, 256.0, 512.0, 768.0])
    # Inside and outside of the mask, in the mask's own frame.
    mask = told["input_masks"][0, 0]
    assert mask[150, 80] == 10 and mask[80, 120] == -10 and mask[10, 10] == -10
    refiner, model = echo("points")
    refiner.refine([picture()], [prediction(found)])
    (told,) = model.told
    assert told["input_points"][0, 0].tolist() == [
        pytest.approx([1024 / 14, 128.0]),
        pytest.approx([1024 - 1024 / 14, 1024 - 128.0]),
    ]
    assert told["input_labels"].tolist() == [[[1, 1]]]


def test_the_picture_is_stretched_and_normalised(sam):
    """A picture of two colours, side by side: their border stays in the middle of the square."""
    refiner = load_refiner(Refinement("box", sam))
    halves = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    halves[:, WIDTH // 2 :] = 255
    shown = refiner._image_processor(Image.fromarray(halves), return_tensors="pt")["pixel_values"]
    assert shown.shape == (1, 3, SIZE, SIZE)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(shown[0, :, :, 2], (-mean / std)[:, None].expand(3, SIZE), atol=1e-4)
    assert torch.allclose(shown[0, :, :, -3], ((1 - mean) / std)[:, None].expand(3, SIZE), atol=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_each_object_has_the_mask_that_it_has_alone_and_each_picture_is_seen_once(sam, prompt, monkeypatch):
    refiner = load_refiner(Refinement(prompt, sam))
    objects = [thing(5 * n, 10, 60 + 5 * n, 90, patches=tuple(range(n % 3 + 1)), image=n % 2) for n in range(19)]
    pictures = [picture(1), picture(2)]
    seen = []
    see = refiner._see
    monkeypatch.setattr(refiner, "_see", lambda each: seen.append(each) or see(each))
    whole, part = refiner.refine(pictures, [prediction(*objects, pictures=2), prediction(objects[3], pictures=2)])
    assert seen == pictures
    assert [replace(found, mask=None) for found in whole.objects] == [replace(found, mask=None) for found in objects]
    for before, after in zip(objects, whole.objects, strict=True):
        (alone,) = refiner.refine(pictures, [prediction(before, pictures=2)])
        assert iou(decode(alone.objects[0].mask), decode(after.mask)) > 0.99
    assert sum(before.mask != after.mask for before, after in zip(objects, whole.objects, strict=True)) > 9
    assert iou(decode(part.objects[0].mask), decode(whole.objects[3].mask)) > 0.99


def test_what_cannot_be_refined_stays_as_it_is():
    without = thing(10, 10, 50, 50, patches=())
    empty = replace(without, mask=encode(np.zeros((HEIGHT, WIDTH), bool)))
    nothing = prediction(replace(without, mask=None), warnings=("w",))
    for prompt in PROMPTS:
        refiner, model = echo(prompt)
        assert refiner.refine([picture()], [nothing, prediction()]) == [nothing, prediction()]
        assert refiner.refine([], [Prediction("words", (), ())]) == [Prediction("words", (), ())]
        # No picture is looked at in vain.
        assert not model.seen and not model.told
    refiner, model = echo("box+mask")
    refiner.refine([picture()], [prediction(empty, without)])
    # An empty mask tells nothing; its object has a box.
    assert sorted(tuple(told) for told in model.told) == [("input_boxes",), ("input_boxes", "input_masks")]
    refiner, model = echo("mask")
    assert refiner.refine([picture()], [prediction(empty)]) == [prediction(empty)] and not model.told


def test_the_models_own_mask_stays_where_sam_gives_none():
    found = [thing(10, 10, 60, 50), thing(90, 8, 199, 40), thing(20, 30, 50, 100)]

    def broken(masks):
        return torch.stack([masks[0], masks[1] * float("nan"), masks[2] * 0 - 1])

    refiner, _ = echo("mask", broken)
    (refined,) = refiner.refine([picture()], [prediction(*found, warnings=("w",))])
    assert [one.mask for one in refined.objects[1:]] == [one.mask for one in found[1:]]
    assert refined.warnings[0] == "w" and len(refined.warnings) == 3
    assert "1 masks that SAM 2 made are not finite" in refined.warnings[2]


def test_boxes_follow_the_masks_where_that_is_asked():
    refiner, _ = echo("mask", boxes=True)
    loose = replace(thing(50, 30, 100, 90), box=(0.0, 0.0, 200.0, 120.0))
    (refined,) = refiner.refine([picture()], [prediction(loose)])
    assert refined.objects[0].box == pytest.approx((50, 30, 100, 90), abs=1.5)


def test_half_precision_gives_whole_masks(sam):
    refiner = load_refiner(Refinement("box+mask", sam), device="cpu", dtype=torch.bfloat16)
    (refined,) = refiner.refine([picture()], [prediction(thing(10, 10, 60, 50))])
    assert refined.objects[0].mask["size"] == [HEIGHT, WIDTH]


def test_the_hubs_repositories_with_a_memory_for_videos_are_read(tmp_path, sam):
    with quiet_transformers():
        video = write_tiny_sam(tmp_path / "video", video=True)
    refiner = load_refiner(Refinement("box", video))
    assert len(refiner.refine([picture()], [prediction(thing(10, 10, 60, 50))])) == 1


def test_what_is_no_sam_2_is_named(tmp_path, sam):
    from tests.padt.folders import edit_json, edit_weights

    with pytest.raises(UserError, match="no model folder .*nowhere"):
        load_refiner(Refinement("box", str(tmp_path / "nowhere")))
    (tmp_path / "config.json").write_text('{"model_type": "padt"}')
    with pytest.raises(UserError, match="is no SAM 2 .its model_type is 'padt'"):
        load_refiner(Refinement("box", str(tmp_path)))
    with quiet_transformers():
        broken = tmp_path / "broken"
        write_tiny_sam(broken)
    edit_weights(broken, lambda weights: weights.pop("no_memory_embedding"))
    with pytest.raises(UserError, match="does not fit its configuration .no_memory_embedding"):
        load_refiner(Refinement("box", str(broken)))
    edit_json(broken / "config.json", model_type="sam2")
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read"):
        load_refiner(Refinement("box", str(broken)))
    with pytest.raises(UserError, match=r"refine_prompt 'boxes' is unknown: did you mean box"):
        Refinement("boxes")
    refiner, _ = echo("box")
    with pytest.raises(UserError, match="about 1 pictures, and 2 were given"):
        refiner.refine([picture(), picture()], [prediction()])
