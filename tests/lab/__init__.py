"""The lab: systemd nodes in containers and a bundle built from package registries (see `python -m tests.lab --help`)."""
