//! End-to-end tests: the built binaries, used as a person or a client would.
