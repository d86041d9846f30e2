"""A minimum cut of a pixel grid with unary costs of one's own, by the solver inside OpenCV's GrabCut.

OpenCV exposes its max-flow (Boykov and Kolmogorov, 2004) only through `cv2.grabCut`, whose unary costs are colour models.
With the models frozen, two Gaussians of equal variance on one channel make the cost linear in that channel, so the
channel carries any unary cost; the other two carry the colours whose differences weaken the smoothness term.
"""

from __future__ import annotations

import cv2
import numpy as np

LIMIT = 8.0  # nats: a unary cost beyond it counts as it
_LEVELS = 20  # of the channel on either side of 128; few, because their differences also count as contrast
_COST_PER_NAT = 5.0  # GrabCut's smoothness is 50 where there is no contrast: 10 nats a neighbour


def _model(centre: int) -> np.ndarray:
    """GrabCut's layout of a mixture with one component: 5 weights, 5 means, 5 covariances; here flat but for channel 0."""
    model = np.zeros((1, 65))
    model[0, 0] = 1
    model[0, 5:8] = centre, 128, 128
    variance = 2 * _LEVELS**2 / (LIMIT * _COST_PER_NAT)  # the log ratio of the two is then LIMIT at the last level
    model[0, 20:29] = np.diag([variance, 1e8, 1e8]).ravel()
    return model


def min_cut(unary: np.ndarray, contrast: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The foreground (h, w) bool that minimises unary plus smoothness costs; deterministic.

    unary: (h, w) nats, positive for foreground; contrast: (h, w, 2) uint8, neighbours that differ in it part cheaply
    (measured against the mean difference); fixed: (h, w) int8, +1 surely foreground, −1 surely background, 0 free.
    """
    if unary.size == 1:  # no neighbours, which the solver insists on
        return (fixed > 0) | ((fixed == 0) & (unary > 0))
    level = np.rint(np.clip(unary, -LIMIT, LIMIT) * (_LEVELS / LIMIT)) + 128
    labels = np.where(unary > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[fixed > 0], labels[fixed < 0] = cv2.GC_FGD, cv2.GC_BGD
    image = cv2.merge([level.astype(np.uint8), contrast[..., 0], contrast[..., 1]])
    background, foreground = _model(128 - _LEVELS), _model(128 + _LEVELS)
    cv2.grabCut(image, labels, None, background, foreground, 1, cv2.GC_EVAL_FREEZE_MODEL)
    return (labels & 1).astype(bool)
