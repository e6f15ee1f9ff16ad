"""The lab's Kubeflow Pipelines: the stand-in for its server, and for upstream's manifests."""
