"""The parts of the classical segmenter in grabcut.py."""
