"""etcd v3 as the coordination service: a client on plain gRPC (why not `etcd3`: docs/adr/0001-etcd-client.md).

    client      EtcdCoordination: the port, in terms of the modules below
    commits     guarded writes that are applied once, however often their answer is lost
    leases      leases with a local deadline that is never later than the server's
    watches     watches that outlive members, connections and compaction
    transport   calls: endpoint rotation, deadlines, tokens
    endpoints   channels and which of them to use
    failures    what a gRPC status means, and the error of ours that it becomes
    url         etcd://user:password@host:2379,host:2379/?ca=...
    admin       status, compaction, alarms, users
    etcd3_shim  `etcd3.Etcd3Client` as a source of connection and credentials
    rpc.proto   the wire format

Nothing here is imported before somebody asks for etcd: gRPC takes 60 ms to load.
"""
