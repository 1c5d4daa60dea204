"""How accurate a model is, worked out from what it found and what is there; knows no host."""
