"""Runs as processes of their own on one machine, side by side."""
