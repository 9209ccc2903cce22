"""What samples: transformers, vLLM, Unsloth, a server; and the proof that it samples from the policy."""
