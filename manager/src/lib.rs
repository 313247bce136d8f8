//! Images, snapshots and the lifecycle of containers behind gRPC.
