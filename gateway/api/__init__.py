"""The HTTP surface: every endpoint lowers its body to a GenerateRequest and folds the events of the answer."""
