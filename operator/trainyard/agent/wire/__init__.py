"""kubelet's gRPC interfaces. The *_pb2*.py files are made from the .proto files by `make generate`."""
