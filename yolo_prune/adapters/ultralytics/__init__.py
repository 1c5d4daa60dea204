"""Ultralytics as a host: load, evaluate, train, export."""
