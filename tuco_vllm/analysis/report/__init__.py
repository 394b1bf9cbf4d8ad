"""Finished runs -> one HTML file that people read, and CSV tables that programs read."""
