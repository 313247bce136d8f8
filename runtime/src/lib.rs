//! One OCI bundle to one container and back.
