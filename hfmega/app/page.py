"""The page: four tabs, of which each shows what the one before it chose."""

from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr

from hfmega import __version__
from hfmega.app import merge, pair, publish, result, watch
from hfmega.app.pair import PRIVATE

STYLE: Final = Path(__file__).with_name("page.css")
SANS: Final = ("system-ui", "sans-serif")
MONO: Final = ("ui-monospace", "monospace")
ORANGE: Final = gr.themes.Color(
    "#fff5ef", "#ffe6d6", "#ffcaa8", "#ffa571", "#f57f38", "#c24f00",
    "#ab4600", "#8c3a00", "#6d2e02", "#572603", "#331400",
)  # fmt: skip


def build(base: Path, on_space: bool = False) -> gr.Blocks:
    """The page over the merges below a folder."""
    with gr.Blocks(title="hfmega", analytics_enabled=False, fill_width=False) as page:
        gr.HTML(
            f'<header class="hf-head"><h1>hfmega</h1><p>Merge checkpoints, and see what it is worth. '
            f"Merges in <code>{escape(str(base))}</code></p></header>"
        )
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            with gr.Tab("1 Pair", id="pair"):
                first = pair.tab(base)
            with gr.Tab("2 Merge", id="merge"):
                run = merge.tab(base, first)
            with gr.Tab("3 Result", id="result") as third:
                shown = result.tab(base)
            with gr.Tab("4 Publish", id="publish") as fourth:
                published = publish.tab(base, on_space)
        gr.HTML(f'<footer class="hf-foot">hfmega {__version__}</footer>')
        carry(base, run, shown, published, third, fourth, page)
    return page


def carry(
    base: Path, run: gr.Dropdown, shown: gr.Dropdown, published: gr.Dropdown, third: Any, fourth: Any, page: gr.Blocks
) -> None:
    """What one tab chose, the next ones show; a page that is opened shows what is going on."""

    def newest(run: str | None, chosen: str | None) -> Any:
        names = result.finished(base)
        value = chosen if chosen in names else run if run in names else next(iter(names), None)
        return gr.Dropdown(choices=names, value=value)

    def opened() -> Any:
        names = watch.listed(base)
        return gr.Dropdown(choices=names, value=names[0][1] if names else None)

    hidden: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
    third.select(newest, [run, shown], [shown], **hidden)
    fourth.select(newest, [shown, published], [published], **hidden)
    page.load(opened, None, [run], **hidden)


def theme() -> Any:
    """Colours that read on both pages, and the fonts of the machine: nothing is fetched."""
    base = gr.themes.Default(primary_hue=ORANGE, secondary_hue=ORANGE, neutral_hue="slate", font=SANS, font_mono=MONO)
    return base.set(
        button_primary_background_fill="*primary_500",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_label_text_weight="600",
        block_title_text_weight="600",
    )
