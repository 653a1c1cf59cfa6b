"""The `strategy=` keyword of `generate`: from the call to the responses it returns."""
