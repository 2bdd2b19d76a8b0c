"""The version, for files that say what made them."""

__version__ = "0.2.0"
