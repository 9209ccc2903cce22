"""rich's console for text that others wrote."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from lgrpo_lite.monitor.text import visible


class PlainText(Console):
    """What is printed is shown as it is: no markup, no emoji codes, no control sequence but rich's own."""

    def __init__(self, **more: Any):
        super().__init__(**more, markup=False, emoji=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """Before widths are measured, so that tables of strings stay straight."""
        return super().render_str(visible(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All else, whatever made it; a line with what `visible` lengthens is too wide, and shown all the
        same.
        """
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else visible(segment.text)
            yield segment if shown == segment.text else Segment(shown, segment.style)
