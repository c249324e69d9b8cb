"""Strategies to start from: each is one file, shown in a test."""
