"""Objects of answers that give boxes as numbers: models that write no Visual Reference Tokens."""

from dataclasses import replace

from padt.data.image import PATCH
from padt.data.text_boxes import read_text_boxes
from padt.inference.answer_parser import label_of
from padt.inference.results import PredictedObject, Prediction


def with_text_boxes(prediction: Prediction) -> Prediction:
    """The answer with an object for each box that it writes as ``[x0, y0, x1, y1]``, if it has no group of VRTs.

    Such boxes are pixels of the resized (first) picture. They come without mask, patches and span, and all score 1:
    the words say nothing of how sure they are.
    """
    if prediction.objects or not prediction.images:
        return prediction
    frame = prediction.images[0]
    rows, columns = frame.grid
    wide, high = frame.width / (columns * PATCH), frame.height / (rows * PATCH)
    found: list[PredictedObject] = []
    label = ""
    for words, (x0, y0, x1, y1) in read_text_boxes(prediction.text):
        label = label_of(words, label)
        # As the decoder's boxes, they end where the picture ends.
        box = (min(x0 * wide, frame.width), min(y0 * high, frame.height), x1 * wide, y1 * high)
        box = (box[0], box[1], min(box[2], float(frame.width)), min(box[3], float(frame.height)))
        found.append(PredictedObject(label, 1.0, box, None, (), (0, 0), 1.0, complete=True))
    return replace(prediction, objects=tuple(found))
