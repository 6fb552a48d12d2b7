"""Tools to test with: real etcd clusters, a toy framework, running jobs to look into and to break."""
