"""Whole runs: what a command does from options to a report, in a folder of its own."""
