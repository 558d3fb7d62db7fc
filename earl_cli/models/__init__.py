"""The two networks of EARL: the language model that writes image codes, and the tokenizer between codes and pixels."""
