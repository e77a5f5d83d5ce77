"""The adapter folders that Hugging Face PEFT writes."""
