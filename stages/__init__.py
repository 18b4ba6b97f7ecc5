"""WHAT is computed: one room per stage of dvc.yaml. Rooms never import prefect or dvc."""
