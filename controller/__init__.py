"""Defender Fleet's center: enrolls defenders, publishes what they enforce, and keeps what they record."""

__version__ = "0.1.0"
