"""The version of edgelm, in a place that every floor may import."""

__version__ = "0.1.0"
