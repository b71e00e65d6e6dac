"""Everything that knows vLLM's engine: the composite model, its weights, the batch's settings, the trace."""
