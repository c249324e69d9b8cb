"""Venues to trade against: generated market data, and players that send it."""
