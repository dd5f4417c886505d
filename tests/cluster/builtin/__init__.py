"""A real Kubernetes cluster from processes and namespaces of a bare Linux machine, without a container engine."""
