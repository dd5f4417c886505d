"""Hugging Face's LlamaForCausalLM and MixtralForCausalLM, untouched: their shape, and
their weights drawn or read slice by slice."""
