"""Masks of objects: polygons, run-length encodings as COCO has them, and arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco


def encode(mask: np.ndarray) -> dict[str, Any]:
    """The run-length encoding of a mask (height, width), as JSON holds it."""
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = encoded['counts']
    return {
        'size': [int(size) for size in encoded['size']],
        'counts': counts.decode() if isinstance(counts, bytes) else counts,
    }


def compress(shape: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons, or runs as numbers or as text, as one run-length encoding of text."""
    if not isinstance(shape, Mapping):
        return coco.merge(coco.frPyObjects([np.asarray(ring).tolist() for ring in shape], height, width))
    return coco.frPyObjects(dict(shape), height, width) if isinstance(shape['counts'], list) else dict(shape)


def decode(shape: Any, height: int, width: int) -> np.ndarray:
    """The mask (height, width) of polygons or of a run-length encoding: uint8 of 0 and 1."""
    return coco.decode(compress(shape, height, width))
