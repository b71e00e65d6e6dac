"""vLLM's plugin hook: makes the composite architecture known wherever vLLM builds models."""

ARCHITECTURE = "LogitFusionForCausalLM"


def register() -> None:
    """Register the composite model; vLLM calls this in every process (entry point group `vllm.general_plugins`)."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "server.engine.composite:LogitFusionForCausalLM")
