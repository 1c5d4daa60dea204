"""torchvision (and timm) as a host: named architectures, state dicts, a training loop of the package's own."""
