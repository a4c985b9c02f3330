"""How the page looks: a Gradio theme in our own colours, system fonts only, and the style sheet."""

from gradio.themes import Base
from gradio.themes.utils.colors import Color

from biogpt.paths import assets

STYLE_SHEET = assets() / "style.css"

_TEAL = Color(
    name="biogpt-teal",
    c50="#eefaf8",
    c100="#d5f2ed",
    c200="#aee4dc",
    c300="#7acfc4",
    c400="#43b0a5",
    c500="#1f9187",
    c600="#0f766e",
    c700="#115e59",
    c800="#134e4a",
    c900="#123f3d",
    c950="#052e2b",
)
_SLATE = Color(
    name="biogpt-slate",
    c50="#f7f9fa",
    c100="#eef2f4",
    c200="#dfe5e9",
    c300="#c6d0d7",
    c400="#93a2ad",
    c500="#667682",
    c600="#4b5a66",
    c700="#364450",
    c800="#1f2a33",
    c900="#151e26",
    c950="#0d141a",
)
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")


def theme() -> Base:
    """The theme object for ``launch()``; it names no remote font, so the page loads nothing from outside."""
    return Base(
        primary_hue=_TEAL,
        secondary_hue=_TEAL,
        neutral_hue=_SLATE,
        spacing_size="sm",
        radius_size="sm",
        font=_SANS,
        font_mono=_MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary_dark="*neutral_900",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_shadow="none",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_800",
        block_title_text_weight="600",
        block_title_text_size="*text_sm",
        block_info_text_size="12px",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_background_fill="white",
        input_background_fill_dark="*neutral_950",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_600",
        input_border_color_focus_dark="*primary_400",
        slider_color="*primary_600",
        slider_color_dark="*primary_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        button_large_text_size="15px",
        button_large_text_weight="500",
        button_large_padding="7px 14px",
        button_small_padding="3px 8px",
        button_small_text_weight="400",
    )
