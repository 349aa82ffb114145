"""What work costs that has a price for each call and one for each product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: (calls, products, seconds)
Point = tuple[float, float, float]


@dataclass(frozen=True)
class CostLine:
    """seconds = calls * per_call + products * per_product."""

    per_call: float = 0.0
    per_product: float = 0.0

    @classmethod
    def through(cls, points: Sequence[Point]) -> CostLine:
        """Return the line through one or two measured points, without a price below zero.

        With one point, and where two contradict each other, all is paid by product, as in the larger.
        """
        if not points:
            return cls()
        (calls, products, seconds), (more_calls, more_products, longer) = points[0], points[-1]
        determinant = calls * more_products - more_calls * products
        if abs(determinant) > 1e-9 * calls * more_products:
            per_call = (seconds * more_products - longer * products) / determinant
            per_product = (calls * longer - more_calls * seconds) / determinant
            if per_call >= 0 and per_product >= 0:
                return cls(per_call, per_product)
        return cls(0.0, longer / more_products)

    def seconds(self, calls: float, products: float) -> float:
        """Return what so much work takes."""
        return calls * self.per_call + products * self.per_product
