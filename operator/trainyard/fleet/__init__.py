"""The accelerators of all nodes: what is known of each device, and what follows for the nodes and the devices
themselves. Pure."""
