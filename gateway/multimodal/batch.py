"""Several images' tensors as one of each name, as the published processors batch them."""

from collections.abc import Sequence

import numpy as np

from gateway.multimodal.features import Features


def batched(images: Sequence[Features]) -> dict[str, np.ndarray]:
    """One after the other along the first axis; where the other sides differ, zeros follow up to the longest."""
    names = images[0].tensors if images else ()
    return {name: stacked([image.tensors[name] for image in images]) for name in names}


def stacked(tensors: Sequence[np.ndarray]) -> np.ndarray:
    shape = [max(sides) for sides in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    result = np.zeros((sum(map(len, tensors)), *shape), tensors[0].dtype)
    start = 0
    for tensor in tensors:
        result[(slice(start, start + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
        start += len(tensor)
    return result
