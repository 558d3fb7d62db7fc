"""What an edit is worth: judges, the offline reference, their combinations."""
