"""What a channel is worth: from weights alone, or measured on calibration images."""
