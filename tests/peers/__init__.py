"""vLLM's own HTTP tests, run against this server and against vLLM's: `make test-peers`."""
