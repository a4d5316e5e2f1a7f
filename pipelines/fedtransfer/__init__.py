"""`ray-fed fedtransfer`: style generators move between silos, then a segmentation network is federated."""
