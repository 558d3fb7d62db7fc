"""Pictures in and out: open any photo upright in RGB, bring it to the model's size, compose edits at its own."""
