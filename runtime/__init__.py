"""What a person or a program talks to: LLM, tokenizer, chat templates, catalogue, command line."""
