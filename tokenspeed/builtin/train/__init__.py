"""How the built-in model is made: corpus, then tokenizer, then train. Nothing of the server imports this."""
