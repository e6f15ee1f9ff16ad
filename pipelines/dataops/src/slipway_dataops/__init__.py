"""From data that somebody dropped into a bucket to a trained model: Airflow's side of it.

`kfp`, `hooks`, `operators`, `sensors`, `triggers` lead to Kubeflow Pipelines over its REST API, without its SDK. `drops`, `data`,
`statistics`, `lineage` are the operations on data, plain functions that know nothing of Airflow. `connections` and `notices` are
what the DAG needs besides. Nothing here is imported for a DAG to be parsed but operators, sensors and triggers.
"""

__version__ = "0.1.0"
