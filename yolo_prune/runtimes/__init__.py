"""What runs a model, one file a runtime, and the images that it is fed with."""
