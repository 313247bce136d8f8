//! The wire: protobuf messages and the ttrpc transport.
