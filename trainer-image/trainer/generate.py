"""`python -m trainer.generate`: let an exported model go on with a prompt, on the CPU."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainyard.api import EXIT_CONFIG

from trainer import errors
from trainer.errors import ConfigError


def main(arguments: list[str]) -> int:
    """Print the prompt and what the model makes of it. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.generate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder in the Hugging Face format, such as export")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, default=40, help="how many to add at most")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token each time")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        print(generate(given.model, given.prompt, given.tokens, given.temperature, given.seed))
        return 0
    except ConfigError as error:
        errors.report(error)
        return EXIT_CONFIG


def generate(folder: Path, prompt: str, tokens: int, temperature: float, seed: int) -> str:
    """The prompt with up to `tokens` tokens after it. Raises ConfigError if the folder holds no model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--model: {folder} should be a Hugging Face folder, but it has no config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model: cannot load {folder}: {errors.one_line(error, 300)}") from None
    torch.manual_seed(seed)
    inputs = tokenizer(prompt, return_tensors="pt")
    choice = {"do_sample": True, "temperature": temperature, "top_k": 50} if temperature > 0 else {"do_sample": False}
    with torch.no_grad():
        output = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
                                max_new_tokens=tokens, pad_token_id=tokenizer.eos_token_id, **choice)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
