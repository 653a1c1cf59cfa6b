"""What draws text: how a policy loads, its tokenizer, and what it has to be before a strategy decodes with it."""
