"""The page: one file a tab, and the theme. Nothing below this package imports Gradio."""
