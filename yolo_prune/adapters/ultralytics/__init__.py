"""The Ultralytics host."""
