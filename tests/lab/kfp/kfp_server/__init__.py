"""Stand-in for the Kubeflow Pipelines server: its REST API, and pipelines run as pods, without Argo and ML Metadata."""
