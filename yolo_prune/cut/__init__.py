"""From a choice of channels to a smaller model: the plan, the cut and its proof."""
