"""`make demo`: a real cluster, the operator, a LLaMA2 trained over two nodes with a worker killed on the way."""
