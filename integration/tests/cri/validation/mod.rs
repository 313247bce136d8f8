//! What the field's validation suite asks of a runtime, group by group, with images that are made on the spot: the same
//! calls, the same expectations. What other tests here show already is not shown again.
//!
//! Source: kubernetes-sigs/cri-tools `pkg/validate`.

mod identity;
mod image;
mod lists;
mod mount;
mod namespace;
mod seccomp;
