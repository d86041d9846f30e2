"""The parts of the page that app.py puts together. Only the modules of its tabs import gradio."""
