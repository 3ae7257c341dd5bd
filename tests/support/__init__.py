"""Helpers shared by the tests: programs, backends, relays and raw callers."""
