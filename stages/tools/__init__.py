"""What the `lensmith tasks`, `dictionaries` and `circuits` commands compute for a person. No stage depends on it."""
