"""Images in and out: open any file upright in RGB, bring it to the model's size, compose edits at its own."""
