"""A typed grammar of methods: genomes, the source they are written as, and a table of what their fragments earn."""
