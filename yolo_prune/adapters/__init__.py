"""The only place that names a host framework."""
