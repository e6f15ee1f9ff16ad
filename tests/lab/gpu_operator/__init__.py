"""Stand-in for NVIDIA's GPU operator on a lab node: offers simulated GPUs to the real kubelet. See tests/lab/README.md."""
