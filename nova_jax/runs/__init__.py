"""Runs: what their folders say of them."""
