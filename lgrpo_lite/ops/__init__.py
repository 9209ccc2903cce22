"""The kernels' part: log-probs through a language-model head, decayed sums, lean activations."""
