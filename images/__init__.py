"""The container images of the steps: Dockerfiles, one per kind of step, and the command that builds them."""
