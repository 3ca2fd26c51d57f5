"""The stages of the pipeline, one file each, run as `python -m stages.<name>`; see dvc.yaml for what reads what."""
