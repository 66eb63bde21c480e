"""What computing costs: hours of devices, and their price."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Hours of devices, be they busy or waiting, and what one of them costs, in whatever currency."""

    device_hours: float
    price_per_hour: float | None

    @property
    def price(self) -> float | None:
        return None if self.price_per_hour is None else self.device_hours * self.price_per_hour

    @property
    def text(self) -> str:
        hours = self.device_hours
        time = f"{hours:,.1f} device hours" if hours >= 1 else f"{hours * 60:.1f} device minutes"
        return time if self.price is None else f"{time}, price {self.price:,.2f}"

    def as_json(self) -> dict[str, Any]:
        return {"device_hours": self.device_hours, "price": self.price}
