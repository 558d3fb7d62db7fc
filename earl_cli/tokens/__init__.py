"""The language of the model: vocabulary, text tokenizers, sequence layout and grammar, in numpy and without torch."""
