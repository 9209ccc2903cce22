"""How good a policy is: suites, samples, figures with intervals, comparisons problem by problem."""
