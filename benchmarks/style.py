"""
Style of the pictures: Okabe and Ito's colours, distinct under every common colour vision, with a shape each.
"""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#333333"
STYLES = {
    "ours": ("#0072B2", "o"),
    "generate": ("#D55E00", "s"),
    "generate_batch": ("#009E73", "^"),
    "llama.cpp": ("#CC79A7", "D"),
}
LABELS = {
    "ours": 'generate(strategy="best_of_n")',
    "generate": "generate(num_return_sequences=N)",
    "generate_batch": "generate_batch(num_return_sequences=N)",
    "llama.cpp": "llama.cpp",
}


def finish(figure: Figure, panels: Axes | Iterable[Axes], title: str, legend: bool = True) -> None:
    """Add the title and one legend for all panels, and remove the frames."""
    panels = [panels] if isinstance(panels, Axes) else list(panels)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12, x=0.02, ha="left")
    if legend:
        handles = {
            name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        ordered = [name for name in LABELS.values() if name in handles]
        figure.legend(
            [handles[name] for name in ordered],
            ordered,
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=9,
        )
