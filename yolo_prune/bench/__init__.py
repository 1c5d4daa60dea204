"""Latency and throughput under one timing protocol, one file per runtime."""
