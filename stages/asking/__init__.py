"""Language models: asked, paid for within a limit, and written down."""
