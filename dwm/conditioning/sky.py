"""Where an image shows the sky: no map knows the height of buildings, so their outline is read from the picture.

Shapes: V views, H W pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_SURE, _POSSIBLE = 0.8, 0.5  # of the rig's brightest blue above the horizon
_DARKEST = 0.2  # of the same, for a cloud in the midst of sky
_SURE_TANGENT = 0.03  # of the elevation: at the horizon itself other things are as bright
_WARMEST = 0.02  # that red may exceed blue
_EDGE = 0.05  # a step in brightness from pixel to pixel that ends the sky
_AROUND = np.ones((1, 3, 3), bool)
_ALONG = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)


def sky_mask(
    images_VHW3: NDArray[np.floating], tangent_VHW: NDArray[np.floating], free_VHW: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Sky [V, H, W] in images in [0, 1]: bright, not warm, and joined to what surely is sky without an edge between.

    ``tangent`` is that of a pixel's elevation above the horizon, ``free`` tells where no labelled thing stands. At night it
    finds little or nothing, and what it misses counts as a far wall.
    """
    above = (tangent_VHW > 0) & free_VHW
    if not above.any():
        return above
    red, blue, bright = images_VHW3[..., 0], images_VHW3[..., 2], images_VHW3.mean(-1)
    top = np.percentile(blue[above], 97)
    possible = above & (blue >= red - _WARMEST) & (blue > _POSSIBLE * top)
    sure = possible & (blue > _SURE * top) & (tangent_VHW > _SURE_TANGENT)
    steps = [np.abs(np.diff(bright, axis=axis, prepend=np.take(bright, [0], axis))) for axis in (1, 2)]
    smooth = possible & (np.maximum(*steps) < _EDGE)
    grown = ndimage.binary_propagation(sure & smooth, structure=_ALONG, mask=smooth)
    sky = np.asarray(ndimage.binary_dilation(grown, _AROUND, mask=possible), bool)  # the edges too
    return sky | (_enclosed(sky) & above & (blue > _DARKEST * top))


def _enclosed(sky: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Sky with its holes filled: dark clouds hang free, what stands on the ground is joined to it. Above an image is sky."""
    lid = np.ones_like(sky[:, :1])
    filled = [np.asarray(ndimage.binary_fill_holes(view), bool) for view in np.concatenate([lid, sky], axis=1)]
    return np.stack(filled)[:, 1:]
