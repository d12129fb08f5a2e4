"""Changing parameters outside of training: import from other formats, export to them, and older checkpoint layouts."""
