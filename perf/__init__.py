"""Measurements of the gateway, each a command of `python3.13t -m perf`; nothing here is part of the gateway."""
