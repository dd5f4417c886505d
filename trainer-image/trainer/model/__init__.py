"""Hugging Face's LlamaForCausalLM, untouched: its shape, and its weights drawn or read slice by slice."""
