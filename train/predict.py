"""Classes of image files."""

from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform

from .console import say
from .errors import UserError, first_line
from .models import load


def predict(target: str, paths: list[str]) -> None:
    """Print the five likeliest classes of each image, with their probabilities in percent."""
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise UserError(f'no such image: {", ".join(missing[:3])}{" ..." if len(missing) > 3 else ""}')
    model, spec, _ = load(target)
    model.eval()
    transform = create_transform(**spec.data)
    for path in paths:
        try:
            with Image.open(path) as file:
                image = file.convert('RGB')
        except Exception as error:  # of a dozen decoders
            raise UserError(f'cannot read image {path}: {first_line(error)}') from error
        with torch.inference_mode():
            probabilities = model(transform(image)[None]).softmax(-1)[0]
        best = probabilities.topk(min(5, spec.num_classes))
        say(path)
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            say(f'  {100 * probability:6.2f} %  {spec.class_name(index)}')
