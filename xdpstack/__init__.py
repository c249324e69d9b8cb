"""Kernel-bypass packet processing for trading hosts, Python first."""

__version__ = "0.1.0"
