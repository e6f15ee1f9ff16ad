"""What k3s is called on a node."""

# By role of the node.
UNITS = {"server": "k3s.service", "agent": "k3s-agent.service"}
