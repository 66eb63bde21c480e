"""Curves over timesteps, drawn to a PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 56, 16, 44, 40
COLOURS = ((31, 98, 168), (200, 90, 20), (40, 130, 70), (130, 60, 150))
GRID, LAST_T = (222, 222, 222), 1000
FONT = ImageFont.load_default(13)


@dataclass(frozen=True)
class Line:
    """Values at timesteps, ascending; with `spread`, a band of so much above and below."""

    timesteps: Sequence[int]
    values: Sequence[float]
    spread: Sequence[float] = ()


class Chart:
    """A chart of named lines, values from 0 to `top`, with a legend."""

    def __init__(self, lines: Mapping[str, Line], top: float) -> None:
        self.top = top
        self.image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.draw = ImageDraw.Draw(self.image)
        self._axes()
        x = LEFT
        for (name, line), colour in zip(lines.items(), COLOURS, strict=False):
            self._line(line, colour)
            self.draw.text((x, 6), name, fill=colour, font=FONT)
            x += int(self.draw.textlength(name, font=FONT)) + 24

    def mark(self, name: str, t: int, value: float, index: int) -> None:
        """Show where line `index` reaches a value: dashes to both axes, and a name above."""
        colour, (x, y) = COLOURS[index], self._place(t, value)
        for left in range(LEFT, x, 8):
            self.draw.line((left, y, min(left + 4, x), y), fill=colour)
        for above in range(TOP, HEIGHT - BOTTOM, 8):
            self.draw.line((x, above, x, above + 4), fill=colour)
        self.draw.text((x, TOP - 3), name, fill=colour, font=FONT, anchor="mb")

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.image.save(path, "PNG", optimize=True)

    def _place(self, t: float, value: float) -> tuple[int, int]:
        across, up = t / LAST_T, min(max(value / self.top, 0.0), 1.0)
        return round(LEFT + across * (WIDTH - LEFT - RIGHT)), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))

    def _axes(self) -> None:
        for step in range(6):
            x, y = self._place(200 * step, self.top * step / 5)
            self.draw.line((x, TOP, x, HEIGHT - BOTTOM), fill=GRID)
            self.draw.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
            self.draw.text((x, HEIGHT - BOTTOM + 6), str(200 * step), fill="black", font=FONT, anchor="mt")
            self.draw.text((LEFT - 6, y), f"{self.top * step / 5:.3g}", fill="black", font=FONT, anchor="rm")
        self.draw.text(((LEFT + WIDTH - RIGHT) // 2, HEIGHT - 4), "t", fill="black", font=FONT, anchor="mb")

    def _line(self, line: Line, colour: tuple[int, int, int]) -> None:
        points = [self._place(t, value) for t, value in zip(line.timesteps, line.values, strict=True)]
        if line.spread:
            each = list(zip(line.timesteps, line.values, line.spread, strict=True))
            upper = [self._place(t, value + spread) for t, value, spread in each]
            lower = [self._place(t, value - spread) for t, value, spread in reversed(each)]
            band = Image.new("L", self.image.size)
            ImageDraw.Draw(band).polygon([*upper, *lower], fill=45)
            self.image.paste(colour, mask=band)
        self.draw.line(points, fill=colour, width=2)
