"""M1: researchers that propose methods, the campaign loop, and the sealed test split."""
