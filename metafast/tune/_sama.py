"""One step back without second derivatives."""

from __future__ import annotations

from metafast.tune._implicit import Implicit


class SAMA(Implicit):
    r"""`OneStep` with a central difference instead of the mixed second derivative.

    The validation gradient passes through the optimizer's update, \(v = \nabla V\, \Phi_g\) (Adam's preconditioner
    included), and a tensor h of the loss gets
    \((\nabla_h L(\theta + \epsilon v) - \nabla_h L(\theta - \epsilon v)) / 2\epsilon\) with
    \(\epsilon = \text{radius} / \lVert v \rVert\): two more first-order gradients of the call's batch, only on the
    calls that are due. Options of the optimizer need none and get the same as by `OneStep`.

    Args:
        radius: length of the perturbation. Default 0.01.

    Raises:
        TypeError, ValueError: `radius` is not a number above 0.

    Example:
        >>> SAMA(radius=0.1).radius
        0.1

    Source:
        S. K. Choe et al., Making Scalable Meta Learning Practical, NeurIPS 2023, equation 5; the difference: H. Liu,
        K. Simonyan, Y. Yang, DARTS, ICLR 2019, equation 8.
    """

    def __init__(self, radius: float = 0.01) -> None:
        super().__init__(terms=0, hvp="difference", radius=radius)
